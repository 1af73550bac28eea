"""Reading features offline: rows of groups, and point-in-time joins with views."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

import pyarrow as pa

from foresight.values import InvalidValue
from services.feature_store.commits import watermark
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.histories import BatchStream, EventTimes
from services.feature_store.registry import Registry
from services.feature_store.spine import check_spine
from services.feature_store.transit import is_small
from services.feature_store.view_join import ViewJoin
from services.runtime.threads import in_thread_unless

# Each streamed read holds a database connection for as long as its caller reads; writers need the others.
STREAMS_MAX = 2


class LastCommit(Protocol):
    """Says how far the commits go."""

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


class FeatureReads:
    """Reads historical rows."""

    def __init__(self, registry: Registry, commits: LastCommit, streams: RowStreams, view_join: ViewJoin) -> None:
        self._registry = registry
        self._commits = commits
        self._streams = streams
        self._join = view_join
        self._streaming = asyncio.Semaphore(STREAMS_MAX)

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
        spine = await in_thread_unless(is_small(table), check_spine, table, plan.view, labelled=False)
        joined = await self._join.join(plan, spine, limit, known_by=known_by)
        own = {name: spine.table[name] for name in spine.table.column_names if name not in joined.features}
        return pa.table(own | joined.features)
