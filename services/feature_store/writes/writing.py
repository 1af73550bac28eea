"""Writing features: rows become one commit, visible offline and online when the call answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from foresight.values import InvalidValue
from services.feature_store.commits import Commit, RowsToWrite, StagedRows, WriteOrigin
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.metrics import FeatureStoreMetrics
from services.feature_store.online.applier import Applier
from services.feature_store.registry.registry import Registry
from services.feature_store.tables.row_source import RowSource, TableRows
from services.feature_store.tables.transit import is_small
from services.feature_store.tables.workspace import Workspace
from services.feature_store.writes.incoming_rows import IncomingRows
from services.runtime.clock import Clock
from services.runtime.errors import PermissionDenied, ServiceError
from services.runtime.identity import is_operator
from services.runtime.threads import in_thread_unless

log = structlog.get_logger()

# How long the online store may take: at least, and per row.
APPLIED_TIMEOUT_S = 10.0
APPLIED_ROW_S = 1 / 10_000
# Commits of so many rows are shown to the observer.
OBSERVED_ROWS_MIN = 10_000


class Commits(Protocol):
    """Publishes rows."""

    async def write(self, stored: StoredGroup, rows: RowsToWrite, origin: WriteOrigin) -> Commit:
        """Publishes rows as one commit; idempotent with a write id. Raises AlreadyExists, StaleEtag, LimitExceeded."""
        ...


class CommitObserver(Protocol):
    """Looks at large commits."""

    async def committed(self, stored: StoredGroup, commit: Commit, rows: RowSource) -> None:
        """Takes a commit that was just published; `rows` can be read until this returns."""
        ...


@dataclass(frozen=True, slots=True)
class Write:
    """A write as it was asked for; `caller` is the identity of who asked."""

    group: Reference
    rows: RowSource
    caller: str
    origin: WriteOrigin = field(default_factory=WriteOrigin)


class FeatureWrites:
    """Writes rows of groups."""

    def __init__(
        self,
        registry: Registry,
        commits: Commits,
        applier: Applier,
        clock: Clock,
        metrics: FeatureStoreMetrics,
        workspace: Workspace,
        observer: CommitObserver | None = None,
    ) -> None:
        self._registry = registry
        self._commits = commits
        self._applier = applier
        self._clock = clock
        self._metrics = metrics
        self._workspace = workspace
        self._observer = observer

    async def write(self, asked: Write) -> Commit:
        """Publishes rows as one commit; returns when offline and online reads see it.

        Rows that break an expectation of a group whose policy is QUARANTINE are kept apart, the others published.
        Raises NotFound, InvalidValue with every fault, ExpectationsBroken, OutOfRange, LimitExceeded, AlreadyExists for
        a write id with other rows, StaleEtag for a pipeline whose position moved, PermissionDenied for `known_at` of a
        caller who may not assert it, Unavailable when the commit is published but the online store does not follow.
        """
        if "known_at" in asked.rows.schema.names and not is_operator(asked.caller):
            raise PermissionDenied("known_at may be given by operators only")
        stored = await self._registry.group(asked.group)
        if stored.group.derived:
            raise InvalidValue("header.group", "is filled by reingestion only")
        async with self._incoming(stored, asked) as rows:
            commit = await self._publish(stored, rows, asked.origin)
            if not commit.number:
                return commit
            staged = None
            if not commit.duplicate:
                staged = StagedRows(stored, rows.stored_rows())
                self._applier.hand_over(commit, staged)
                self._metrics.commits.inc()
                self._metrics.rows_written.inc(commit.rows)
                self._metrics.rows_quarantined.inc(commit.quarantined_rows)
            await self._followed(commit, staged)
        return commit

    @contextlib.asynccontextmanager
    async def _incoming(self, stored: StoredGroup, asked: Write) -> AsyncIterator[IncomingRows]:
        """The rows, checked at once when they are few."""
        origin = asked.origin
        rows = IncomingRows(
            stored,
            asked.rows,
            self._clock(),
            self._workspace,
            digested=bool(origin.write_id),
            may_be_empty=origin.progress is not None,
        )
        try:
            if isinstance(asked.rows, TableRows):
                await in_thread_unless(is_small(asked.rows.table), rows.check_all)
            yield rows
        finally:
            await in_thread_unless(rows.in_memory, rows.close)

    async def _publish(self, stored: StoredGroup, rows: IncomingRows, origin: WriteOrigin) -> Commit:
        publishing = asyncio.ensure_future(self._commits.write(stored, rows, origin))
        try:
            return await asyncio.shield(publishing)
        except asyncio.CancelledError:
            # The thread that copies is waited for, as it works with the rows.
            rows.abandon()
            await asyncio.wait([publishing])
            if not publishing.cancelled():
                publishing.exception()
            raise

    async def _followed(self, commit: Commit, staged: StagedRows | None) -> None:
        """Returns once the online store has the commit and the observer has seen it."""
        timeout_s = APPLIED_TIMEOUT_S + commit.rows * APPLIED_ROW_S
        if self._observer is None or staged is None or commit.rows < OBSERVED_ROWS_MIN:
            await self._applier.applied(commit.number, timeout_s)
            return
        observing = asyncio.ensure_future(self._observed(self._observer, commit, staged))
        try:
            await self._applier.applied(commit.number, timeout_s)
        except BaseException:
            # The rows go when this ends.
            observing.cancel()
            await asyncio.wait([observing])
            raise
        await observing

    async def _observed(self, observer: CommitObserver, commit: Commit, staged: StagedRows) -> None:
        try:
            await observer.committed(staged.group, commit, staged.rows)
        except ServiceError as error:
            # The commit is published; what is known about it can be made later.
            log.warning("commit_not_observed", commit=commit.number, reason=error.message)
