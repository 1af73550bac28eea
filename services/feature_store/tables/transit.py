"""Tables that are being sent: decoded while they arrive, in memory while they are small, in files beyond that.

All uploads together have a bound on their memory and one on their room on disk. What an upload took is given back at
its end, its file included.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pyarrow as pa

from foresight.tables import encode_batches
from foresight.values import InvalidValue
from services.feature_store.reads.histories import BatchStream
from services.feature_store.tables.arrow_stream import MALFORMED, NOT_WHOLE, StreamDecoder
from services.feature_store.tables.expansion import DICTIONARY, declared_by, expanded_bytes
from services.feature_store.tables.row_source import RowSource
from services.feature_store.tables.workspace import (
    DISK_BYTES_MAX,
    DISK_RESERVE_BYTES,
    GATHERED_MEMORY_BYTES_MAX,
    MEMORY_BYTES_MAX,
    Workspace,
)
from services.runtime.threads import in_thread, in_thread_unless

# What is decoded at once, while more arrives.
DECODED_BYTES = 2 << 20
# Tables of so many bytes are read and checked on the event loop, in less than a millisecond.
SMALL_BYTES_MAX = 64 << 10


class TablesInTransit:
    """Takes tables that are arriving; others may put rows into its `workspace`. Close it at the end."""

    def __init__(
        self,
        folder: Path,
        *,
        memory_bytes_max: int = MEMORY_BYTES_MAX,
        disk_bytes_max: int = DISK_BYTES_MAX,
        disk_reserve_bytes: int = DISK_RESERVE_BYTES,
    ) -> None:
        """Files go below `folder`; what processes that are gone left there is removed."""
        self.workspace = Workspace(
            folder,
            memory_bytes_max=memory_bytes_max,
            disk_bytes_max=disk_bytes_max,
            disk_reserve_bytes=disk_reserve_bytes,
        )

    @contextlib.asynccontextmanager
    async def upload(self) -> AsyncIterator[Upload]:
        """A table that arrives chunk by chunk; forgotten, and its file removed, at the end of the block."""
        upload = Upload(self.workspace)
        try:
            yield upload
        finally:
            await upload.forget()

    def close(self) -> None:
        """Removes all files."""
        self.workspace.close()


class Upload:
    """One table: `add` its chunks, then ask for its `rows`."""

    def __init__(self, workspace: Workspace) -> None:
        self._gathered = workspace.gathered()
        self._memory = workspace.memory
        self._decoder = StreamDecoder()
        self._chunks: list[bytes] = []
        self._chunk_bytes = 0
        # Bytes that came; those that the decoder got, and those that it needs no longer, which are not held.
        self._received = 0
        self._fed = self._released = 0
        self._decoding: asyncio.Task[None] | None = None

    async def add(self, chunk: bytes) -> None:
        """Takes the next chunk; waits while those before it are decoded. Raises InvalidValue, LimitExceeded."""
        if not chunk:
            return
        self._memory.take(len(chunk))
        self._chunks.append(chunk)
        self._chunk_bytes += len(chunk)
        self._received += len(chunk)
        if self._received > GATHERED_MEMORY_BYTES_MAX and self._chunk_bytes >= DECODED_BYTES:
            await self._decoded()
            self._decoding = asyncio.create_task(in_thread(self._decode, self._taken()))

    async def rows(self) -> RowSource:
        """The rows of all chunks; use them before the upload ends.

        Raises InvalidValue when the chunks are not one whole Arrow IPC stream, LimitExceeded for what is too large.
        """
        if not self._received:
            raise InvalidValue("arrow", "is empty; an Arrow IPC stream is needed, even for no rows")
        await self._decoded()
        chunks = self._taken()
        small = self._received <= SMALL_BYTES_MAX and _is_small(b"".join(chunks))
        await in_thread_unless(small, self._decode, chunks)
        schema = self._decoder.schema()
        return await in_thread_unless(small, self._gathered.rows, schema)

    async def rows_if_any(self) -> RowSource | None:
        """The rows, or None when no bytes came."""
        return await self.rows() if self._received else None

    async def forget(self) -> None:
        """Gives back what the upload took."""
        if self._decoding is not None:
            await asyncio.wait([self._decoding])
            if not self._decoding.cancelled():
                # Retrieved, so that a fault that nobody waited for is not reported as an orphan.
                self._decoding.exception()
        self._memory.give_back(self._received - self._released)
        await in_thread_unless(not self._gathered.in_file, self._gathered.forget)

    async def _decoded(self) -> None:
        """Waits until the chunks that were taken are decoded."""
        if self._decoding is not None:
            decoding, self._decoding = self._decoding, None
            try:
                await asyncio.shield(decoding)
            except asyncio.CancelledError:
                self._decoding = decoding
                raise

    def _taken(self) -> list[bytes]:
        chunks, self._chunks, self._chunk_bytes = self._chunks, [], 0
        return chunks

    def _decode(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            for batch in self._decoder.feed(chunk):
                self._gathered.add(batch)
        self._fed += sum(map(len, chunks))
        released = self._fed - self._decoder.pending_bytes
        self._memory.give_back(released - self._released)
        self._released = released


def is_small(table: pa.Table) -> bool:
    """Whether a table can be checked on the event loop, in less than a millisecond."""
    return expanded_bytes(table) <= SMALL_BYTES_MAX


def _is_small(data: bytes) -> bool:
    """Whether a stream is small once it is unpacked; how large dictionaries make it is seen later only."""
    try:
        found = declared_by(data)
    except MALFORMED as error:
        raise InvalidValue("arrow", NOT_WHOLE) from error
    return sum(d.bytes for d in found) <= SMALL_BYTES_MAX and not any(d.kind == DICTIONARY for d in found)


async def chunks_of(table: pa.Table) -> AsyncIterator[bytes]:
    """The chunks of a table."""
    async for chunk in _in_threads(encode_batches(table.schema, iter(table.to_batches()))):
        yield chunk


async def chunks_of_rows(rows: RowSource) -> AsyncIterator[bytes]:
    """The chunks of rows, each made when the receiver wants it."""
    async for chunk in _in_threads(encode_batches(rows.schema, rows.batches())):
        yield chunk


async def chunks_of_stream(stream: BatchStream) -> AsyncIterator[bytes]:
    """The chunks of a result, each made when the receiver wants it."""
    async for chunk in _in_threads(encode_batches(stream.schema, iter(stream.next_batch, None))):
        yield chunk


async def _in_threads(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (chunk := await in_thread(next, chunks, None)) is not None:
        yield chunk
