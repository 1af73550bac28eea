"""The ledger against a model, under random interleavings."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foresight.logger.v1 import prediction_log_pb2
from services.runtime.ids import new_id
from tests.conftest import MakeDatabase
from tests.integration.logger.rig import Record, lost, new_incarnation, record, running_logger

NUMBERS = 24


@dataclass
class Life:
    """One incarnation as the model sees it: every number has its own prediction id."""

    incarnation: str = field(default_factory=new_incarnation)
    ids: list[str] = field(default_factory=lambda: [new_id() for _ in range(NUMBERS + 1)])
    logged: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    duplicates: int = 0

    def record(self, first: int, n: int) -> Record:
        return record(self.incarnation, first, n, ids=self.ids[first : first + n])

    def expected(self) -> tuple[int, int, int, int]:
        seen = self.logged | self.lost
        return max(seen, default=0), len(self.logged), len(self.lost - self.logged), self.duplicates


spans = st.tuples(st.integers(1, NUMBERS), st.integers(1, 6)).map(lambda s: (s[0], min(s[1], NUMBERS + 1 - s[0])))
# (which life, whether it is a quarantined range, (first number, how many))
steps = st.tuples(st.integers(0, 1), st.booleans(), spans)
request_lists = st.lists(st.lists(steps, min_size=1, max_size=4), min_size=1, max_size=6)
Requests = list[list[tuple[int, bool, tuple[int, int]]]]


def test_the_ledger_agrees_with_a_model_whatever_the_order(postgres_url: MakeDatabase) -> None:
    database = postgres_url("logger")

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(requests=request_lists)
    def check(requests: Requests) -> None:
        runner.run(play(requests))

    async def play(requests: Requests) -> None:
        lives = [Life(), Life()]
        async with asyncio.timeout(30):
            before = (await logger.read()).head
            appended = 0
            for request in requests:
                records: list[Record] = []
                ranges: list[prediction_log_pb2.QuarantinedRange] = []
                new = 0
                for which, damaged, (first, n) in request:
                    life = lives[which]
                    numbers = set(range(first, first + n))
                    if damaged:
                        ranges.append(lost(life.incarnation, first, first + n - 1))
                        life.lost |= numbers
                    else:
                        records.append(life.record(first, n))
                        new += len(numbers - life.logged)
                        life.duplicates += len(numbers & life.logged)
                        life.logged |= numbers
                answer = await logger.append(*records, quarantined=ranges)
                assert answer.appended == new
                appended += new
            ledger = await logger.ledger()
            for life in lives:
                assert ledger.get(life.incarnation, (0, 0, 0, 0)) == life.expected()
            entries: list[prediction_log_pb2.LogEntry] = []
            cursor = before
            while (page := await logger.read(cursor, 7)).entries:
                entries.extend(page.entries)
                cursor = page.cursor
            seen = {
                (e.record.incarnation, e.record.first_sequence + row, prediction_id)
                for e in entries
                for row, prediction_id in enumerate(e.record.prediction_ids)
            }
            assert len(seen) == sum(len(e.record.prediction_ids) for e in entries) == appended
            assert seen == {(life.incarnation, n, life.ids[n]) for life in lives for n in life.logged}

    with asyncio.Runner() as runner:
        context = running_logger(database)
        logger = runner.run(context.__aenter__())
        try:
            check()
        finally:
            runner.run(context.__aexit__(None, None, None))
