"""Rows of a prediction request as typed wire columns.

Callers that may only predict cannot read a view's definition, so types always follow from the values: int → INT64,
float → FLOAT64 (NaN is NULL), bool → BOOL, str → STRING, an aware datetime → TIMESTAMP, a list or array in one row →
FLOAT_VECTOR; ints among floats are floats; a column without any value is sent as NULLs of FLOAT64. The predictor,
which knows the view, is the judge: it takes integers for float features and NULLs of any type for any field.

This is on the path of every prediction: no DataFrame library is involved unless a DataFrame is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from foresight.client.frames import is_frame, to_table
from foresight.tables import column_from_arrow
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType, Field, InvalidValue, micros_from_instant
from foresight.values.errors import quoted
from foresight.wire import encode_column

_ARROW_TYPES: Sequence[tuple[Callable[[Any], bool], DataType]] = (
    (pa.types.is_int64, DataType.INT64),
    (pa.types.is_float64, DataType.FLOAT64),
    (pa.types.is_boolean, DataType.BOOL),
    (pa.types.is_string, DataType.STRING),
    (pa.types.is_timestamp, DataType.TIMESTAMP),
)


def encode_rows(rows: Any) -> list[types_pb2.Column]:
    """The columns of a DataFrame, a list of dicts (one per row), a dict of scalars (one row), or a dict of lists.

    Raises InvalidValue naming the column at fault.
    """
    if isinstance(rows, Mapping):
        columns = rows if any(_is_many(value) for value in rows.values()) else {n: (v,) for n, v in rows.items()}
        return [encode_values(name, values) for name, values in columns.items()]
    if is_frame(rows):
        return encode_frame(rows)
    if isinstance(rows, str | bytes) or not isinstance(rows, Sequence):
        raise InvalidValue("rows", f"are a {type(rows).__name__}, not a DataFrame, a list of dicts or a dict")
    if not rows:
        raise InvalidValue("rows", "are empty")
    names = rows[0]
    if any(row.keys() != names.keys() for row in rows):
        # A field that only some rows have is NULL in the others.
        names = dict.fromkeys(name for row in rows for name in row)
        return [encode_values(name, [row.get(name) for row in rows]) for name in names]
    return [encode_values(name, [row[name] for row in rows]) for name in names]


def encode_frame(data: Any) -> list[types_pb2.Column]:
    """The columns of a DataFrame."""
    table = to_table(data)
    return [encode_column(arrow_column(name, table.column(name))) for name in table.column_names]


def arrow_column(name: str, array: pa.ChunkedArray) -> Column:
    """The column of an Arrow array, of the type that the array says."""
    for fits, kind in _ARROW_TYPES:
        if fits(array.type):
            return column_from_arrow(array, Field(name, kind))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        return _vector_column(name, array.to_pylist())
    raise InvalidValue(name, f"has values of the Arrow type {array.type}, which no feature can be")


def encode_values(name: str, values: Iterable[Any]) -> types_pb2.Column:
    """The column of plain values; None, NaN, NaT and pandas.NA are NULL."""
    values = values if isinstance(values, list | tuple) else list(values)
    kinds = set(map(type, values))
    if len(kinds) == 1:
        # The usual case: values of one plain type, none of them missing.
        kind = next(iter(kinds))
        if kind is str:
            return types_pb2.Column(name=name, string_values=types_pb2.StringValues(values=values))
        if kind is int:
            return _integers(name, values, b"")
        if kind is bool:
            return types_pb2.Column(name=name, bool_values=types_pb2.BoolValues(values=values))
        if kind is float and not any(v != v for v in values):
            return types_pb2.Column(name=name, float64_values=types_pb2.Float64Values(values=values))
    return _encode_mixed(name, values)


def encode_micros(name: str, instants: Iterable[datetime]) -> list[int]:
    """Microseconds since the epoch. Raises InvalidValue for a naive instant, and for something else."""
    micros = []
    for instant in instants:
        if not isinstance(instant, datetime):
            raise InvalidValue(name, f"{quoted(instant)} is not a datetime")
        micros.append(micros_from_instant(instant, name))
    return micros


def _encode_mixed(name: str, values: Sequence[Any]) -> types_pb2.Column:
    """The column of values of several types, NULLs among them."""
    plain = [_plain(value) for value in values]
    validity = bytes(value is not None for value in plain) if None in plain else b""
    kinds = {type(value) for value in plain if value is not None}
    if not kinds or kinds in ({float}, {int, float}):
        floats = [0.0 if value is None else float(value) for value in plain]
        return types_pb2.Column(name=name, float64_values=types_pb2.Float64Values(values=floats), validity=validity)
    if kinds == {int}:
        return _integers(name, [0 if value is None else value for value in plain], validity)
    if kinds == {bool}:
        flags = [value is not None and value for value in plain]
        return types_pb2.Column(name=name, bool_values=types_pb2.BoolValues(values=flags), validity=validity)
    if kinds == {str}:
        texts = [value or "" for value in plain]
        return types_pb2.Column(name=name, string_values=types_pb2.StringValues(values=texts), validity=validity)
    if all(issubclass(kind, datetime) for kind in kinds):
        micros = [0 if value is None else micros_from_instant(value, name) for value in plain]
        return types_pb2.Column(name=name, timestamp_values=types_pb2.TimestampValues(micros=micros), validity=validity)
    if kinds == {list}:
        return encode_column(_vector_column(name, plain))
    found = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise InvalidValue(name, f"has values of type {found}; a column is of int, float, bool, str, datetime or lists")


def _plain(value: Any) -> Any:
    """The value as Python's own type, None for whatever stands for missing."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, float):
        return None if value != value else float(value)
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, np.ndarray | tuple):
        return [_plain(item) for item in value]
    return value


def _integers(name: str, values: Sequence[int], validity: bytes) -> types_pb2.Column:
    try:
        return types_pb2.Column(name=name, int64_values=types_pb2.Int64Values(values=values), validity=validity)
    except (ValueError, OverflowError):
        raise InvalidValue(name, "holds an integer that does not fit into 64 bits") from None


def _vector_column(name: str, values: Sequence[Any]) -> Column:
    sizes = {len(value) for value in values if value is not None}
    if len(sizes) > 1:
        raise InvalidValue(name, f"has vectors of different lengths: {sorted(sizes)}")
    return Column.build(name, DataType.FLOAT_VECTOR, values, sizes.pop() if sizes else 1)


def _is_many(value: Any) -> bool:
    """Whether a value of a dict is a column, not a scalar."""
    return not isinstance(value, str | bytes) and hasattr(value, "__len__") and hasattr(value, "__getitem__")
