"""Tables that are being sent: a bound on what all calls hold together, and chunks of what is answered."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Iterator

import pyarrow as pa

from foresight.tables import decode_table, encode_batches
from foresight.values import InvalidValue
from services.feature_store.expansion import expanded_bytes, unpacked_bytes
from services.feature_store.histories import BatchStream
from services.feature_store.row_tables import TABLE_BYTES_MAX
from services.runtime.errors import LimitExceeded
from services.runtime.threads import in_thread, in_thread_unless

IN_TRANSIT_BYTES_MAX = 2 << 30
# Tables of so many bytes are read and checked on the event loop, in less than a millisecond.
SMALL_BYTES_MAX = 64 << 10


class TablesInTransit:
    """Counts the bytes of tables that are arriving."""

    def __init__(self, bytes_max: int = IN_TRANSIT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._held = 0

    @contextlib.contextmanager
    def upload(self) -> Iterator[Upload]:
        """A table that arrives chunk by chunk; forgotten at the end of the block."""
        upload = Upload(self._hold)
        try:
            yield upload
        finally:
            self._held -= upload.bytes

    def _hold(self, count: int) -> None:
        if self._held + count > self._bytes_max:
            raise LimitExceeded("too many tables are being sent at once; repeat later", limit="bytes_in_transit")
        self._held += count


class Upload:
    """The chunks of one table."""

    def __init__(self, hold: Callable[[int], None]) -> None:
        self._hold = hold
        self._chunks: list[bytes] = []
        self.bytes = 0

    def add(self, chunk: bytes) -> None:
        """Takes the next chunk. Raises LimitExceeded."""
        if self.bytes + len(chunk) > TABLE_BYTES_MAX:
            raise LimitExceeded(f"the table has more than {TABLE_BYTES_MAX} bytes", limit="bytes")
        self._hold(len(chunk))
        self.bytes += len(chunk)
        if chunk:
            self._chunks.append(chunk)

    async def table(self) -> pa.Table:
        """The table of all chunks. Raises InvalidValue when they are not one Arrow IPC stream, LimitExceeded."""
        data = b"".join(self._chunks)
        unpacked = await in_thread_unless(len(data) <= SMALL_BYTES_MAX, _unpacked_bytes, data)
        if unpacked > TABLE_BYTES_MAX:
            raise LimitExceeded(f"the table has more than {TABLE_BYTES_MAX} bytes once unpacked", limit="bytes")
        if unpacked > self.bytes:
            # What compression saved on the way takes room here.
            self._hold(unpacked - self.bytes)
            self.bytes = unpacked
        return await in_thread_unless(unpacked <= SMALL_BYTES_MAX, decode_table, [data])

    async def table_if_any(self) -> pa.Table | None:
        """The table, or None when no bytes came."""
        return await self.table() if self._chunks else None


def is_small(table: pa.Table) -> bool:
    """Whether a table can be checked on the event loop, in less than a millisecond."""
    return expanded_bytes(table) <= SMALL_BYTES_MAX


def _unpacked_bytes(data: bytes) -> int:
    try:
        return unpacked_bytes(data)
    except (pa.ArrowException, OSError, EOFError, ValueError, IndexError, struct.error) as error:
        raise InvalidValue("arrow", "is not a whole Arrow IPC stream") from error


async def chunks_of(table: pa.Table) -> AsyncIterator[bytes]:
    """The chunks of a table."""
    async for chunk in _in_threads(encode_batches(table.schema, _batches(table))):
        yield chunk


async def chunks_of_stream(stream: BatchStream) -> AsyncIterator[bytes]:
    """The chunks of a result, each made when the receiver wants it."""
    async for chunk in _in_threads(encode_batches(stream.schema, iter(stream.next_batch, None))):
        yield chunk


def _batches(table: pa.Table) -> Iterator[pa.RecordBatch]:
    yield from table.to_batches()


async def _in_threads(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (chunk := await in_thread(next, chunks, None)) is not None:
        yield chunk
