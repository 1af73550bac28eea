"""Columns as protobuf bytes, written with hardly any messages.

What is written is what protobuf itself would write for `foresight.types.v1.Column`, field after field in the order of
their numbers. Records of small requests are many columns of one or a few values: making a message of each costs ten
times as much as these bytes, whose beginnings are the same from one request to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType

# Beginnings that are kept: those of the columns of a few hundred views.
HEADS_MAX = 16_384
# Array operations pay for more numbers than this.
FEW_NUMBERS_MAX = 16
# And a message for more texts.
FEW_TEXTS_MAX = 2

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


def packed_varints(numbers: Sequence[int] | NDArray[np.integer[Any]]) -> bytes:
    """Numbers as `repeated int64` or `uint64` without tag and length; negative ones take ten bytes."""
    if len(numbers) > FEW_NUMBERS_MAX:
        return _many_varints(numbers)
    few: Sequence[int] = numbers.tolist() if isinstance(numbers, np.ndarray) else numbers
    if few and min(few) >= 0 and max(few) < 0x80:
        return bytes(few)
    return b"".join([varint(number & 0xFFFF_FFFF_FFFF_FFFF) for number in few])


def _many_varints(numbers: Sequence[int] | NDArray[np.integer[Any]]) -> bytes:
    """The same, digit by digit of base 128 for all of them together."""
    if not isinstance(numbers, np.ndarray):
        numbers = np.array(numbers, np.int64 if min(numbers) < 0 else np.uint64)
    unsigned = numbers.astype(np.uint64)
    greatest = int(unsigned.max())
    if greatest == int(unsigned.min()):
        return varint(greatest) * len(unsigned)
    size = (greatest.bit_length() + 6) // 7
    shifts = np.arange(size, dtype=np.uint64) * np.uint64(7)
    rest = unsigned[:, np.newaxis] >> shifts
    digits = (rest & np.uint64(0x7F)).astype(np.uint8)
    # A digit is there when it or a higher one is not zero, the lowest always.
    there = rest != 0
    there[:, 0] = True
    digits[:, :-1] |= there[:, 1:].astype(np.uint8) << 7
    return digits.tobytes() if there.all() else digits[there].tobytes()


def texts_bytes(texts: Sequence[str]) -> bytes:
    """Texts as a `repeated string` with the number 1."""
    if len(texts) > FEW_TEXTS_MAX:
        return types_pb2.StringValues(values=texts).SerializeToString()
    return b"".join([delimited(_VALUES_TAG, text.encode()) for text in texts])


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


def column_bytes(column: Column, *path: bytes) -> bytes:
    """The field that holds a Column of all rows, of which there is at least one; `path` as in `columns_bytes`."""
    return columns_bytes(column, [(0, len(column))], *path)[0]


def column_head(name: str, type: DataType, dimension: int, rows: int, field: bytes) -> bytes | None:
    """All that stands before the values in a field, by its `tag`, that holds a column of fixed width without NULLs.

    None when the values are of no fixed width. The values follow as they are in memory, little-endian.
    """
    width = width_of(type, dimension)
    if not width:
        return None
    head = _named(name) + _arm(type, rows * width, width)
    return field + varint(len(head) + rows * width) + head


def width_of(type: DataType, dimension: int = 0) -> int:
    """Bytes of one value; 0: they differ."""
    return 4 * dimension if type is DataType.FLOAT_VECTOR else _WIDTHS.get(type, 0)


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
        arm = delimited(tag(_ARMS[DataType.STRING]), texts_bytes(column.values.tolist()))
    else:
        data = packed_varints(column.values)
        arm = _arm(column.type, len(data), 0) + data
    validity = b"" if column.valid is None else delimited(_VALIDITY_TAG, column.valid.tobytes())
    return _named(column.name) + arm + validity
