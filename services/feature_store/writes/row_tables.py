"""Rows that somebody wants to write: checked wholly, batch by batch, before anybody sees one of them."""

from __future__ import annotations

from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from foresight.tables import arrow_type
from foresight.values import (
    DataType,
    FeatureGroup,
    Field,
    InvalidValue,
    Violation,
    instant_from_micros,
    micros_from_instant,
)
from services.feature_store.tables.conformance import UTC_MICROS, Unfit, conform, one_array
from services.runtime.errors import OutOfRange

# Schedules and forecasts lie in the future; beyond this it is a mistake of units.
FUTURE_MAX = timedelta(days=366)
EVENT_TIME = Field("event_time", DataType.TIMESTAMP)
KNOWN_AT = Field("known_at", DataType.TIMESTAMP)
DELETED = Field("deleted", DataType.BOOL)


class Faults:
    """All faults of rows, raised together; those that are found batch by batch are counted."""

    def __init__(self) -> None:
        # Rows by field, problem and advice, in the order in which they were found; 0: of the whole.
        self._found: dict[tuple[str, str, str], int] = {}
        # How often one was added.
        self.count = 0

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, field: str, problem: str, rows: int = 0, advice: str = "") -> None:
        """Takes a fault; `rows` more rows have it."""
        self.count += 1
        fault = field, problem, advice
        self._found[fault] = self._found.get(fault, 0) + rows

    def conform(self, column: pa.ChunkedArray | pa.Array, field: Field, *, nulls: bool) -> pa.Array:
        """The column with the field's type, or as it is when it does not fit."""
        where = f"arrow.{field.name}"
        try:
            array = conform(column, field)
        except Unfit as unfit:
            self.add(where, unfit.problem, unfit.rows, unfit.advice)
            return one_array(column)
        if array.null_count and not nulls:
            self.add(where, "is NULL", array.null_count)
        return array

    def raise_any(self) -> None:
        """Raises InvalidValue with all faults, if there are any."""
        if self._found:
            first, *more = (_violation(fault, rows) for fault, rows in self._found.items())
            raise InvalidValue(first.field, first.description, *more)


class RowCheck:
    """Checks the rows of one write: keys, `event_time`, features, and `known_at` and `deleted` where given.

    A NULL in `known_at` is the commit's time, one in `deleted` is false. What is wrong with rows is gathered, and
    raised by `finish`.
    """

    def __init__(self, group: FeatureGroup, schema: pa.Schema, now: datetime) -> None:
        self._faults = Faults()
        self._now_us = micros_from_instant(now)
        self._future_us = micros_from_instant(now + FUTURE_MAX)
        self._too_late = 0
        self._latest_us: int | None = None
        known = {f.name: f for f in (*group.entity_keys, EVENT_TIME, *group.features, KNOWN_AT, DELETED)}
        for name in schema.names:
            if name not in known:
                self._faults.add(f"arrow.{name[:63]}", "is not a column of the group")
        self._required = (*(f.name for f in group.entity_keys), EVENT_TIME.name)
        self.fields = [field for name, field in known.items() if name in schema.names]
        missing = [name for name in self._required if name not in schema.names]
        for name in missing:
            self._faults.add(f"arrow.{name}", "is missing")
        self._whole = not missing
        self._columns = {name: index for index, name in enumerate(schema.names)}
        self.schema = pa.schema([(field.name, arrow_type(field)) for field in self.fields])

    @property
    def failed(self) -> bool:
        """Whether something is wrong so far."""
        return bool(self._faults) or self._too_late > 0

    @property
    def latest_event_time(self) -> datetime | None:
        """The latest event time so far."""
        return None if self._latest_us is None else instant_from_micros(self._latest_us)

    def checked(self, batch: pa.RecordBatch) -> pa.RecordBatch | None:
        """The rows with exact types; None when something is wrong with a column."""
        before = self._faults.count
        columns = {
            field.name: self._faults.conform(
                batch.column(self._columns[field.name]), field, nulls=field.name not in self._required
            )
            for field in self.fields
        }
        if self._faults.count > before or not self._whole:
            return None
        self._check_times(columns)
        return self._rows(columns)

    def typed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of a batch that was checked before, with exact types."""
        return self._rows({f.name: conform(batch.column(self._columns[f.name]), f) for f in self.fields})

    def column(self, batch: pa.RecordBatch, field: Field) -> pa.Array:
        """One column of a batch, with its exact type. Raises Unfit."""
        return conform(batch.column(self._columns[field.name]), field)

    def add(self, field: str, problem: str) -> None:
        """Takes a fault that shows in the rows as a whole."""
        self._faults.add(field, problem)

    def finish(self) -> None:
        """Raises InvalidValue with every fault found, OutOfRange for event times too far in the future."""
        self._faults.raise_any()
        if self._too_late and self._latest_us is not None:
            latest = instant_from_micros(self._latest_us).isoformat()
            raise OutOfRange(
                f"the event time {latest} is more than {FUTURE_MAX.days} days in the future, "
                f"as {self._too_late} of the event times are"
            )

    def _rows(self, columns: dict[str, pa.Array]) -> pa.RecordBatch:
        if "deleted" in columns:
            columns["deleted"] = columns["deleted"].fill_null(False)
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=self.schema)

    def _check_times(self, columns: dict[str, pa.Array]) -> None:
        times = columns["event_time"].cast(pa.int64())
        latest = pc.max(times).as_py()
        if latest is not None and (self._latest_us is None or latest > self._latest_us):
            self._latest_us = latest
        if latest is not None and latest > self._future_us:
            self._too_late += pc.sum(pc.greater(times, self._future_us)).as_py()
        if "known_at" in columns:
            late = pc.greater(columns["known_at"], pa.scalar(self._now_us, UTC_MICROS))
            if pc.any(late, min_count=0).as_py():
                self._faults.add("arrow.known_at", "is in the future", pc.sum(late).as_py())


def _violation(fault: tuple[str, str, str], rows: int) -> Violation:
    field, problem, advice = fault
    counted = f"{problem} in {rows} rows" if rows > 1 else f"{problem} in 1 row" if rows else problem
    return Violation(field, f"{counted}; {advice}" if advice else counted)
