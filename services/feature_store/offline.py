"""Offline features: writes as commits, reads by event time, and point-in-time joins."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from foresight.values import FeatureGroup, InvalidValue
from foresight.values.names import check_text
from services.feature_store.applier import Applier
from services.feature_store.commits import Commit, StagedRows, watermark
from services.feature_store.content import content_sha256
from services.feature_store.expansion import expanded_bytes
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.histories import BatchStream, EventTimes
from services.feature_store.metrics import FeatureStoreMetrics
from services.feature_store.registry import Registry
from services.feature_store.row_tables import check_rows
from services.feature_store.spine import check_spine
from services.feature_store.transit import SMALL_BYTES_MAX
from services.feature_store.view_join import ViewJoin
from services.runtime.clock import Clock
from services.runtime.errors import PermissionDenied
from services.runtime.identity import LOCAL
from services.runtime.threads import in_thread_unless

WRITE_ID_BYTES_MAX = 128
APPLIED_TIMEOUT_S = 10.0
# Each streamed read holds a database connection for as long as its caller reads; writers need the others.
STREAMS_MAX = 2
PRIVILEGED_PREFIX = "spiffe://foresight/operator/"


class Commits(Protocol):
    """Publishes rows."""

    async def write(self, staged: StagedRows, write_id: str = "", content: str = "") -> Commit:
        """Publishes rows as one commit; idempotent with a write id. Raises AlreadyExists, LimitExceeded."""
        ...

    async def last(self) -> int:
        """Number of the last commit."""
        ...


class RowStreams(Protocol):
    """Streams rows of groups."""

    def stream(
        self, stored: StoredGroup, watermark: int, times: EventTimes, *, latest_only: bool
    ) -> contextlib.AbstractAsyncContextManager[BatchStream]:
        """Keys, `event_time`, features, `known_at`, `commit`, `deleted`: every row in commit order, or the latest per
        key without tombstones."""
        ...


class OfflineFeatures:
    """Writes and reads historical rows."""

    def __init__(
        self,
        registry: Registry,
        commits: Commits,
        streams: RowStreams,
        view_join: ViewJoin,
        applier: Applier,
        clock: Clock,
        metrics: FeatureStoreMetrics,
    ) -> None:
        self._registry = registry
        self._commits = commits
        self._streams = streams
        self._join = view_join
        self._applier = applier
        self._clock = clock
        self._metrics = metrics
        self._streaming = asyncio.Semaphore(STREAMS_MAX)

    async def write(self, reference: Reference, write_id: str, table: pa.Table, caller: str) -> Commit:
        """Publishes a table as one commit; returns when offline and online reads see it.

        Raises NotFound, InvalidValue with every fault, OutOfRange, LimitExceeded, AlreadyExists for a write id with
        other rows, PermissionDenied for `known_at` of a caller who may not assert it, Unavailable when the commit is
        published but the online store does not follow.
        """
        if write_id:
            check_text(write_id, "header.write_id", WRITE_ID_BYTES_MAX)
        if "known_at" in table.column_names and caller != LOCAL and not caller.startswith(PRIVILEGED_PREFIX):
            raise PermissionDenied("known_at may be given by operators only")
        stored = await self._registry.group(reference)
        if stored.group.derived:
            raise InvalidValue("header.group", "is filled by reingestion only")
        rows, content = await in_thread_unless(
            _is_small(table), _checked, table, stored.group, self._clock(), bool(write_id)
        )
        staged = StagedRows(stored, rows)
        commit = await self._commits.write(staged, write_id, content)
        if not commit.duplicate:
            self._applier.hand_over(commit, staged)
            self._metrics.commits.inc()
            self._metrics.rows_written.inc(commit.rows)
        await self._applier.applied(commit.number, APPLIED_TIMEOUT_S)
        return commit

    @contextlib.asynccontextmanager
    async def read(
        self, reference: Reference, commit: int, times: EventTimes, *, latest_only: bool
    ) -> AsyncIterator[BatchStream]:
        """The rows of a group; waits while STREAMS_MAX are being read. Raises NotFound, InvalidValue, OutOfRange."""
        if times.first is not None and times.end is not None and times.first >= times.end:
            raise InvalidValue("from_event_time", "is not before to_event_time")
        stored = await self._registry.group(reference)
        limit = watermark(commit, await self._commits.last())
        async with self._streaming, self._streams.stream(stored, limit, times, latest_only=latest_only) as batches:
            yield batches

    async def read_as_of(self, view: Reference, commit: int, table: pa.Table, *, known_by: bool) -> pa.Table:
        """The spine's columns, then the view's features as of each row's event time.

        Raises NotFound, InvalidValue with every fault of the spine, OutOfRange, TransformMismatch.
        """
        plan = await self._registry.plan(view)
        limit = watermark(commit, await self._commits.last())
        spine = await in_thread_unless(_is_small(table), check_spine, table, plan.view, labelled=False)
        joined = await self._join.join(plan, spine, limit, known_by=known_by)
        own = {name: spine.table[name] for name in spine.table.column_names if name not in joined.features}
        return pa.table(own | joined.features)


def _is_small(table: pa.Table) -> bool:
    return expanded_bytes(table) <= SMALL_BYTES_MAX


def _checked(table: pa.Table, group: FeatureGroup, now: datetime, digested: bool) -> tuple[pa.Table, str]:
    """The rows as they can be stored, and the digest of their content where it is wanted."""
    rows = check_rows(table, group, now)
    return rows, content_sha256(rows) if digested else ""
