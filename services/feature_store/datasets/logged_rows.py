"""Logged feature vectors with their outcomes, out of the groups that reingestion fills."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from foresight.values import FeatureView, Field
from services.feature_store.datasets.manifests import LoggedSelection
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.logs.log_groups import OUTCOMES, PREDICTIONS, group_name
from services.feature_store.reads.histories import BatchStream
from services.feature_store.registry.registry import Registry
from services.feature_store.tables.row_source import RowSource
from services.feature_store.tables.spill import SpillFolder, gathered
from services.feature_store.writes.row_tables import EVENT_TIME
from services.runtime.errors import FailedPrecondition, NotFound


class LabelledStreams(Protocol):
    """Streams logged predictions with what became of them."""

    def labelled(
        self,
        predictions: StoredGroup,
        outcomes: StoredGroup,
        fields: Sequence[Field],
        label: Field,
        selection: LoggedSelection,
        watermark: int,
    ) -> contextlib.AbstractAsyncContextManager[BatchStream]:
        """Rows of `predictions` that have an outcome, with the columns `fields` and then `label`, by event time and
        prediction id."""
        ...


class LoggedRows:
    """Selects logged predictions whose outcome was known by a time."""

    def __init__(self, registry: Registry, streams: LabelledStreams, spills: SpillFolder) -> None:
        self._registry = registry
        self._streams = streams
        self._spills = spills

    @contextlib.asynccontextmanager
    async def select(self, view: FeatureView, selection: LoggedSelection, watermark: int) -> AsyncIterator[RowSource]:
        """`prediction_id`, entity keys, `event_time`, features and label, by (event_time, prediction_id).

        The label is the latest outcome (by observed_at, then commit) observed by `observed_by`; a prediction without
        one is left out. A feature that no logged prediction had is NULL. The rows are gone when the block ends. Raises
        FailedPrecondition when nothing of the view version was reingested yet.
        """
        predictions = await self._group(view, PREDICTIONS)
        outcomes = await self._group(view, OUTCOMES)
        identity = predictions.group.entity_keys[0]
        fields = [identity, *view.entity_keys, EVENT_TIME, *view.features]
        stream = self._streams.labelled(predictions, outcomes, fields, view.label, selection, watermark)
        async with self._spills.open() as spill:
            async with stream as batches:
                rows = await gathered(batches, spill)
            yield rows

    async def _group(self, view: FeatureView, kind: str) -> StoredGroup:
        try:
            return await self._registry.group(Reference(group_name(kind, view.name, view.version)))
        except NotFound:
            raise FailedPrecondition(
                f"no {'predictions' if kind == PREDICTIONS else 'outcomes'} of {view.name} version {view.version} "
                "were reingested yet"
            ) from None
