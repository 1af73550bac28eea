"""Spines made of rows of a group, such as scoring data: the latest row per key, or the rows of a time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from foresight.values import FeatureView
from services.feature_store.groups import StoredGroup
from services.feature_store.reads.histories import BatchStream
from services.feature_store.reads.queries import SpineQuery
from services.feature_store.registry.registry import Registry
from services.feature_store.tables.row_source import RowSource
from services.feature_store.tables.spill import SpillFolder, gathered


class SpineStreams(Protocol):
    """Streams rows of groups as spines."""

    def spine(
        self, stored: StoredGroup, query: SpineQuery, columns: Sequence[tuple[str, str]], watermark: int
    ) -> contextlib.AbstractAsyncContextManager[BatchStream]:
        """The rows of a query with `columns`, as (column of the group, name), in the order of keys and event time."""
        ...


class SpineQueries:
    """Makes spines of queries."""

    def __init__(self, registry: Registry, streams: SpineStreams, spills: SpillFolder) -> None:
        self._registry = registry
        self._streams = streams
        self._spills = spills

    async def pinned(self, query: SpineQuery) -> SpineQuery:
        """The query of the exact version of its group. Raises NotFound, and InvalidValue when it does not fit it."""
        stored = await self._registry.group(query.query.group)
        query.query.check_fits(stored.group)
        query.spine_columns(stored.group, ())
        return query.pinned(stored.group.version)

    @contextlib.asynccontextmanager
    async def rows(self, query: SpineQuery, view: FeatureView, watermark: int) -> AsyncIterator[RowSource]:
        """The spine that a query makes for a view, from commits up to `watermark`; gone when the block ends.

        Columns: the group's keys and `event_time`, then request features and label of the view that the group has, and
        what the query maps. Ordered by key and event time. Raises NotFound, and InvalidValue when the query does not
        fit the group.
        """
        stored = await self._registry.group(query.query.group)
        query.query.check_fits(stored.group)
        wanted = [*(f.name for f in view.request_features), view.label.name, *(f.name for f in view.entity_keys)]
        columns = query.spine_columns(stored.group, wanted)
        async with self._spills.open() as spill:
            async with self._streams.spine(stored, query, columns, watermark) as stream:
                rows = await gathered(stream, spill)
            yield rows
