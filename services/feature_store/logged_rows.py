"""Logged feature vectors with their outcomes, out of the groups that reingestion fills."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foresight.tables import arrow_type
from foresight.values import FeatureView, micros_from_instant
from services.feature_store.asof import AsOfEngine, AsOfHistory, AsOfSide
from services.feature_store.conformance import one_array
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.histories import EventTimes, Histories
from services.feature_store.log_groups import OUTCOMES, PREDICTION_ID, PREDICTIONS, group_name
from services.feature_store.manifests import LoggedSelection
from services.feature_store.registry import Registry
from services.feature_store.row_source import RowSource, TableRows
from services.runtime.errors import FailedPrecondition, NotFound
from services.runtime.threads import in_thread


class LoggedRows:
    """Selects logged predictions whose outcome was known by a time."""

    def __init__(self, registry: Registry, histories: Histories, engine: AsOfEngine) -> None:
        self._registry = registry
        self._histories = histories
        self._engine = engine

    @contextlib.asynccontextmanager
    async def select(self, view: FeatureView, selection: LoggedSelection, watermark: int) -> AsyncIterator[RowSource]:
        """`prediction_id`, entity keys, `event_time`, features and label, by (event_time, prediction_id).

        The label is the latest outcome (by observed_at, then commit) observed by `observed_by`; a prediction without
        one is left out. Raises FailedPrecondition when nothing of the view version was reingested yet.
        """
        predictions = await self._group(view, PREDICTIONS)
        names = [f.name for f in (*view.entity_keys, *view.features)]
        known = {f.name for f in predictions.group.features}
        times = EventTimes(selection.from_event_time, selection.to_event_time)
        wanted = ["log_deployment", *(name for name in names if name in known)]
        logged = await self._histories.history(predictions, wanted, watermark, times)
        if selection.deployment:
            logged = logged.filter(pc.equal(logged["log_deployment"], selection.deployment))
        outcomes = await self._group(view, OUTCOMES)
        until = EventTimes(None, selection.observed_by, inclusive=True)
        observed = await self._histories.history(outcomes, [view.label.name], watermark, until)
        logged = logged.combine_chunks()
        # The latest outcome per prediction as of `observed_by` is an as-of join like any other.
        at = np.full(logged.num_rows, micros_from_instant(selection.observed_by), np.int64)
        chosen = await self._engine.choose(
            AsOfSide((one_array(logged[PREDICTION_ID]),), at),
            AsOfHistory(
                keys=(one_array(observed[PREDICTION_ID]),),
                times=np.asarray(one_array(observed["event_time"]).cast(pa.int64())),
                commits=np.asarray(one_array(observed["commit"])),
                known_at=np.asarray(one_array(observed["known_at"]).cast(pa.int64())),
            ),
            strict=False,
            known_by=False,
        )
        labels = one_array(observed[view.label.name]).take(pa.array(chosen, mask=chosen < 0))
        yield TableRows(pa.table(await in_thread(_labelled, view, logged, labels)))

    async def _group(self, view: FeatureView, kind: str) -> StoredGroup:
        try:
            return await self._registry.group(Reference(group_name(kind, view.name, view.version)))
        except NotFound:
            raise FailedPrecondition(
                f"no {'predictions' if kind == PREDICTIONS else 'outcomes'} of {view.name} version {view.version} "
                "were reingested yet"
            ) from None


def _labelled(view: FeatureView, logged: pa.Table, labels: pa.Array) -> dict[str, pa.Array]:
    """The rows that have a label, by event time and id."""
    ids = one_array(logged[PREDICTION_ID])
    kept = pa.array(np.flatnonzero(np.asarray(labels.is_valid())))
    order = pc.sort_indices(
        pa.table({"event_time": logged["event_time"].take(kept), "id": ids.take(kept)}),
        sort_keys=[("event_time", "ascending"), ("id", "ascending")],
    )
    rows = kept.take(order)
    columns = {PREDICTION_ID: ids.take(rows)}
    for field in view.entity_keys:
        columns[field.name] = _typed(logged, field.name, arrow_type(field), rows)
    columns["event_time"] = one_array(logged["event_time"]).take(rows)
    for field in view.features:
        columns[field.name] = _typed(logged, field.name, arrow_type(field), rows)
    columns[view.label.name] = labels.take(rows)
    return columns


def _typed(table: pa.Table, name: str, type: pa.DataType, rows: pa.Array) -> pa.Array:
    """The rows of a column, or NULLs for one that no logged prediction had."""
    if name not in table.column_names:
        return pa.nulls(len(rows), type)
    values = one_array(table[name]).take(rows)
    return values if values.type == type else values.cast(type)
