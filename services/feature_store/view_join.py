"""Joining a spine with a view: one output row per spine row, in order, whatever the duplicates."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from numpy.typing import NDArray

from foresight.tables import arrow_type, column_from_arrow, column_to_arrow
from foresight.transforms import TransformSet, Untrusted
from foresight.values import Column, FeatureView, Field
from foresight.values.instants import EPOCH
from services.feature_store.asof import INLINE_ROWS_MAX, AsOfEngine, AsOfHistory, AsOfSide
from services.feature_store.conformance import one_array
from services.feature_store.histories import EventTimes, Histories
from services.feature_store.row_source import RowSource, TableRows, read_all
from services.feature_store.spine import Spine
from services.feature_store.view_plan import SourcePlan, ViewPlan
from services.runtime.errors import FailedPrecondition, TransformMismatch
from services.runtime.threads import in_thread, in_thread_unless

log = structlog.get_logger()


class ViewJoin:
    """Joins spines with views."""

    def __init__(self, histories: Histories, engine: AsOfEngine, transforms: TransformSet) -> None:
        self._histories = histories
        self._engine = engine
        self._transforms = transforms

    @contextlib.asynccontextmanager
    async def join(self, plan: ViewPlan, spine: Spine, watermark: int, *, known_by: bool) -> AsyncIterator[RowSource]:
        """The spine with the features of a view as of each row's event time, from commits up to `watermark`.

        One output row per spine row, in the spine's order: the spine's own columns in theirs, without request features
        and label; all features in the view's order; the label, if the spine has it. Files behind the rows are gone
        when the block ends. Raises TransformMismatch when a transform cannot run here, FailedPrecondition when it
        fails.
        """
        table = read_all(spine.rows)
        times = np.asarray(one_array(table["event_time"]).cast(pa.int64()))
        features: dict[str, pa.Array] = {}
        for source in plan.sources:
            history = await self._histories.history(
                source.group, source.names_in_group, watermark, reach(source, times)
            )
            keys = tuple(one_array(table[plan.view.entity_keys[i].name]) for i in source.key_positions)
            small = history.num_rows + len(times) <= INLINE_ROWS_MAX
            candidates = await in_thread_unless(small, _candidates, source, history)
            chosen = await self._engine.choose(
                AsOfSide(keys, times), candidates, strict=source.strict, known_by=known_by
            )
            features |= await in_thread_unless(small, _values, source, times, history, candidates, chosen)
        for field in plan.view.request_features:
            features[field.name] = one_array(table[field.name])
        if plan.view.transforms:
            features |= await in_thread(self._transform, plan.view, table, features)
        label = plan.view.label.name
        columns = {name: table[name] for name in table.column_names if name not in features and name != label}
        columns |= {f.name: features[f.name] for f in plan.view.features}
        if label in table.column_names:
            columns[label] = table[label]
        yield TableRows(pa.table(columns))

    def _transform(self, view: FeatureView, table: pa.Table, features: dict[str, pa.Array]) -> dict[str, pa.Array]:
        """The outputs of the view's transforms."""
        outputs = {transform.output.name for transform in view.transforms}
        wanted = {name for transform in view.transforms for name in transform.inputs} - outputs
        fields = {f.name: f for f in (*view.entity_keys, *view.features)}
        inputs: dict[str, Column] = {
            name: column_from_arrow(features[name] if name in features else one_array(table[name]), fields[name])
            for name in wanted
        }
        try:
            columns = self._transforms.apply(view.transforms, inputs)
        except Untrusted as error:
            raise TransformMismatch(str(error), view=view.name) from None
        except Exception as error:  # The function is the user's own and may raise anything, with anything in it.
            log.warning("transform_failed", view=view.name, exc_info=error)
            raise FailedPrecondition(
                f"a transform of {view.name} failed; the feature store's log has the details", view=view.name
            ) from error
        return {column.name: column_to_arrow(column) for column in columns}


def _candidates(source: SourcePlan, history: pa.Table) -> AsOfHistory:
    """The rows of a source to choose from."""
    return AsOfHistory(
        keys=tuple(one_array(history[key.name]) for key in source.group.group.entity_keys),
        times=np.asarray(one_array(history["event_time"]).cast(pa.int64())),
        commits=np.asarray(one_array(history["commit"])),
        known_at=np.asarray(one_array(history["known_at"]).cast(pa.int64())),
    )


def _values(
    source: SourcePlan,
    times: NDArray[np.int64],
    history: pa.Table,
    candidates: AsOfHistory,
    chosen: NDArray[np.int64],
) -> dict[str, pa.Array]:
    """The source's features, one value per spine row; a tombstone or a row that is too old gives none."""
    found = np.flatnonzero(chosen >= 0)
    rows = chosen[found]
    gone = one_array(history["deleted"]).to_numpy(zero_copy_only=False)[rows]
    if source.max_age_us is not None:
        gone = gone | (times[found] - candidates.times[rows] > source.max_age_us)
    chosen = chosen.copy()
    chosen[found[gone]] = -1
    index = pa.array(chosen, mask=chosen < 0)
    return {
        field.name: _filled(one_array(history[name]).take(index), field, default)
        for name, field, default in zip(source.names_in_group, source.fields, source.defaults, strict=True)
    }


def reach(source: SourcePlan, times: NDArray[np.int64]) -> EventTimes:
    """The event times that rows of a source can have to matter to a spine with these times.

    A row older than the earliest time by more than max_age is too old for every spine row; choosing it or choosing
    none is the same: missing. No row after the latest time is ever seen.
    """
    if not len(times):
        return EventTimes(EPOCH, EPOCH)
    first = None
    if source.max_age_us is not None:
        first = _instant(int(times.min()) - source.max_age_us)
    return EventTimes(first, _instant(int(times.max())), inclusive=True)


def _instant(micros: int) -> datetime | None:
    """The instant, or None when it lies before the first year and so bounds nothing."""
    try:
        return EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        return None


def _filled(values: pa.Array, field: Field, default: Column | None) -> pa.Array:
    """The values with the view's type, and its default where there is none."""
    type = arrow_type(field)
    values = values if values.type == type else values.cast(type)
    if default is None or not values.null_count:
        return values
    scalar = column_to_arrow(default)[0]
    if pa.types.is_fixed_size_list(type):
        index = np.where(np.asarray(values.is_valid()), np.arange(len(values)), len(values))
        return pa.concat_arrays([values, pa.array([scalar.as_py()], type)]).take(pa.array(index))
    return pc.fill_null(values, scalar)
