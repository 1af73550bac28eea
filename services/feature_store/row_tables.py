"""Tables of rows that somebody wants to write: checked wholly, before anything of them is stored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from foresight.values import DataType, FeatureGroup, Field, InvalidValue, Violation
from services.feature_store.conformance import Unfit, conform, one_array
from services.feature_store.expansion import expanded_bytes
from services.runtime.errors import LimitExceeded, OutOfRange

ROWS_MAX = 5_000_000
TABLE_BYTES_MAX = 1 << 30
# Schedules and forecasts lie in the future; beyond this it is a mistake of units.
FUTURE_MAX = timedelta(days=366)
EVENT_TIME = Field("event_time", DataType.TIMESTAMP)
KNOWN_AT = Field("known_at", DataType.TIMESTAMP)
DELETED = Field("deleted", DataType.BOOL)
# Hash aggregation in threads pays from here on.
_THREADED_ROWS = 100_000
# Up to so many a Python set is faster than starting an aggregation.
_FEW_ROWS = 1_000


def check_size(table: pa.Table) -> None:
    """Raises LimitExceeded for a table with more rows or bytes than one call may bring."""
    if table.num_rows > ROWS_MAX:
        raise LimitExceeded(f"the table has {table.num_rows} rows, more than {ROWS_MAX}", limit="rows")
    if expanded_bytes(table) > TABLE_BYTES_MAX:
        raise LimitExceeded(f"the table has more than {TABLE_BYTES_MAX} bytes", limit="bytes")


def check_rows(table: pa.Table, group: FeatureGroup, now: datetime) -> pa.Table:
    """The rows with exact types: keys, `event_time`, features, and `known_at` and `deleted` where given.

    A NULL in `known_at` is the commit's time, one in `deleted` is false.
    Raises InvalidValue with every fault found, OutOfRange for event times too far in the future, LimitExceeded.
    """
    check_size(table)
    faults = Faults()
    if table.num_rows == 0:
        faults.add("arrow", "has no rows")
    known = {f.name: f for f in (*group.entity_keys, EVENT_TIME, *group.features, KNOWN_AT, DELETED)}
    for name in table.column_names:
        if name not in known:
            faults.add(f"arrow.{name[:63]}", "is not a column of the group")
    columns: dict[str, pa.Array] = {}
    required = {f.name for f in (*group.entity_keys, EVENT_TIME)}
    for name, field in known.items():
        if name in table.column_names:
            columns[name] = faults.conform(table.column(name), field, nulls=name not in required)
        elif name in required:
            faults.add(f"arrow.{name}", "is missing")
    faults.raise_any()
    _check_known_at(columns, now, faults)
    _check_unique(columns, [*(f.name for f in group.entity_keys), "event_time"], faults)
    faults.raise_any()
    latest = pc.max(columns["event_time"]).as_py()
    if latest > now + FUTURE_MAX:
        raise OutOfRange(f"the event time {latest.isoformat()} is more than {FUTURE_MAX.days} days in the future")
    if "deleted" in columns:
        columns["deleted"] = columns["deleted"].fill_null(False)
    return pa.table(columns)


class Faults:
    """All faults of a table, raised together."""

    def __init__(self) -> None:
        self._found: list[Violation] = []

    def add(self, field: str, description: str) -> None:
        self._found.append(Violation(field, description))

    def conform(self, column: pa.ChunkedArray, field: Field, *, nulls: bool) -> pa.Array:
        """The column with the field's type, or as it is when it does not fit."""
        where = f"arrow.{field.name}"
        try:
            array = conform(column, field)
        except Unfit as unfit:
            self.add(where, str(unfit))
            return one_array(column)
        if array.null_count and not nulls:
            self.add(where, f"is NULL in {array.null_count} rows")
        return array

    def raise_any(self) -> None:
        if self._found:
            first, *more = self._found
            raise InvalidValue(first.field, first.description, *more)


def _check_known_at(columns: dict[str, pa.Array], now: datetime, faults: Faults) -> None:
    if "known_at" in columns:
        latest = pc.max(columns["known_at"]).as_py()
        if latest is not None and latest > now:
            faults.add("arrow.known_at", f"has {latest.isoformat()}, which is in the future")


def _check_unique(columns: dict[str, pa.Array], names: Sequence[str], faults: Faults) -> None:
    """One write says one thing about a key at a time; even equal rows are refused, as dropping one would be silent."""
    if len(columns["event_time"]) <= _FEW_ROWS and _few_are_unique([columns[name] for name in names]):
        return
    keys = pa.table({name: columns[name] for name in names})
    threads = keys.num_rows >= _THREADED_ROWS
    counts = keys.group_by(list(names), use_threads=threads).aggregate([([], "count_all")])
    if counts.num_rows == keys.num_rows:
        return
    repeated = counts.filter(pc.greater(counts["count_all"], 1))
    sample = {name: repeated[name][0].as_py() for name in names}
    sample["event_time"] = sample["event_time"].isoformat()
    named = ", ".join(f"{name} {ascii(value)[:60]}" for name, value in sample.items())
    faults.add("arrow", f"has {repeated.num_rows} keys and event times more than once, such as {named}")


def _few_are_unique(columns: Sequence[pa.Array]) -> bool:
    plain = [(c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c).to_pylist() for c in columns]
    return len(set(zip(*plain, strict=True))) == len(plain[0])
