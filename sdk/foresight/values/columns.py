"""Typed columns: the values of one field for n rows, as NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foresight.values.errors import InvalidValue, quoted
from foresight.values.fields import DataType, Field
from foresight.values.instants import MICROS_MAX, MICROS_MIN, instant_from_micros, micros_from_instant
from foresight.values.names import STRING_BYTES_MAX, check_text

_DTYPES: dict[DataType, Any] = {
    DataType.INT64: np.int64,
    DataType.FLOAT64: np.float64,
    DataType.BOOL: np.bool_,
    DataType.STRING: np.object_,
    DataType.TIMESTAMP: np.int64,
    DataType.FLOAT_VECTOR: np.float32,
}
_ZEROS: dict[DataType, Any] = {
    DataType.INT64: 0,
    DataType.FLOAT64: 0.0,
    DataType.BOOL: False,
    DataType.STRING: "",
    DataType.TIMESTAMP: 0,
}


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """Values of one field.

    `values` is (n,) int64, float64, bool or object (str); timestamps are (n,) int64 microseconds; vectors are
    (n, dimension) float32. `valid` is (n,) bool, or None when no row is NULL; NULL rows hold a zero value.
    Columns compare by identity; use `equals` for bytes.
    """

    name: str
    type: DataType
    values: NDArray[Any]
    valid: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def field(self) -> Field:
        """Name and type."""
        dimension = self.values.shape[1] if self.type is DataType.FLOAT_VECTOR else 0
        return Field(self.name, self.type, dimension)

    @classmethod
    def build(cls, name: str, type: DataType, values: Iterable[Any], dimension: int = 0) -> Column:
        """A column from Python values; None is NULL. Raises InvalidValue for a value of another type."""
        rows = list(values)
        checked = [None if v is None else _checked(v, type, name, dimension) for v in rows]
        valid = np.array([v is not None for v in checked], dtype=np.bool_)
        if type is DataType.FLOAT_VECTOR:
            array = np.zeros((len(rows), dimension), dtype=np.float32)
            for i, v in enumerate(checked):
                if v is not None:
                    array[i] = v
        else:
            array = np.empty(len(rows), dtype=_DTYPES[type])
            array[:] = [_ZEROS[type] if v is None else v for v in checked]
        return cls(name, type, array, None if valid.all() else valid)

    @classmethod
    def single(cls, name: str, value: Any) -> Column:
        """A column of one value, of the type that the value has. Raises InvalidValue for what no field can be."""
        match value:
            case bool() | np.bool_():
                type, dimension = DataType.BOOL, 0
            case int() | np.integer():
                type, dimension = DataType.INT64, 0
            case float() | np.floating():
                type, dimension = DataType.FLOAT64, 0
            case str():
                type, dimension = DataType.STRING, 0
            case datetime():
                type, dimension = DataType.TIMESTAMP, 0
            case list() | tuple() | np.ndarray():
                type, dimension = DataType.FLOAT_VECTOR, len(value)
            case _:
                raise InvalidValue(name, f"{quoted(value)} is not of a type that a field can have")
        return cls.build(name, type, [value], dimension)

    @classmethod
    def nulls(cls, field: Field, n: int) -> Column:
        """A column of n NULLs."""
        return cls.build(field.name, field.type, [None] * n, field.dimension)

    def renamed(self, name: str) -> Column:
        """The same values under another name."""
        return Column(name, self.type, self.values, self.valid)

    def take(self, rows: Sequence[int] | NDArray[Any]) -> Column:
        """The rows at these positions."""
        index = np.asarray(rows, dtype=np.intp)
        return Column(self.name, self.type, self.values[index], None if self.valid is None else self.valid[index])

    def part(self, start: int, stop: int) -> Column:
        """The rows from `start` to before `stop`, sharing their memory; `valid` is None when none of them is NULL."""
        valid = None if self.valid is None else self.valid[start:stop]
        return Column(self.name, self.type, self.values[start:stop], None if valid is None or valid.all() else valid)

    @classmethod
    def joined(cls, columns: Sequence[Column]) -> Column:
        """The rows of columns of one name, type and dimension, one after the other; there is at least one column."""
        first = columns[0]
        if len(columns) == 1:
            return first
        valid = None
        if any(c.valid is not None for c in columns):
            valid = np.concatenate([np.ones(len(c), np.bool_) if c.valid is None else c.valid for c in columns])
        return cls(first.name, first.type, np.concatenate([c.values for c in columns]), valid)

    def is_valid(self, row: int) -> bool:
        """Whether the row is not NULL."""
        return self.valid is None or bool(self.valid[row])

    def python(self, row: int) -> Any:
        """The row as a Python value: None for NULL, an aware datetime for a timestamp, a list for a vector."""
        if not self.is_valid(row):
            return None
        if self.type is DataType.FLOAT_VECTOR:
            return [float(v) for v in self.values[row]]
        if self.type is DataType.TIMESTAMP:
            return instant_from_micros(int(self.values[row]))
        value = self.values[row]
        return value if isinstance(value, str) else value.item()

    def to_list(self) -> list[Any]:
        """All rows as Python values, see `python`."""
        return [self.python(row) for row in range(len(self))]

    def equals(self, other: Column) -> bool:
        """Whether type, NULLs and the bytes of every value that is not NULL agree."""
        if self.type is not other.type or self.values.shape != other.values.shape:
            return False
        mine = np.ones(len(self), np.bool_) if self.valid is None else self.valid
        theirs = np.ones(len(self), np.bool_) if other.valid is None else other.valid
        if not np.array_equal(mine, theirs):
            return False
        if self.type is DataType.STRING:
            return list(self.values[mine]) == list(other.values[mine])
        return bool(self.values[mine].tobytes() == other.values[mine].tobytes())


def _checked(value: Any, type: DataType, name: str, dimension: int) -> Any:
    """`value` when it is of the type; ints are taken for floats when they lose no digits."""
    match type:
        case DataType.INT64:
            if isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_):
                if -(2**63) <= int(value) < 2**63:
                    return int(value)
                raise InvalidValue(name, "does not fit into 64 bits")
        case DataType.FLOAT64:
            if isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_):
                if abs(int(value)) <= 2**53:
                    return float(value)
                raise InvalidValue(name, "is an integer beyond 2^53 and would lose digits as a float")
            if isinstance(value, float | np.floating):
                if np.isfinite(value):
                    return float(value)
                raise InvalidValue(name, f"is {value}; use NULL for an unknown number")
        case DataType.BOOL:
            if isinstance(value, bool | np.bool_):
                return bool(value)
        case DataType.STRING:
            if isinstance(value, str):
                return check_text(value, name, STRING_BYTES_MAX)
        case DataType.TIMESTAMP:
            if isinstance(value, datetime):
                return micros_from_instant(value, name)
            if isinstance(value, int | np.integer) and not isinstance(value, bool):
                if MICROS_MIN <= int(value) <= MICROS_MAX:
                    return int(value)
                raise InvalidValue(name, "lies outside of the years 1 to 9999")
        case DataType.FLOAT_VECTOR:
            try:
                with np.errstate(over="ignore"):
                    vector = np.asarray(value, dtype=np.float32)
            except (TypeError, ValueError):
                raise InvalidValue(name, f"{quoted(value)} is not a vector of numbers") from None
            if vector.shape != (dimension,):
                raise InvalidValue(name, f"has shape {vector.shape}, not ({dimension},)")
            if not np.isfinite(vector).all():
                raise InvalidValue(name, "contains NaN or infinity")
            return vector
    raise InvalidValue(name, f"{quoted(value)} is not of type {type.value}")
