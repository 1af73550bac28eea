"""An Arrow IPC stream decoded while it arrives, message by message, in memory bounded by one message.

A message is refused by what it declares, before it is unpacked. Batches come out valid, with dictionaries and views
written out (they cannot be cut into pieces that stand alone), at most BATCH_ROWS_MAX rows each.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import pyarrow as pa

from foresight.values import InvalidValue
from services.feature_store.tables.expansion import (
    DICTIONARY,
    RECORDS,
    SCHEMA,
    Declared,
    body_bytes,
    declared,
    expanded_bytes,
)
from services.feature_store.tables.row_source import BATCH_ROWS_MAX
from services.runtime.errors import LimitExceeded

# What a message may take: as it comes, once unpacked, and with dictionaries and views written out.
MESSAGE_BYTES_MAX = 256 << 20
METADATA_BYTES_MAX = 16 << 20
_CONTINUATION = 0xFFFFFFFF
_WORD = struct.Struct("<I")
NOT_WHOLE = "is not a whole Arrow IPC stream"
# What Arrow raises for bytes that are no such stream, and what comes of reading their metadata.
MALFORMED = (pa.ArrowException, OSError, EOFError, ValueError, KeyError, IndexError, struct.error)


class StreamDecoder:
    """Decodes one stream. Its methods block."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._fed = _Fed()
        self._reader: pa.RecordBatchStreamReader | None = None
        self._schema: pa.Schema | None = None
        self._dictionaries: dict[int, int] = {}
        self._next: int | None = None
        self._ended = False

    @property
    def pending_bytes(self) -> int:
        """Bytes of the message that is not whole yet."""
        return len(self._pending)

    def feed(self, data: bytes) -> Iterator[pa.RecordBatch]:
        """The batches that are whole with these bytes. Raises InvalidValue, LimitExceeded."""
        self._pending += data
        while self._is_whole():
            message = bytes(memoryview(self._pending)[: self._next])
            del self._pending[: self._next]
            self._next = None
            batch = self._decoded(message)
            if batch is not None:
                yield from self._written_out(batch)

    def schema(self) -> pa.Schema:
        """The schema of the batches, once the stream is over. Raises InvalidValue when it is not."""
        if not self._ended or self._schema is None:
            raise InvalidValue("arrow", NOT_WHOLE)
        return self._schema

    def _is_whole(self) -> bool:
        """Whether the next message is there."""
        if self._next is None:
            self._next = self._next_size()
        return self._next is not None and len(self._pending) >= self._next

    def _next_size(self) -> int | None:
        """Bytes of the message that comes next; None while that is not known, or after the end of the stream."""
        if self._ended:
            if self._pending:
                raise InvalidValue("arrow", NOT_WHOLE)
            return None
        prefix = 4
        if len(self._pending) < prefix:
            return None
        (length,) = _WORD.unpack_from(self._pending)
        if length == _CONTINUATION:
            prefix = 8
            if len(self._pending) < prefix:
                return None
            (length,) = _WORD.unpack_from(self._pending, 4)
        if length == 0:
            self._ended = True
            del self._pending[:prefix]
            return self._next_size()
        if length > METADATA_BYTES_MAX:
            raise InvalidValue("arrow", NOT_WHOLE)
        if len(self._pending) < prefix + length:
            return None
        try:
            body = body_bytes(bytes(memoryview(self._pending)[prefix : prefix + length]))
        except MALFORMED as error:
            raise InvalidValue("arrow", NOT_WHOLE) from error
        if body < 0:
            raise InvalidValue("arrow", NOT_WHOLE)
        _check(body)
        return int(prefix + length + body)

    def _decoded(self, message: bytes) -> pa.RecordBatch | None:
        """The batch of a message; None when it is about batches that follow."""
        try:
            found = declared(pa.ipc.read_message(pa.py_buffer(message)))
            _check(found.bytes)
            self._fed.append(message)
            if (found.kind == SCHEMA) != (self._reader is None):
                raise ValueError("the schema is the first message, and only that")
            if self._reader is None:
                self._reader = pa.ipc.open_stream(pa.PythonFile(self._fed, "r"))
                self._schema = _plain_schema(self._reader.schema)
                return None
            if found.kind == DICTIONARY:
                self._count(found)
                return None
            if found.kind != RECORDS:
                raise ValueError("holds no rows")
            batch = self._reader.read_next_batch()
            batch.validate(full=True)
            return batch
        except InvalidValue:
            raise
        except MALFORMED as error:
            raise InvalidValue("arrow", NOT_WHOLE) from error

    def _count(self, dictionary: Declared) -> None:
        """Dictionaries stay until others replace them."""
        before = self._dictionaries.get(dictionary.id, 0) if dictionary.is_delta else 0
        self._dictionaries[dictionary.id] = before + dictionary.bytes
        _check(sum(self._dictionaries.values()))

    def _written_out(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        _check(expanded_bytes(batch))
        assert self._schema is not None
        for start in range(0, batch.num_rows, BATCH_ROWS_MAX):
            part = batch.slice(start, BATCH_ROWS_MAX)
            arrays = [
                array if array.type == field.type else array.cast(field.type)
                for array, field in zip(part.columns, self._schema, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=self._schema)


class _Fed(io.RawIOBase):
    """What the reader reads: messages, each of which is whole before it is asked for."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self._position = 0

    def append(self, message: bytes) -> None:
        self._messages.append(message)

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        if not self._messages:
            return b""
        message, start = self._messages[0], self._position
        end = len(message) if size is None or size < 0 else min(start + size, len(message))
        self._position = end
        if end == len(message):
            del self._messages[0]
            self._position = 0
        return message[start:end]


def _check(count: int) -> None:
    if count > MESSAGE_BYTES_MAX:
        raise LimitExceeded(
            f"a batch of the table has more than {MESSAGE_BYTES_MAX} bytes once unpacked; send smaller ones",
            limit="batch_bytes",
        )


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    names = schema.names
    if len(set(names)) != len(names):
        raise InvalidValue("arrow", "has two columns of the same name")
    return pa.schema([pa.field(field.name, _plain(field.type, field.name)) for field in schema])


def _plain(type: pa.DataType, name: str) -> pa.DataType:
    """A type without dictionaries and views."""
    if pa.types.is_dictionary(type):
        return _plain(type.value_type, name)
    if pa.types.is_string_view(type):
        return pa.string()
    if pa.types.is_fixed_size_list(type):
        return pa.list_(_plain(type.value_type, name), type.list_size)
    if pa.types.is_large_list(type):
        return pa.large_list(_plain(type.value_type, name))
    if pa.types.is_list(type):
        return pa.list_(_plain(type.value_type, name))
    if "dictionary<" in str(type):
        raise InvalidValue(f"arrow.{name[:63]}", "has a dictionary inside of a type other than a list")
    return type
