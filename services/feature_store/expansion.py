"""How large a table gets that arrives small: bounds on what compression, dictionaries and views can stand for.

A stream of a kilobyte can declare gigabytes: compressed buffers, a dictionary whose one long text a million rows point
to, views that all show the same text, rows of a type that has no bytes. Both functions look at declared lengths only.
"""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_NOT_COMPRESSED = -1
_FIXED_BYTES_MAX = 32
_BUFFER = struct.Struct("<qq")
_LENGTH = struct.Struct("<q")


def unpacked_bytes(data: bytes) -> int:
    """Bytes of an Arrow IPC stream's buffers once decompressed, as the stream declares them.

    Raises pa.ArrowException, OSError, struct.error for what is no such stream.
    """
    messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(data))
    return sum(_message_bytes(memoryview(message.metadata), message.body) for message in messages)


def expanded_bytes(table: pa.Table) -> int:
    """Bytes of a table whose dictionaries and views are written out, at least one per value."""
    if all(_is_plain(type) for type in table.schema.types):
        return int(max(table.nbytes, table.num_rows * table.num_columns))
    return sum(_array_bytes(chunk) for column in table.columns for chunk in column.chunks)


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


def _message_bytes(metadata: memoryview, body: pa.Buffer | None) -> int:
    """The bytes of a message's buffers: the sum of the lengths that stand before the compressed ones.

    `metadata` is the FlatBuffer `Message` of the Arrow format (Message.fbs), which Arrow has verified.
    """
    (root,) = struct.unpack_from("<I", metadata, 0)
    kind = _field(metadata, root, 1)
    header = _field(metadata, root, 2)
    if not kind or not header or body is None:
        return 0
    batch = header + _offset(metadata, header)
    if metadata[kind] == _DICTIONARY_BATCH:
        data = _field(metadata, batch, 1)
        batch = data + _offset(metadata, data)
    elif metadata[kind] != _RECORD_BATCH:
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
