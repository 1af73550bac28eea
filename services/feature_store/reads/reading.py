"""Reading features offline: rows of groups, and point-in-time joins with views."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Protocol

from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.reads.histories import BatchStream
from services.feature_store.reads.queries import GroupQuery, SpineQuery
from services.feature_store.reads.spine import check_spine
from services.feature_store.reads.spine_queries import SpineQueries
from services.feature_store.reads.view_join import ViewJoin
from services.feature_store.reads.watermarks import Watermarks
from services.feature_store.registry.registry import Registry
from services.feature_store.tables.row_source import RowSource, TableRows
from services.feature_store.tables.transit import is_small
from services.runtime.threads import in_thread_unless

# Each streamed read holds a database connection for as long as its caller reads; writers need the others.
STREAMS_MAX = 2


class RowStreams(Protocol):
    """Streams rows of groups."""

    def stream(
        self, stored: StoredGroup, query: GroupQuery, watermark: int
    ) -> contextlib.AbstractAsyncContextManager[BatchStream]:
        """Keys, `event_time`, features, `known_at`, `commit`, `deleted`: every row in commit order, or the latest per
        key without tombstones."""
        ...


class FeatureReads:
    """Reads historical rows."""

    def __init__(
        self,
        registry: Registry,
        watermarks: Watermarks,
        streams: RowStreams,
        spines: SpineQueries,
        view_join: ViewJoin,
    ) -> None:
        self._registry = registry
        self._watermarks = watermarks
        self._streams = streams
        self._spines = spines
        self._join = view_join
        self._streaming = asyncio.Semaphore(STREAMS_MAX)

    @contextlib.asynccontextmanager
    async def read(
        self, query: GroupQuery, commit: int = 0, as_of_time: datetime | None = None
    ) -> AsyncIterator[BatchStream]:
        """The rows of a group; waits while STREAMS_MAX are being read. Raises NotFound, InvalidValue, OutOfRange."""
        stored = await self._registry.group(query.group)
        query.check_fits(stored.group)
        limit = await self._watermarks.resolve(commit, as_of_time)
        async with self._streaming, self._streams.stream(stored, query, limit) as batches:
            yield batches

    @contextlib.asynccontextmanager
    async def read_as_of(
        self,
        view: Reference,
        spine: RowSource | SpineQuery,
        *,
        known_by: bool = False,
        commit: int = 0,
        as_of_time: datetime | None = None,
    ) -> AsyncIterator[RowSource]:
        """The spine's columns, then the view's features as of each row's event time; gone when the block ends.

        Raises NotFound, InvalidValue with every fault of the spine, OutOfRange, TransformMismatch.
        """
        plan = await self._registry.plan(view)
        limit = await self._watermarks.resolve(commit, as_of_time)
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(spine, SpineQuery):
                spine = await stack.enter_async_context(self._spines.rows(spine, plan.view, limit))
            checked = await in_thread_unless(_is_small(spine), check_spine, spine, plan.view, labelled=False)
            yield await stack.enter_async_context(self._join.join(plan, checked, limit, known_by=known_by))


def _is_small(rows: RowSource) -> bool:
    return isinstance(rows, TableRows) and is_small(rows.table)
