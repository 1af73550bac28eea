"""Messages made value by value, as protobuf's own documentation would have it: what cheaper ways are held against."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType
from tests.unit.values.columns import columns

ARMS = {
    DataType.INT64: "int64_values",
    DataType.FLOAT64: "float64_values",
    DataType.BOOL: "bool_values",
    DataType.STRING: "string_values",
}


def column_message(column: Column) -> types_pb2.Column:
    """The message of a column of at least one row."""
    message = types_pb2.Column(name=column.name)
    if column.type is DataType.TIMESTAMP:
        message.timestamp_values.micros.extend(column.values.tolist())
    elif column.type is DataType.FLOAT_VECTOR:
        message.vector_values.dimension = column.values.shape[1]
        message.vector_values.values.extend(column.values.ravel().tolist())
    else:
        values: Any = getattr(message, ARMS[column.type])
        values.values.extend(column.values.tolist())
    if column.valid is not None:
        message.validity = bytes(column.valid.tolist())
    return message


@st.composite
def longer_columns(draw: st.DrawFn, rows: int | None = None) -> Column:
    """A column of some rows, few or many: a few drawn values, again and again."""
    column = draw(columns(rows=draw(st.integers(1, 5))))
    n = draw(st.sampled_from([1, 2, 16, 17, 40, 130])) if rows is None else rows
    return repeated(column, n)


def repeated(column: Column, rows: int) -> Column:
    """So many rows of a column, over and over; `valid` is None when none of them is NULL."""
    return column.take(np.arange(rows) % len(column)).part(0, rows)
