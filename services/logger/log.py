"""The prediction log: what is appended, claimed and read.

Every entry, a record of predictions or an outcome, has a position of its own; positions are given out and become
visible in order. An outcome comes after the prediction that it belongs to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog

from foresight.values import micros_from_instant
from services.logger.entries import FoundPrediction, IncarnationLedger, Page
from services.logger.forgetting import drop_forgotten
from services.logger.metrics import LoggerMetrics
from services.logger.outcomes import Claims, Plan, plan_outcomes
from services.logger.postgres import LogStore
from services.logger.postgres.appending import Appending
from services.logger.postgres.writing import Writing
from services.logger.records import LogRecord, QuarantinedRange, RecordBytes, all_new, sort_out
from services.logger.targets import target_of_id
from services.runtime.clock import Clock
from services.runtime.errors import LimitExceeded, NotFound, OutOfRange

log = structlog.get_logger()

PAGE_BYTES_MAX = (4 << 20) - 4_096
HELD_MAX = 1_000_000
CLOCK_SKEW_MAX = timedelta(minutes=5)
REUSED_NAMED_MAX = 5


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append changed; `head` is the log's last position after it."""

    appended: int
    duplicates: int
    head: int


class PredictionLog:
    """The log over its store; `records` reads and rewrites the bytes of records."""

    def __init__(self, store: LogStore, records: RecordBytes, clock: Clock, metrics: LoggerMetrics) -> None:
        self._store = store
        self._records = records
        self._clock = clock
        self._metrics = metrics
        self._shown = 0

    async def append(self, records: Sequence[LogRecord], quarantined: Sequence[QuarantinedRange]) -> Appended:
        """Stores what is new, in one transaction, and attaches outcomes that were waiting for it.

        A prediction that is there already is counted, never stored again; when only a part of a record is new,
        that part is stored. Raises LimitExceeded when too many writers wait.
        """
        if not records and not quarantined:
            return Appended(0, 0, (await self._store.state()).head)
        async with self._store.writing() as writing:
            appending = await Appending.within(writing)
            sources = {record.source for record in records} | {lost.source for lost in quarantined}
            ids = [i for record in records for i in record.prediction_ids]
            known = await appending.known_predictions(ids, sources)
            result = all_new(records) if not known else None
            if result is None:
                result = await asyncio.to_thread(sort_out, records, known, self._records.cut)
            fresh, dropped = await self._without_forgotten(writing, result.fresh)
            await appending.open_incarnations()
            linked = await appending.link(fresh, self._records, micros_from_instant(self._clock()))
            attached = await appending.store(linked, result.fresh)
            await appending.account_duplicates(result.duplicates)
            newly_lost = await appending.account_quarantined(quarantined)
        duplicates = sum(result.duplicates.values())
        if result.reused:
            log.warning("prediction_ids_reused", count=len(result.reused), examples=result.reused[:REUSED_NAMED_MAX])
        lost = sum(len(record.prediction_ids) for record in dropped)
        self._metrics.predictions.inc(result.appended - lost)
        self._metrics.forgotten.inc(lost)
        self._metrics.duplicates.inc(duplicates)
        self._metrics.quarantined.inc(newly_lost)
        self._metrics.outcomes_matched.inc(attached)
        self._show(writing.head, writing.held)
        return Appended(result.appended - lost, duplicates, writing.head)

    async def _without_forgotten(
        self, writing: Writing, fresh: list[LogRecord]
    ) -> tuple[list[LogRecord], list[LogRecord]]:
        """The records that may be stored, and those whose entity was forgotten after they were served."""
        forgotten = await self._store.forgotten(writing)
        if not any(forgotten.concerns((record.view, record.view_version)) for record in fresh):
            return fresh, []
        now = micros_from_instant(self._clock())
        kept, dropped = await asyncio.to_thread(drop_forgotten, fresh, forgotten, now, self._records)
        await writing.drop_claims([t for r in dropped for t in (*r.targets, *map(target_of_id, r.prediction_ids))])
        return kept, dropped

    async def record_outcomes(self, claims: Claims) -> Plan:
        """Attaches outcomes to their predictions, or holds them until those arrive: all of them, or none.

        Raises OutOfRange for an outcome known later than now, AlreadyExists for one that contradicts an earlier
        one, LimitExceeded when too many would be held or attached, or too many writers wait.
        """
        latest = micros_from_instant(self._clock() + CLOCK_SKEW_MAX)
        for row, outcome in enumerate(claims.outcomes):
            if outcome.observed_at > latest:
                raise OutOfRange(f"observed_at_micros[{row}] lies in the future", row=str(row))
        async with self._store.writing() as writing:
            known = await writing.known_claims(claims)
            plan = await asyncio.to_thread(plan_outcomes, claims, known)
            await writing.attach(plan.attach)
            await writing.keep(claims, plan.keep)
            if writing.held > HELD_MAX:
                raise LimitExceeded(f"more than {HELD_MAX:,} outcomes wait for their prediction", limit="held_outcomes")
        self._metrics.outcomes_matched.inc(plan.matched)
        self._metrics.outcomes_held.inc(plan.held)
        self._metrics.outcomes_duplicate.inc(plan.duplicates)
        self._show(writing.head, writing.held)
        return plan

    async def read(self, cursor: int, page_size: int) -> Page:
        """At most `page_size` entries and about 4 MiB after the cursor. Raises OutOfRange beyond the end."""
        page = await self._store.entries(cursor, page_size, PAGE_BYTES_MAX)
        if cursor > page.head:
            raise OutOfRange(f"the cursor {cursor} lies beyond the end of the log, {page.head}", head=str(page.head))
        return page

    async def find(self, prediction_id: str) -> FoundPrediction:
        """One prediction. Raises NotFound when it has not arrived."""
        found = await self._store.prediction(prediction_id)
        if found is None:
            raise NotFound("prediction", prediction_id)
        return found

    async def ledger(self) -> Sequence[IncarnationLedger]:
        """The account of every incarnation, by replica and first arrival."""
        return await self._store.ledger()

    async def measure(self) -> None:
        """Sets the gauges from what is stored."""
        state = await self._store.state()
        self._show(state.head, state.held)

    def _show(self, head: int, held: int) -> None:
        # Calls end in another order than they wrote; what was written last is what is shown.
        if head >= self._shown:
            self._shown = head
            self._metrics.head.set(head)
            self._metrics.held.set(held)
