"""Rows on disk while a join or a selection works: files that are gone when it ends, within a bound for all of them.

Whoever needs room opens a `Spill`; its files disappear with it, however it ends, and what a killed process left behind
is removed when the next one starts. A disk without room, or the bound, ends with LimitExceeded.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.feature_store.reads.histories import BatchStream
from services.feature_store.tables.row_source import BATCH_ROWS_MAX, FileRows, RowSource, TableRows
from services.feature_store.tables.scratch import ScratchFolder
from services.runtime.errors import LimitExceeded
from services.runtime.threads import in_thread

# What all joins together take on disk, and what they leave free there.
DISK_BYTES_MAX = 256 << 30
DISK_RESERVE_BYTES = 1 << 30
# What a partitioned file gathers before it writes.
BUFFER_BYTES = 64 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SpillFolder:
    """Where joins put what does not fit into memory. Close it at the end."""

    def __init__(
        self, folder: Path, *, bytes_max: int = DISK_BYTES_MAX, reserve_bytes: int = DISK_RESERVE_BYTES
    ) -> None:
        self._scratch = ScratchFolder(folder)
        self._bytes_max = bytes_max
        self._reserve_bytes = reserve_bytes
        self._held = 0
        self._lock = threading.Lock()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Spill]:
        """Room for one piece of work; its files are removed at the end of the block."""
        spill = Spill(self._scratch, self._hold)
        try:
            yield spill
        finally:
            if spill.used:
                await in_thread(spill.close)

    def new_path(self) -> Path:
        """A path for somebody who keeps files of his own here, which are not counted; they go with this folder."""
        return self._scratch.new_path()

    def close(self) -> None:
        """Removes all files."""
        self._scratch.close()

    def _hold(self, count: int) -> None:
        """Takes bytes, or gives them back when `count` is negative."""
        if count > 0 and self._scratch.free_bytes() < count + self._reserve_bytes:
            raise _no_room()
        with self._lock:
            if count > 0 and self._held + count > self._bytes_max:
                raise LimitExceeded("joins take too much room on the disk; repeat later", limit="join_disk")
            self._held += count


class Spill:
    """The files of one piece of work. Its methods block."""

    def __init__(self, scratch: ScratchFolder, hold: Callable[[int], None]) -> None:
        self._scratch = scratch
        self._hold = hold
        self._files: list[SpillFile] = []

    @property
    def used(self) -> bool:
        """Whether there are files."""
        return bool(self._files)

    def file(self, schema: pa.Schema) -> SpillFile:
        """A new file."""
        made = SpillFile(self._scratch.new_path(), schema, self._hold)
        self._files.append(made)
        return made

    def partitions(self, schema: pa.Schema, buffer_bytes: int = BUFFER_BYTES) -> PartitionedRows:
        """A new file whose rows are read back by partition."""
        return PartitionedRows(self.file(schema), buffer_bytes)

    def close(self) -> None:
        """Removes all files."""
        for made in self._files:
            made.remove()


class SpillFile:
    """An Arrow file that is written once and then read. Its methods block."""

    def __init__(self, path: Path, schema: pa.Schema, hold: Callable[[int], None]) -> None:
        self.schema = schema
        self._path = path
        self._hold = hold
        self._held = 0
        self._rows = 0
        self._file: pa.NativeFile | None = None
        self._writer: pa.RecordBatchFileWriter | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Writes a batch, in pieces that are not too large to be read at once. Raises LimitExceeded."""
        count = int(batch.nbytes)
        self._hold(count)
        self._held += count
        with disk_faults():
            writer = self._writer or self._start()
            for start in range(0, batch.num_rows, BATCH_ROWS_MAX):
                writer.write_batch(batch.slice(start, BATCH_ROWS_MAX))
        self._rows += batch.num_rows

    def finish(self) -> FileRows:
        """Ends the writing; the rows can be read until the file is removed."""
        with disk_faults():
            if self._writer is None:
                self._start()
            self._close()
        return FileRows(self._path, self.schema, self._rows)

    def reader(self) -> pa.RecordBatchFileReader:
        """Reads the finished file; batches are numbered as they were written, when none was too large."""
        self._file = pa.OSFile(str(self._path))
        return pa.ipc.open_file(self._file)

    def remove(self) -> None:
        """Removes the file; harmless when repeated."""
        with contextlib.suppress(OSError):
            # What is not written whole goes away anyway.
            self._close()
        self._path.unlink(missing_ok=True)
        self._hold(-self._held)
        self._held = 0

    def _start(self) -> pa.RecordBatchFileWriter:
        self._file = pa.OSFile(str(self._path), "wb")
        self._writer = pa.ipc.new_file(self._file, self.schema)
        return self._writer

    def _close(self) -> None:
        writer, file, self._writer, self._file = self._writer, self._file, None, None
        try:
            if writer is not None:
                writer.close()
        finally:
            if file is not None:
                file.close()


class PartitionedRows:
    """Rows in one file, each batch of one partition, so that a partition is read without the others.

    Within a partition rows keep the order in which they came. Its methods block.
    """

    def __init__(self, file: SpillFile, buffer_bytes: int) -> None:
        self.schema = file.schema
        self._file = file
        self._buffer_bytes = buffer_bytes
        self._gathered: dict[int, list[pa.RecordBatch]] = {}
        self._gathered_bytes = 0
        self._batches: dict[int, list[int]] = {}
        self._counts: dict[int, int] = {}
        self._written = 0
        self._reader: pa.RecordBatchFileReader | None = None

    def write(self, batch: pa.RecordBatch, partitions: NDArray[np.int64]) -> None:
        """Takes rows, each into its partition. Raises LimitExceeded."""
        if not batch.num_rows:
            return
        if (np.diff(partitions) < 0).any():
            order = np.argsort(partitions, kind="stable")
            batch, partitions = batch.take(pa.array(order)), partitions[order]
        starts = np.flatnonzero(np.diff(partitions, prepend=partitions[0] - 1))
        for start, end in zip(starts, [*starts[1:], batch.num_rows], strict=True):
            partition, count = int(partitions[start]), int(end - start)
            self._gathered.setdefault(partition, []).append(batch.slice(int(start), count))
            self._counts[partition] = self._counts.get(partition, 0) + count
        self._gathered_bytes += int(batch.nbytes)
        if self._gathered_bytes > self._buffer_bytes:
            self._flush()

    def finish(self) -> None:
        """Ends the writing; reading comes after it."""
        self._flush()
        self._file.finish()
        self._reader = self._file.reader()

    def partitions(self) -> list[int]:
        """The partitions that have rows, ascending."""
        return sorted(self._counts)

    def count(self, partition: int) -> int:
        """Rows of a partition."""
        return self._counts.get(partition, 0)

    def batches(self, partition: int) -> Iterator[pa.RecordBatch]:
        """The rows of a partition, a batch at a time."""
        assert self._reader is not None
        return (self._reader.get_batch(i) for i in self._batches.get(partition, ()))

    def read(self, partition: int) -> pa.Table:
        """The rows of a partition."""
        return pa.Table.from_batches(list(self.batches(partition)), self.schema)

    def remove(self) -> None:
        """Removes the file before its time."""
        self._reader = None
        self._file.remove()

    def _flush(self) -> None:
        for partition, pieces in sorted(self._gathered.items()):
            whole = pa.concat_batches(pieces) if len(pieces) > 1 else pieces[0]
            for start in range(0, whole.num_rows, BATCH_ROWS_MAX):
                self._file.write(whole.slice(start, BATCH_ROWS_MAX))
                self._batches.setdefault(partition, []).append(self._written)
                self._written += 1
        self._gathered, self._gathered_bytes = {}, 0


async def gathered(stream: BatchStream, spill: Spill, memory_bytes: int = BUFFER_BYTES) -> RowSource:
    """The rows of a result that can be read once: in memory while they are small, else in a file."""
    head: list[pa.RecordBatch] = []

    def read_head() -> bool:
        size = 0
        while (batch := stream.next_batch()) is not None:
            head.append(batch)
            size += batch.nbytes
            if size > memory_bytes:
                return False
        return True

    if await in_thread(read_head):
        return TableRows(pa.Table.from_batches(head, stream.schema))
    file = spill.file(stream.schema)
    for batch in head:
        await in_thread(file.write, batch)
    head.clear()
    while (batch := await in_thread(stream.next_batch)) is not None:
        await in_thread(file.write, batch)
    return await in_thread(file.finish)


@contextlib.contextmanager
def disk_faults() -> Iterator[None]:
    """A disk without room becomes LimitExceeded."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise _no_room() from error
        raise


def _no_room() -> LimitExceeded:
    return LimitExceeded("the disk has no room for the join", limit="disk")
