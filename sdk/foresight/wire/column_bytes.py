"""Columns as protobuf bytes, written without building messages.

What is written is what protobuf itself would write for `foresight.types.v1.Column`, field after field in the order of
their numbers. Records of small requests are many columns of one or a few values: making a message of each costs ten
times as much as these bytes, whose beginnings are the same from one request to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from foresight.values import Column, DataType

# Beginnings that are kept: those of the columns of a few hundred views.
HEADS_MAX = 16_384

_VARINT, _BYTES = 0, 2
# Field numbers of Column's arms, and what stands before their values.
_ARMS = {
    DataType.INT64: 2,
    DataType.FLOAT64: 3,
    DataType.BOOL: 4,
    DataType.STRING: 5,
    DataType.TIMESTAMP: 6,
    DataType.FLOAT_VECTOR: 7,
}
_VALIDITY_TAG = bytes([8 << 3 | _BYTES])
_VALUES_TAG = bytes([1 << 3 | _BYTES])
_DIMENSION_TAG = bytes([1 << 3 | _VARINT])
_VECTOR_VALUES_TAG = bytes([2 << 3 | _BYTES])
# Bytes of one value, little-endian as in memory; others vary in length.
_WIDTHS = {DataType.FLOAT64: 8, DataType.TIMESTAMP: 8, DataType.BOOL: 1}

Bounds = Sequence[tuple[int, int]]


def varint(number: int) -> bytes:
    """Protobuf's variable-length form of a number that is not negative."""
    if number < 0x80:
        return _ONE_BYTE[number]
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_ONE_BYTE = [bytes([number]) for number in range(0x80)]


def tag(number: int) -> bytes:
    """The tag of a field of bytes, a text or a message."""
    return varint(number << 3 | _BYTES)


def delimited(field: bytes, data: bytes) -> bytes:
    """A field of bytes, a text or a message, by its `tag`."""
    return field + varint(len(data)) + data


def packed_varints(numbers: Sequence[int]) -> bytes:
    """Numbers as `repeated int64` or `uint64` without tag and length; negative ones take ten bytes."""
    if numbers and min(numbers) >= 0 and max(numbers) < 0x80:
        return bytes(numbers)
    return b"".join([varint(number & 0xFFFF_FFFF_FFFF_FFFF) for number in numbers])


def columns_bytes(column: Column, bounds: Bounds, *path: bytes) -> list[bytes]:
    """For each (start, stop) of at least one row the field that holds a Column of these rows.

    `path` are the tags of the field and, before it, of the messages that hold nothing else, the outermost first.
    """
    type = column.type
    width = column.values.shape[1] * 4 if type is DataType.FLOAT_VECTOR else _WIDTHS.get(type, 0)
    if not width or column.valid is not None:
        made = [_column(column.part(start, stop), width) for start, stop in bounds]
        for field in reversed(path):
            made = [delimited(field, data) for data in made]
        return made
    raw = column.values.tobytes()
    rows, head = 0, b""
    made = []
    for start, stop in bounds:
        if stop - start != rows:
            rows = stop - start
            head = _head(path, column.name, type, rows, width)
        made.append(head + raw[start * width : stop * width])
    return made


@lru_cache(maxsize=HEADS_MAX)
def _head(path: tuple[bytes, ...], name: str, type: DataType, rows: int, width: int) -> bytes:
    """All that stands before the values of a column of fixed width without NULLs, from the first tag of `path` on."""
    values = rows * width
    head = _named(name) + _arm(type, values, width)
    for field in reversed(path):
        head = field + varint(len(head) + values) + head
    return head


@lru_cache(maxsize=HEADS_MAX)
def _named(name: str) -> bytes:
    return delimited(tag(1), name.encode())


def _arm(type: DataType, length: int, width: int) -> bytes:
    """Tag and length of the arm and of its packed values of so many bytes, a vector's dimension between them."""
    before = _VALUES_TAG
    if type is DataType.FLOAT_VECTOR:
        before = _DIMENSION_TAG + varint(width // 4) + _VECTOR_VALUES_TAG
    inner = before + varint(length)
    return tag(_ARMS[type]) + varint(len(inner) + length) + inner


def _column(column: Column, width: int) -> bytes:
    """The bytes of a Column."""
    if width:
        data = column.values.tobytes()
        arm = _arm(column.type, len(data), width) + data
    elif column.type is DataType.STRING:
        texts = [delimited(_VALUES_TAG, text.encode()) for text in column.values.tolist()]
        arm = delimited(tag(_ARMS[DataType.STRING]), b"".join(texts))
    else:
        data = packed_varints(column.values.tolist())
        arm = _arm(column.type, len(data), 0) + data
    validity = b"" if column.valid is None else delimited(_VALIDITY_TAG, column.valid.tobytes())
    return _named(column.name) + arm + validity
