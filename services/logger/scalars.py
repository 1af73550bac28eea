"""One typed value as canonical bytes: equal bytes if and only if type and value are equal."""

from __future__ import annotations

import struct
from typing import Any

from foresight.values import Column, DataType

_PACKED = {
    DataType.INT64: struct.Struct(">q"),
    DataType.FLOAT64: struct.Struct(">d"),
    DataType.BOOL: struct.Struct(">?"),
}


def encode_scalar(type: DataType, value: Any) -> bytes:
    """The bytes of an int64, float64, bool or string."""
    return value.encode() if type is DataType.STRING else _PACKED[type].pack(value)


def decode_scalar(type: DataType, data: bytes) -> Any:
    """The value of `encode_scalar`'s bytes."""
    return data.decode() if type is DataType.STRING else _PACKED[type].unpack(data)[0]


def encode_rows(column: Column) -> list[bytes]:
    """The bytes of every row of a column that has no NULL."""
    values = column.values.tolist()
    if column.type is DataType.STRING:
        return [value.encode() for value in values]
    return [_PACKED[column.type].pack(value) for value in values]


def int64_of_varint(data: bytes) -> int:
    """The int64 of protobuf's variable-length form."""
    value = 0
    for byte in reversed(data):
        value = value << 7 | byte & 0x7F
    return value - (1 << 64) if value >> 63 else value
