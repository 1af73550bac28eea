"""Typed columns on the wire."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from foresight.types.v1 import types_pb2
from foresight.values.columns import Column
from foresight.values.errors import InvalidValue, quoted
from foresight.values.fields import DataType
from foresight.values.instants import MICROS_MAX, MICROS_MIN
from foresight.values.names import STRING_BYTES_MAX, check_text
from foresight.wire.column_bytes import column_bytes, varint

FEW_ROWS_MAX = 16
_ARMS: dict[str, tuple[DataType, Any]] = {
    "int64_values": (DataType.INT64, np.int64),
    "float64_values": (DataType.FLOAT64, np.float64),
    "bool_values": (DataType.BOOL, np.bool_),
    "string_values": (DataType.STRING, np.object_),
}
# As they are in memory and on the wire alike, but for integers and texts.
_DTYPES = {
    DataType.INT64: np.dtype("<i8"),
    DataType.FLOAT64: np.dtype("<f8"),
    DataType.BOOL: np.dtype(np.bool_),
    DataType.STRING: np.dtype(np.object_),
    DataType.TIMESTAMP: np.dtype("<i8"),
    DataType.FLOAT_VECTOR: np.dtype("<f4"),
}


def encode_column(column: Column) -> types_pb2.Column:
    """The message of a column."""
    message = types_pb2.Column(name=column.name)
    if len(column) > FEW_ROWS_MAX and column.values.dtype == _DTYPES[column.type]:
        # Bytes are taken over as they are; numbers would become Python's one by one.
        message.MergeFromString(column_bytes(column))
        return message
    match column.type:
        case DataType.INT64:
            message.int64_values.values.extend(column.values.tolist())
        case DataType.FLOAT64:
            message.float64_values.values.extend(column.values.tolist())
        case DataType.BOOL:
            message.bool_values.values.extend(column.values.tolist())
        case DataType.STRING:
            message.string_values.values.extend(column.values.tolist())
        case DataType.TIMESTAMP:
            message.timestamp_values.micros.extend(column.values.tolist())
        case DataType.FLOAT_VECTOR:
            message.vector_values.dimension = column.values.shape[1]
            message.vector_values.values.extend(column.values.ravel().tolist())
    if len(column) == 0 and message.WhichOneof("values") is None:
        getattr(message, _arm_of(column.type)).SetInParent()
    if column.valid is not None:
        message.validity = column.valid.tobytes()
    return message


def decode_column(message: types_pb2.Column, field: str = "columns") -> Column:
    """The column of a message. Raises InvalidValue naming `field[<name>]`."""
    plain = _few_values(message)
    if plain is not None:
        return plain
    name = message.name
    where = f"{field}[{name[:63]}]" if name.isascii() else field
    arm = message.WhichOneof("values")
    if not name:
        raise InvalidValue(field, "a column has no name")
    if arm is None:
        raise InvalidValue(where, "has no values of any type")
    if arm == "timestamp_values":
        instants = message.timestamp_values
        type, values = DataType.TIMESTAMP, _packed(instants, len(instants.micros), np.int64)
        if len(values) and (values.min() < MICROS_MIN or values.max() > MICROS_MAX):
            raise InvalidValue(where, "has an instant outside of the years 1 to 9999")
    elif arm == "vector_values":
        type, values = DataType.FLOAT_VECTOR, _decode_vectors(message.vector_values, where)
    else:
        type, dtype = _ARMS[arm]
        within: Any = getattr(message, arm)
        if type is DataType.FLOAT64 or type is DataType.BOOL:
            values = _packed(within, len(within.values), dtype)
        else:
            values = np.array(list(within.values), dtype=dtype)
    valid = _decode_validity(message.validity, len(values), where)
    if type is DataType.STRING:
        texts = values.tolist()
        together = "".join(texts)
        if not _is_plain(together) or (len(together) > STRING_BYTES_MAX and max(map(len, texts)) > STRING_BYTES_MAX):
            for text in texts:
                check_text(text, where, STRING_BYTES_MAX)
    elif type is DataType.FLOAT64:
        finite = np.isfinite(values)
        if not finite.all() and not (finite if valid is None else finite | ~valid).all():
            raise InvalidValue(where, "contains NaN or infinity; use NULL for an unknown number")
    if valid is not None:
        # What a client left in a NULL row must not reach a model.
        values[~valid] = "" if type is DataType.STRING else 0
    return Column(name, type, values, valid)


def decode_columns(messages: Iterable[types_pb2.Column], field: str, rows: int | None = None) -> dict[str, Column]:
    """Columns by name. Raises InvalidValue for a name given twice and for columns of different lengths."""
    columns: dict[str, Column] = {}
    for message in messages:
        column = decode_column(message, field)
        if column.name in columns:
            raise InvalidValue(field, f"the column {quoted(column.name)} is given twice")
        if rows is None:
            rows = len(column)
        if len(column) != rows:
            raise InvalidValue(f"{field}[{column.name[:63]}]", f"has {len(column)} rows, not {rows}")
        columns[column.name] = column
    return columns


def check_columns(messages: Iterable[types_pb2.Column], field: str, rows: int) -> int:
    """Checks columns of `rows` rows as `decode_columns` does, without building them; answers how many they are.

    Several times faster for a few rows each, for whoever passes columns on unread.
    """
    names: set[str] = set()
    count = 0
    for count, message in enumerate(messages, 1):
        found = _rows_when_plain(message)
        if found < 0:
            found = len(decode_column(message, field))
        if found != rows:
            raise InvalidValue(f"{field}[{message.name[:63]}]", f"has {found} rows, not {rows}")
        names.add(message.name)
        if len(names) != count:
            raise InvalidValue(field, f"the column {quoted(message.name)} is given twice")
    return count


def _few_values(message: types_pb2.Column) -> Column | None:
    """The column of a few values that are right at first sight, four times faster; None: look closer.

    A few rows at a time is what online predictions are made of, and each array operation costs more than their values.
    """
    name, arm = message.name, message.WhichOneof("values") or ""
    known = _ARMS.get(arm)
    if known is None or not name:
        return None
    type, dtype = known
    values: Any = getattr(message, arm).values
    rows = len(values)
    if rows > FEW_ROWS_MAX:
        return None
    validity = message.validity
    if validity and (len(validity) != rows or max(validity) > 1):
        return None
    if type is DataType.STRING and not _are_plain_texts(values):
        return None
    valid = None
    if validity and not all(validity):
        # What a client left in a NULL row must not reach a model.
        zero = "" if type is DataType.STRING else 0
        values = [value if is_valid else zero for value, is_valid in zip(values, validity, strict=True)]
        valid = np.frombuffer(validity, np.bool_)
    # NaN and infinity make every sum they are in NaN or infinite.
    if type is DataType.FLOAT64 and not math.isfinite(sum(values)):
        return None
    return Column(name, type, np.fromiter(values, dtype, rows), valid)


def _are_plain_texts(texts: Iterable[str]) -> bool:
    """Whether they are short ASCII texts without NUL, which `check_text` takes."""
    joined = "".join(texts)
    return len(joined) <= STRING_BYTES_MAX and _is_plain(joined)


def _is_plain(text: str) -> bool:
    """Whether it is ASCII without NUL: every such text is in Unicode's normal form and takes a byte per character."""
    return text.isascii() and "\0" not in text


def _rows_when_plain(message: types_pb2.Column) -> int:
    """Rows of a column of numbers that is right at first sight; -1: look closer."""
    arm = message.WhichOneof("values")
    validity = message.validity
    if arm == "float64_values":
        values: Any = message.float64_values.values
        # NaN and infinity make every sum they are in NaN or infinite.
        if not math.isfinite(sum(values)):
            return -1
    elif arm == "int64_values":
        values = message.int64_values.values
    elif arm == "bool_values":
        values = message.bool_values.values
    elif arm == "string_values" and _are_plain_texts(message.string_values.values):
        values = message.string_values.values
    else:
        return -1
    if not message.name or (validity and (len(validity) != len(values) or max(validity) > 1)):
        return -1
    return len(values)


def _arm_of(type: DataType) -> str:
    if type is DataType.TIMESTAMP:
        return "timestamp_values"
    if type is DataType.FLOAT_VECTOR:
        return "vector_values"
    return f"{type.value}_values"


def _decode_vectors(message: types_pb2.VectorValues, where: str) -> np.ndarray[Any, Any]:
    dimension = message.dimension
    # It stands before the floats.
    before = 1 + len(varint(dimension)) if dimension else 0
    values = _packed(message, len(message.values), np.float32, before)
    if message.dimension < 1 or len(values) % message.dimension:
        raise InvalidValue(where, f"has {len(values)} floats, not a multiple of dimension {message.dimension}")
    if not np.isfinite(values).all():
        raise InvalidValue(where, "contains NaN or infinity")
    return values.reshape(-1, message.dimension)


def _packed(message: Any, count: int, dtype: Any, before: int = 0) -> np.ndarray[Any, Any]:
    """The values of a message that has a packed field of so many, each of the same width, after `before` other bytes.

    Its bytes are the values one after the other, as in memory: a hundred times faster than to take them one by one.
    """
    size = count * np.dtype(dtype).itemsize
    start = before + 1 + len(varint(size)) if count else 0
    # Unknown fields come last.
    return np.array(np.frombuffer(message.SerializeToString()[start : start + size], dtype))


def _decode_validity(validity: bytes, rows: int, where: str) -> np.ndarray[Any, Any] | None:
    if not validity:
        return None
    flags = np.frombuffer(validity, dtype=np.uint8)
    if len(flags) != rows or flags.max() > 1:
        raise InvalidValue(where, f"validity is not {rows} bytes of 0 and 1")
    valid = flags.astype(np.bool_)
    return None if valid.all() else valid
