"""Reingestion: pulls the log by cursor and turns predictions and outcomes into rows of derived groups.

Rows and cursor move in one transaction, so that a page is taken once, whenever the process stops. Of several processes
one does it, the others only look how far the log goes and take over when that one ends.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from foresight.values import FeatureView, micros_from_instant
from services.feature_store.commits import Commit, CursorMove, CursorMoved, StagedRows
from services.feature_store.groups import Reference
from services.feature_store.logs.log_groups import (
    PREDICTIONS,
    LogPage,
    LogSource,
    OutcomeEntry,
    PredictionEntry,
    group_name,
    outcome_rows,
    outcomes_group,
    prediction_rows,
    predictions_group,
)
from services.feature_store.metrics import FeatureStoreMetrics
from services.feature_store.online.leases import Lease, Unrivalled
from services.feature_store.registry.registry import Registry
from services.feature_store.tables.row_source import TableRows
from services.runtime.backoff import backoff_s
from services.runtime.clock import Clock
from services.runtime.errors import NotFound, ServiceError
from services.runtime.threads import in_thread

log = structlog.get_logger()

PAGE_ENTRIES = 500
POLL_S = 0.5
BACKOFF_FIRST_S = 0.2
BACKOFF_S_MAX = 5.0
_ALONE = Unrivalled()


class CursorStore(Protocol):
    """Keeps the cursor together with the rows."""

    async def cursor(self) -> tuple[int, int, int]:
        """The cursor, and the predictions and outcomes reingested so far."""
        ...

    async def reingest(self, staged: Sequence[StagedRows], move: CursorMove) -> list[Commit]:
        """Publishes rows and moves the cursor, all or nothing. Raises CursorMoved."""
        ...


@dataclass(frozen=True, slots=True)
class IngestionStatus:
    """How far reingestion has come; `head` is the log's end as of the last pull."""

    cursor: int
    head: int
    predictions: int
    outcomes: int
    last_pull_at: datetime | None


class LogIngestion:
    """Follows one log. `source` None: there is no log to follow, and `run` returns at once."""

    def __init__(
        self,
        registry: Registry,
        store: CursorStore,
        source: LogSource | None,
        clock: Clock,
        metrics: FeatureStoreMetrics,
        on_commit: Callable[[Sequence[Commit]], None],
        lease: Lease = _ALONE,
    ) -> None:
        self._registry = registry
        self._store = store
        self._source = source
        self._clock = clock
        self._metrics = metrics
        self._on_commit = on_commit
        self._lease = lease
        self._head = 0
        self._last_pull_at: datetime | None = None

    async def status(self) -> IngestionStatus:
        """How far reingestion has come."""
        cursor, predictions, outcomes = await self._store.cursor()
        return IngestionStatus(cursor, max(self._head, cursor), predictions, outcomes, self._last_pull_at)

    async def run(self) -> None:
        """Pulls until it is cancelled, then lets the lease go; backs off while the log or the database is away."""
        if self._source is not None:
            try:
                await self._follow(self._source)
            finally:
                await self._lease.release()

    async def _follow(self, source: LogSource) -> None:
        failures = 0
        while True:
            try:
                behind = await (self.pull(source) if await self._lease.take() else self._look(source))
                failures = 0
                if not behind:
                    await asyncio.sleep(POLL_S)
            except Exception as error:
                failures += 1
                expected = isinstance(error, ServiceError)
                log.warning("reingestion_failed", failures=failures, reason=str(error)[:300], exc_info=not expected)
                # Jitter: several stores must not ask a logger that comes back all at once.
                jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
                await asyncio.sleep(backoff_s(failures, BACKOFF_FIRST_S, BACKOFF_S_MAX) * jitter)

    async def pull(self, source: LogSource) -> bool:
        """Takes one page; answers whether there is more."""
        cursor, _, _ = await self._store.cursor()
        page = await source.read(cursor, PAGE_ENTRIES)
        self._last_pull_at, self._head = self._clock(), page.head
        if page.cursor != cursor:
            try:
                await self._take(page, cursor)
            except CursorMoved:
                # A second store follows the same log and was faster; what it took need not be taken again.
                return True
        behind = page.cursor < page.head
        self._metrics.reingestion_lag_s.set(self._lag_s(page) if behind else 0.0)
        return behind

    async def _look(self, source: LogSource) -> bool:
        """Sees how far the log goes, while another process takes it."""
        cursor, _, _ = await self._store.cursor()
        page = await source.read(cursor, 1)
        self._last_pull_at, self._head = self._clock(), page.head
        self._metrics.reingestion_lag_s.set(0.0)
        return False

    async def _take(self, page: LogPage, cursor: int) -> None:
        predictions: dict[Reference, list[PredictionEntry]] = defaultdict(list)
        outcomes: dict[Reference, list[OutcomeEntry]] = defaultdict(list)
        for entry in page.entries:
            if isinstance(entry, PredictionEntry):
                predictions[entry.view].append(entry)
            else:
                outcomes[entry.view].append(entry)
        staged: list[StagedRows] = []
        for view, found in predictions.items():
            staged += await self._stage_predictions(view, found)
        taken = sum(rows.rows.num_rows for rows in staged)
        for view, observed in outcomes.items():
            staged += await self._stage_outcomes(view, observed)
        matched = sum(rows.rows.num_rows for rows in staged) - taken
        commits = await self._store.reingest(staged, CursorMove(cursor, page.cursor, taken, matched))
        self._count(page, taken, matched, len(staged))
        if commits:
            self._on_commit(commits)

    async def _stage_predictions(self, reference: Reference, entries: list[PredictionEntry]) -> list[StagedRows]:
        view = await self._known(reference)
        if view is None:
            return []
        existing = await self._registry.find_group(Reference(group_name(PREDICTIONS, view.name, view.version)))
        group = predictions_group(view, entries, existing.group if existing is not None else None)
        stored = await self._registry.derived_group(group)
        return [StagedRows(stored, TableRows(await in_thread(prediction_rows, stored.group, entries)))]

    async def _stage_outcomes(self, reference: Reference, entries: list[OutcomeEntry]) -> list[StagedRows]:
        view = await self._known(reference)
        if view is None:
            return []
        stored = await self._registry.derived_group(outcomes_group(view))
        tables = await in_thread(outcome_rows, stored.group, entries)
        return [StagedRows(stored, TableRows(table)) for table in tables]

    async def _known(self, reference: Reference) -> FeatureView | None:
        """The view, or None for one that was never registered here: such entries are skipped and counted."""
        try:
            return await self._registry.view(reference)
        except NotFound:
            log.error("log_entries_of_unknown_view", view=str(reference))
            return None

    def _count(self, page: LogPage, predictions: int, outcomes: int, commits: int) -> None:
        entries = sum(len(e.prediction_ids) if isinstance(e, PredictionEntry) else 1 for e in page.entries)
        self._metrics.skipped_entries.inc(entries - predictions - outcomes)
        self._metrics.reingested_predictions.inc(predictions)
        self._metrics.reingested_outcomes.inc(outcomes)
        self._metrics.rows_written.inc(predictions + outcomes)
        self._metrics.commits.inc(commits)

    def _lag_s(self, page: LogPage) -> float:
        served = [entry.served_at_us for entry in page.entries if isinstance(entry, PredictionEntry)]
        return max(0.0, (micros_from_instant(self._clock()) - max(served)) / 1e6) if served else 0.0
