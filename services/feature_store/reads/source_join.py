"""One source of a view: which of its rows can matter to a spine, and the values of those that were chosen."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foresight.tables import arrow_type, column_to_arrow
from foresight.values import Column, Field
from foresight.values.instants import EPOCH
from services.feature_store.reads.asof import AsOfHistory
from services.feature_store.reads.histories import EventTimes
from services.feature_store.registry.view_plan import SourcePlan
from services.feature_store.tables.conformance import one_array

# About what a text takes.
_TEXT_BYTES = 32


def reach(source: SourcePlan, earliest: int, latest: int) -> EventTimes:
    """The event times that rows of a source can have to matter to a spine between two times, in microseconds.

    A row older than the earliest time by more than max_age is too old for every spine row; choosing it or choosing
    none is the same: missing. No row after the latest time is ever seen.
    """
    first = None if source.max_age_us is None else _instant(earliest - source.max_age_us)
    return EventTimes(first, _instant(latest), inclusive=True)


def candidates(source: SourcePlan, history: pa.Table) -> AsOfHistory:
    """The rows of a source to choose from."""
    return AsOfHistory(
        keys=tuple(one_array(history[key.name]) for key in source.group.group.entity_keys),
        times=np.asarray(one_array(history["event_time"]).cast(pa.int64())),
        commits=np.asarray(one_array(history["commit"])),
        known_at=np.asarray(one_array(history["known_at"]).cast(pa.int64())),
    )


def values(
    source: SourcePlan,
    times: NDArray[np.int64],
    history: pa.Table,
    rows: AsOfHistory,
    chosen: NDArray[np.int64],
) -> dict[str, pa.Array]:
    """The source's features, one value per spine row; a tombstone or a row that is too old gives none.

    `times` are those of the spine; `chosen` are positions in `history`, -1 for none; `rows` are its candidates.
    """
    found = np.flatnonzero(chosen >= 0)
    taken = chosen[found]
    gone = np.asarray(one_array(history["deleted"]))[taken]
    if source.max_age_us is not None:
        gone = gone | (times[found] - rows.times[taken] > source.max_age_us)
    index = np.full(len(chosen), -1, np.int64)
    index[found[~gone]] = taken[~gone]
    positions = pa.array(index, mask=index < 0)
    made = {}
    for name, field, default in zip(source.names_in_group, source.fields, source.defaults, strict=True):
        made[field.name] = _filled(one_array(history[name]).take(positions), field, default)
    return made


def feature_schema(source: SourcePlan) -> pa.Schema:
    """What a source adds to a spine."""
    return pa.schema([(field.name, arrow_type(field)) for field in source.fields])


def row_bytes(schema: pa.Schema) -> int:
    """About how many bytes a row takes in memory."""
    return sum(_value_bytes(field.type) for field in schema)


def _value_bytes(type: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(type):
        return int(type.list_size) * _value_bytes(type.value_type)
    try:
        return -(-int(type.bit_width) // 8)
    except ValueError:
        return _TEXT_BYTES


def _instant(micros: int) -> datetime | None:
    """The instant, or None when it lies before the first year and so bounds nothing."""
    try:
        return EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        return None


def _filled(found: pa.Array, field: Field, default: Column | None) -> pa.Array:
    """The values with the view's type, and its default where there is none."""
    type = arrow_type(field)
    found = found if found.type == type else found.cast(type)
    if default is None or not found.null_count:
        return found
    scalar = column_to_arrow(default)[0]
    if pa.types.is_fixed_size_list(type):
        index = np.where(np.asarray(found.is_valid()), np.arange(len(found)), len(found))
        return pa.concat_arrays([found, pa.array([scalar.as_py()], type)]).take(pa.array(index))
    return pc.fill_null(found, scalar)
