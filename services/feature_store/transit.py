"""Tables that are being sent: decoded while they arrive, in memory while they are small, in files beyond that.

All uploads together have a bound on their memory and one on their room on disk. What an upload took is given back at
its end, its file included.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pyarrow as pa

from foresight.tables import encode_batches
from foresight.values import InvalidValue
from services.feature_store.arrow_stream import MALFORMED, NOT_WHOLE, StreamDecoder
from services.feature_store.expansion import DICTIONARY, declared_by, expanded_bytes
from services.feature_store.histories import BatchStream
from services.feature_store.row_source import BATCH_ROWS_MAX, FileRows, RowSource, TableRows
from services.feature_store.scratch import ScratchFolder
from services.runtime.errors import LimitExceeded
from services.runtime.threads import in_thread, in_thread_unless

# What all uploads together hold in memory and on disk, and what they leave free on the disk.
MEMORY_BYTES_MAX = 1 << 30
DISK_BYTES_MAX = 64 << 30
DISK_RESERVE_BYTES = 1 << 30
# Uploads of so many bytes stay in memory.
UPLOAD_MEMORY_BYTES_MAX = 8 << 20
# What is decoded at once, while more arrives.
DECODED_BYTES = 2 << 20
# Tables of so many bytes are read and checked on the event loop, in less than a millisecond.
SMALL_BYTES_MAX = 64 << 10
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TablesInTransit:
    """Takes tables that are arriving. Close it at the end."""

    def __init__(
        self,
        folder: Path,
        *,
        memory_bytes_max: int = MEMORY_BYTES_MAX,
        disk_bytes_max: int = DISK_BYTES_MAX,
        disk_reserve_bytes: int = DISK_RESERVE_BYTES,
    ) -> None:
        """Files go below `folder`; what processes that are gone left there is removed."""
        self._scratch = ScratchFolder(folder)
        self._memory = _Room(memory_bytes_max, "bytes_in_transit")
        self._disk = _Room(disk_bytes_max, "bytes_on_disk")
        self._disk_reserve_bytes = disk_reserve_bytes

    @contextlib.asynccontextmanager
    async def upload(self) -> AsyncIterator[Upload]:
        """A table that arrives chunk by chunk; forgotten, and its file removed, at the end of the block."""
        upload = Upload(_Gathered(self._scratch, self._memory, self._disk, self._disk_reserve_bytes), self._memory)
        try:
            yield upload
        finally:
            await upload.forget()

    def close(self) -> None:
        """Removes all files."""
        self._scratch.close()


class Upload:
    """One table: `add` its chunks, then ask for its `rows`."""

    def __init__(self, gathered: _Gathered, memory: _Room) -> None:
        self._gathered = gathered
        self._memory = memory
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
        if self._received > UPLOAD_MEMORY_BYTES_MAX and self._chunk_bytes >= DECODED_BYTES:
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


class _Gathered:
    """Decoded batches, in memory while they are few."""

    def __init__(self, scratch: ScratchFolder, memory: _Room, disk: _Room, disk_reserve_bytes: int) -> None:
        self._scratch = scratch
        self._memory = memory
        self._disk = disk
        self._disk_reserve_bytes = disk_reserve_bytes
        self._batches: list[pa.RecordBatch] = []
        self._batch_rows = 0
        self._batch_bytes = 0
        self._disk_bytes = 0
        self._rows = 0
        self._path: Path | None = None
        self._file: pa.OSFile | None = None
        self._writer: pa.RecordBatchFileWriter | None = None

    @property
    def in_file(self) -> bool:
        """Whether there is a file."""
        return self._path is not None

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes the next batch. Raises LimitExceeded."""
        count = int(batch.nbytes)
        self._memory.take(count)
        self._batches.append(batch)
        self._batch_rows += batch.num_rows
        self._batch_bytes += count
        full = self._batch_rows >= BATCH_ROWS_MAX and self.in_file
        if self._batch_bytes > UPLOAD_MEMORY_BYTES_MAX or full:
            self._write()

    def rows(self, schema: pa.Schema) -> RowSource:
        """All rows."""
        if not self.in_file:
            return TableRows(pa.Table.from_batches(self._batches, schema))
        self._write()
        assert self._path is not None
        with _disk_faults():
            self._close()
        return FileRows(self._path, schema, self._rows)

    def forget(self) -> None:
        """Removes the file and gives back what was taken."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                # It is removed anyway.
                self._close()
            self._path.unlink(missing_ok=True)
        self._disk.give_back(self._disk_bytes)
        self._memory.give_back(self._batch_bytes)
        self._disk_bytes = self._batch_bytes = 0
        self._batches = []

    def _write(self) -> None:
        """Moves what is in memory to the file, in batches that are worth reading one by one."""
        if not self._batches:
            return
        self._disk.take(self._batch_bytes)
        self._disk_bytes += self._batch_bytes
        if self._scratch.free_bytes() < self._batch_bytes + self._disk_reserve_bytes:
            raise _no_room()
        with _disk_faults():
            if self._path is None:
                self._path = self._scratch.new_path()
                self._file = pa.OSFile(str(self._path), "wb")
                self._writer = pa.ipc.new_file(self._file, self._batches[0].schema)
            assert self._writer is not None
            whole = self._batches[0] if len(self._batches) == 1 else pa.concat_batches(self._batches)
            for start in range(0, whole.num_rows, BATCH_ROWS_MAX):
                self._writer.write_batch(whole.slice(start, BATCH_ROWS_MAX))
        self._rows += self._batch_rows
        self._memory.give_back(self._batch_bytes)
        self._batches, self._batch_rows, self._batch_bytes = [], 0, 0

    def _close(self) -> None:
        writer, file, self._writer, self._file = self._writer, self._file, None, None
        try:
            if writer is not None:
                writer.close()
        finally:
            if file is not None:
                file.close()


class _Room:
    """Bytes that all uploads share, counted from many threads."""

    def __init__(self, bytes_max: int, limit: str) -> None:
        self._bytes_max = bytes_max
        self._limit = limit
        self._held = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        with self._lock:
            if self._held + count > self._bytes_max:
                raise LimitExceeded("too many tables are being sent at once; repeat later", limit=self._limit)
            self._held += count

    def give_back(self, count: int) -> None:
        with self._lock:
            self._held -= count


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


def _no_room() -> LimitExceeded:
    return LimitExceeded("the disk has no room for the table", limit="disk")


@contextlib.contextmanager
def _disk_faults() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise _no_room() from error
        raise


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
