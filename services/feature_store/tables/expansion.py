"""How large a table gets that arrives small: bounds on what compression, dictionaries and views can stand for.

A stream of a kilobyte can declare gigabytes: compressed buffers, a dictionary whose one long text a million rows point
to, views that all show the same text, rows of a type that has no bytes. All functions look at declared lengths only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Kinds of messages.
SCHEMA, DICTIONARY, RECORDS = 1, 2, 3
_NOT_COMPRESSED = -1
_FIXED_BYTES_MAX = 32
_BUFFER = struct.Struct("<qq")
_LENGTH = struct.Struct("<q")


@dataclass(frozen=True, slots=True)
class Declared:
    """What a message of an Arrow IPC stream declares. `bytes`: of its buffers once decompressed.

    `id` and `is_delta` are those of a dictionary; a delta adds to the dictionary of that id, others replace it.
    """

    kind: int
    bytes: int
    id: int = 0
    is_delta: bool = False


def body_bytes(metadata: bytes) -> int:
    """Bytes of the body that follows a message's metadata. Raises struct.error, IndexError for what is no metadata."""
    view = memoryview(metadata)
    field = _field(view, _offset(view, 0), 3)
    return int(_LENGTH.unpack_from(view, field)[0]) if field else 0


def declared(message: pa.Message) -> Declared:
    """What a message declares; Arrow has verified its metadata. Raises struct.error for a body that is too short."""
    metadata, body = memoryview(message.metadata), message.body
    root = _offset(metadata, 0)
    kind, header = _field(metadata, root, 1), _field(metadata, root, 2)
    if not kind or not header:
        return Declared(0, 0)
    batch = header + _offset(metadata, header)
    if metadata[kind] == RECORDS:
        return Declared(RECORDS, _buffer_bytes(metadata, batch, body))
    if metadata[kind] != DICTIONARY:
        return Declared(metadata[kind], 0)
    id, data, delta = (_field(metadata, batch, index) for index in range(3))
    return Declared(
        DICTIONARY,
        _buffer_bytes(metadata, data + _offset(metadata, data), body),
        int(_LENGTH.unpack_from(metadata, id)[0]) if id else 0,
        bool(delta and metadata[delta]),
    )


def declared_by(data: bytes) -> list[Declared]:
    """What the messages of a stream declare. Raises pa.ArrowException, OSError, struct.error for what is none."""
    return [declared(message) for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(data))]


def expanded_bytes(rows: pa.Table | pa.RecordBatch) -> int:
    """Bytes of rows whose dictionaries and views are written out, at least one per row and value."""
    if all(_is_plain(type) for type in rows.schema.types):
        return int(max(rows.nbytes, rows.num_rows * max(1, rows.num_columns)))
    if isinstance(rows, pa.RecordBatch):
        return sum(map(_array_bytes, rows.columns))
    return sum(_array_bytes(chunk) for column in rows.columns for chunk in column.chunks)


def _is_plain(type: pa.DataType) -> bool:
    """Whether all bytes of a column are its own."""
    return bool(pa.types.is_primitive(type) or pa.types.is_string(type) or pa.types.is_large_string(type))


def _array_bytes(array: pa.Array) -> int:
    type, n = array.type, len(array)
    if pa.types.is_dictionary(type):
        values = array.dictionary
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            lengths = pc.binary_length(values).take(array.indices)
            return n + int(pc.sum(lengths).as_py() or 0)
        # Of other types none is wider than this, unless it is nested.
        return n * max(1, _FIXED_BYTES_MAX if pa.types.is_primitive(values.type) else _array_bytes(values))
    if pa.types.is_string_view(type) or pa.types.is_binary_view(type):
        # A view is 16 bytes and starts with the length; Arrow has no function for it.
        views = np.frombuffer(array.buffers()[1], np.int32)[4 * array.offset : 4 * (array.offset + n) : 4]
        return n + int(views.astype(np.int64)[np.asarray(array.is_valid())].sum())
    if pa.types.is_fixed_size_list(type):
        # Items without bytes can be any number.
        items = n * type.list_size
        return int(items) if pa.types.is_null(type.value_type) else n + _array_bytes(array.flatten())
    if pa.types.is_list(type) or pa.types.is_large_list(type):
        return n + _array_bytes(array.flatten())
    return max(n, int(array.nbytes))


def _buffer_bytes(metadata: memoryview, batch: int, body: pa.Buffer | None) -> int:
    """The bytes of a batch's buffers: the sum of the lengths that stand before the compressed ones.

    `metadata` is the FlatBuffer `Message` of the Arrow format (Message.fbs), `batch` the `RecordBatch` in it.
    """
    if body is None:
        return 0
    if not _field(metadata, batch, 3):
        return len(body)
    buffers = _field(metadata, batch, 2)
    vector = buffers + _offset(metadata, buffers)
    (count,) = struct.unpack_from("<I", metadata, vector)
    content, total = memoryview(body), 0
    for i in range(count):
        start, length = _BUFFER.unpack_from(metadata, vector + 4 + i * _BUFFER.size)
        if length:
            (declared,) = _LENGTH.unpack_from(content, start)
            total += length if declared == _NOT_COMPRESSED else max(0, declared)
    return total


def _offset(metadata: memoryview, position: int) -> int:
    (offset,) = struct.unpack_from("<I", metadata, position)
    return int(offset)


def _field(metadata: memoryview, table: int, index: int) -> int:
    """Position of a table's field, 0 where it is left out."""
    (back,) = struct.unpack_from("<i", metadata, table)
    vtable = table - back
    (size,) = struct.unpack_from("<H", metadata, vtable)
    entry = 4 + 2 * index
    if entry >= size:
        return 0
    (offset,) = struct.unpack_from("<H", metadata, vtable + entry)
    return table + int(offset) if offset else 0
