"""Expectations of a group, checked on rows that are being written.

NULL keeps every rule but `NotNull`. A tombstone says that there are no values, so it keeps all of them. A feature that
a write leaves out has its default in every row, or NULL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foresight.tables import arrow_type, column_to_arrow
from foresight.values import (
    Expectation,
    ExpectationsBroken,
    FeatureGroup,
    Field,
    Fresh,
    NotNull,
    OneOf,
    Range,
    Unique,
    Violation,
)
from foresight.values.errors import quoted
from services.feature_store.commits import BrokenExpectation
from services.feature_store.tables.conformance import INT64_MAX, UTC_MICROS
from services.feature_store.tables.repeats import SharedValues, shared_values
from services.feature_store.tables.workspace import Workspace

SAMPLES_MAX = 3
# Of a value in a sample, and of an answer that names samples.
_VALUE_CHARS = 32
_ANSWER_BYTES = 190
Mask: TypeAlias = NDArray[np.bool_]
# The pieces of a column of all rows, from the first.
Pieces: TypeAlias = Callable[[Field], Iterator[pa.RecordBatch]]


class ExpectationCheck:
    """Checks the rows of one write against the expectations of their group, batch by batch."""

    def __init__(self, group: FeatureGroup, now: datetime, pieces: Pieces, workspace: Workspace) -> None:
        """`pieces` gives one column, and `deleted` where it was sent, of all rows; only `Unique` asks for it."""
        self._group = group
        self._fields = {field.name: field for field in group.fields}
        self._rules = [_Counted(expectation) for expectation in group.expectations]
        self._now = now
        self._pieces = pieces
        self._workspace = workspace
        self._shared: dict[str, SharedValues] = {}
        self._rows = 0

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the expectations that all rows kept so far."""
        return tuple(rule.expectation.name for rule in self._rules if not rule.rows)

    @property
    def broken(self) -> tuple[BrokenExpectation, ...]:
        """Those that rows broke so far."""
        broken = [rule for rule in self._rules if rule.rows]
        return tuple(BrokenExpectation(b.expectation.name, b.rows, tuple(b.samples)) for b in broken)

    def check(self, batch: pa.RecordBatch) -> list[Mask] | None:
        """For each expectation which rows break it; None when none does."""
        self._rows += batch.num_rows
        alive = None
        if "deleted" in batch.schema.names and pc.any(batch.column("deleted"), min_count=0).as_py():
            alive = ~np.asarray(batch.column("deleted"))
        masks, any_broken = [], False
        for rule in self._rules:
            mask = self._breaking(rule.expectation, batch)
            if alive is not None:
                mask = mask & alive
            if mask.any():
                any_broken = True
                rule.count(mask, batch, self._group)
            masks.append(mask)
        return masks if any_broken else None

    def refuse(self) -> None:
        """Raises ExpectationsBroken when a row broke an expectation."""
        found = [_violation(rule, self._rows) for rule in self._rules if rule.rows]
        if found:
            raise ExpectationsBroken(found[0].field, found[0].description, *found[1:])

    def names_of(self, masks: list[Mask]) -> pa.Array:
        """For each row that breaks an expectation the names of those that it breaks, a list of texts."""
        rows, rules = np.nonzero(np.stack(masks, axis=1))
        _, counts = np.unique(rows, return_counts=True)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        names = pa.array([rule.expectation.name for rule in self._rules], pa.string())
        return pa.ListArray.from_arrays(pa.array(offsets), names.take(pa.array(rules)))

    def _breaking(self, expectation: Expectation, batch: pa.RecordBatch) -> Mask:
        rule = expectation.rule
        if isinstance(rule, Fresh):
            oldest = pa.scalar(self._now - rule.max_age, UTC_MICROS)
            return np.asarray(pc.less(batch.column("event_time"), oldest))
        field = self._fields[expectation.column]
        column = self._column(batch, field)
        match rule:
            case NotNull():
                return np.asarray(column.is_null())
            case Range():
                return _flags(_outside(column, rule))
            case OneOf():
                among = pc.is_in(column, value_set=column_to_arrow(rule.values))
                return _flags(pc.and_not(column.is_valid(), among))
            case Unique():
                return self._shared_values(field).among(column)

    def _column(self, batch: pa.RecordBatch, field: Field) -> pa.Array:
        if field.name in batch.schema.names:
            return batch.column(field.name)
        return left_out(self._group, field, batch.num_rows)

    def _shared_values(self, field: Field) -> SharedValues:
        """Found when the first rows are checked, in a pass over the column of all of them."""
        if field.name not in self._shared:
            self._shared[field.name] = shared_values(lambda: self._living(field), self._workspace)
        return self._shared[field.name]

    def _living(self, field: Field) -> Iterator[pa.Array]:
        for piece in self._pieces(field):
            column = self._column(piece, field)
            if "deleted" in piece.schema.names:
                column = column.filter(pc.invert(piece.column("deleted")))
            yield column


class _Counted:
    """An expectation, how many rows broke it, and some of them."""

    def __init__(self, expectation: Expectation) -> None:
        self.expectation = expectation
        self.rows = 0
        self.samples: list[str] = []

    def count(self, mask: Mask, batch: pa.RecordBatch, group: FeatureGroup) -> None:
        self.rows += int(mask.sum())
        for row in np.flatnonzero(mask)[: SAMPLES_MAX - len(self.samples)]:
            self.samples.append(_sample(batch, int(row), self.expectation, group))


def left_out(group: FeatureGroup, field: Field, rows: int) -> pa.Array:
    """What the rows of a write have that leaves a feature out: its default, or NULL."""
    default = group.defaults.get(field.name)
    if default is None:
        return pa.nulls(rows, arrow_type(field))
    return pa.repeat(column_to_arrow(default)[0], rows)


def _flags(flags: pa.Array) -> Mask:
    return np.asarray(flags.fill_null(False))


def _outside(column: pa.Array, rule: Range) -> pa.Array:
    """Rows outside of a range; integers are compared as integers, as floats lose digits beyond 2^53."""
    low: float | None = rule.min
    high: float | None = rule.max
    if pa.types.is_integer(column.type):
        low = None if low is None else math.ceil(low)
        high = None if high is None else math.floor(high)
        if (low is not None and low > INT64_MAX) or (high is not None and high < -INT64_MAX - 1):
            return column.is_valid()
        low = None if low is None or low < -INT64_MAX - 1 else low
        high = None if high is None or high > INT64_MAX else high
    below = pa.repeat(False, len(column)) if low is None else pc.less(column, pa.scalar(low, column.type))
    return below if high is None else pc.or_kleene(below, pc.greater(column, pa.scalar(high, column.type)))


def _sample(batch: pa.RecordBatch, row: int, expectation: Expectation, group: FeatureGroup) -> str:
    names = [key.name for key in group.entity_keys] + ["event_time"]
    if expectation.column and expectation.column not in names:
        names.append(expectation.column)
    there: Mapping[str, Any] = {
        name: batch.column(name)[row].as_py() if name in batch.schema.names else _default(group, name) for name in names
    }
    return ", ".join(f"{name} {_shown(value)}" for name, value in there.items())


def _default(group: FeatureGroup, name: str) -> Any:
    return group.defaults[name].to_list()[0] if name in group.defaults else None


def _shown(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return quoted(value, _VALUE_CHARS)


def _violation(rule: _Counted, rows: int) -> Violation:
    """With as many samples as an answer has room for, at least one."""
    expectation = rule.expectation
    text = f"breaks {expectation.name} in {rule.rows} of {rows} rows, such as {rule.samples[0]}"
    for sample in rule.samples[1:]:
        if len(text) + len(sample) + 2 > _ANSWER_BYTES:
            break
        text += f"; {sample}"
    return Violation(f"arrow.{expectation.column or 'event_time'}", text)
