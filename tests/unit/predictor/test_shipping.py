"""The shipper: in order, through outages, and past records that the logger will never take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.predictor.incarnations import Lost, Spooled
from services.predictor.shipping import BATCH_RECORDS_MAX, RecordsRefused, Shipper
from services.predictor.spool import Spool
from services.runtime.errors import Unavailable


@dataclass
class Log:
    """Takes records, refuses those that contain `bad`, and is away for so many calls."""

    taken: list[tuple[str, int, bytes]] = field(default_factory=list)
    lost: list[tuple[str, int, int, str]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    away: int = 0
    broken: int = 0

    async def append(self, replica: str, incarnation: str, records: Sequence[Spooled], lost: Sequence[Lost]) -> None:
        if self.away:
            self.away -= 1
            raise Unavailable("the logger does not answer")
        if self.broken:
            self.broken -= 1
            raise RuntimeError("a bug")
        if any(b"bad" in r.payload for r in records):
            raise RecordsRefused("records[0].deployment: is required")
        self.batches.append(len(records))
        self.taken += [(incarnation, r.first_sequence, r.payload) for r in records]
        self.lost += [(incarnation, item.first_sequence, item.last_sequence, item.reason) for item in lost]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    earlier = Spool(tmp_path, "replica", "life-1", bytes_max=1 << 20)
    earlier.append(b"old", 2)
    earlier.close()
    opened = Spool(tmp_path, "replica", "life-2", bytes_max=1 << 24)
    yield opened
    opened.close()


@asynccontextmanager
async def shipping(spool: Spool, log: Log) -> AsyncIterator[Shipper]:
    shipper = Shipper(spool, log, jitter=lambda: 0.0, gather_s=0.0)
    task = asyncio.create_task(shipper.run())
    try:
        yield shipper
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def empty(spool: Spool) -> None:
    async with asyncio.timeout(5):
        while spool.pending:
            await asyncio.sleep(0.002)


async def test_earlier_lives_go_first_and_nothing_stays(spool: Spool) -> None:
    """Then each new record by itself, woken by the write."""
    log = Log()
    spool.append(b"new", 1)
    async with shipping(spool, log):
        await empty(spool)
        spool.append(b"newer", 1)
        await empty(spool)
    assert log.taken == [("life-1", 1, b"old"), ("life-2", 1, b"new"), ("life-2", 2, b"newer")]
    assert [i.incarnation for i in spool.incarnations()] == ["life-2"]


async def test_an_outage_and_a_bug_are_waited_out(spool: Spool) -> None:
    """Nothing is lost, nothing goes twice."""
    log = Log(away=2, broken=1)
    async with shipping(spool, log):
        await empty(spool)
    assert log.taken == [("life-1", 1, b"old")]


async def test_a_record_that_is_refused_is_reported_alone(spool: Spool, tmp_path: Path) -> None:
    """Two of them among forty; all others arrive in order."""
    log = Log()
    for i in range(40):
        spool.append(b"bad" if i in (7, 30) else b"%d" % i, 3)
    async with shipping(spool, log):
        await empty(spool)
    assert [s for life, s, _ in log.taken if life == "life-2"] == [1 + 3 * i for i in range(40) if i not in (7, 30)]
    assert [(life, first, last) for life, first, last, _ in log.lost] == [("life-2", 22, 24), ("life-2", 91, 93)]
    assert "deployment: is required" in log.lost[0][3]
    assert len(list(tmp_path.glob("replica/quarantine/*.bin"))) == 2


async def test_batches_are_bounded(spool: Spool) -> None:
    """By records; a backlog goes in as few as it can."""
    log = Log()
    for i in range(BATCH_RECORDS_MAX + 50):
        spool.append(b"%d" % i, 1)
    async with shipping(spool, log):
        await empty(spool)
    assert log.batches == [1, BATCH_RECORDS_MAX, 50]


async def test_flush_ships_the_rest_and_gives_up_in_time(spool: Spool) -> None:
    """With a logger, and without one."""
    log = Log(away=1)
    shipper = Shipper(spool, log)
    await shipper.flush(0.5)
    assert spool.pending == 2
    await shipper.flush(0.5)
    assert spool.pending == 0
