"""Rows while they are worked with: in memory while they are few, in files beyond that, within bounds that all share."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from services.feature_store.tables.row_source import BATCH_ROWS_MAX, FileRows, RowSource, TableRows
from services.feature_store.tables.scratch import ScratchFolder
from services.runtime.errors import LimitExceeded

# What all together hold in memory and on disk, and what they leave free on the disk.
MEMORY_BYTES_MAX = 1 << 30
DISK_BYTES_MAX = 64 << 30
DISK_RESERVE_BYTES = 1 << 30
# Rows of so many bytes stay in memory.
GATHERED_MEMORY_BYTES_MAX = 8 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Workspace:
    """Memory and disk for rows. Close it at the end."""

    def __init__(
        self,
        folder: Path,
        *,
        memory_bytes_max: int = MEMORY_BYTES_MAX,
        disk_bytes_max: int = DISK_BYTES_MAX,
        disk_reserve_bytes: int = DISK_RESERVE_BYTES,
    ) -> None:
        """Files go below `folder`; what processes that are gone left there is removed."""
        self.memory = Room(memory_bytes_max, "bytes_in_transit")
        self._disk = Room(disk_bytes_max, "bytes_on_disk")
        self._scratch = ScratchFolder(folder)
        self._reserve_bytes = disk_reserve_bytes

    def gathered(self) -> GatheredRows:
        """A place for rows."""
        return GatheredRows(self)

    def new_path(self) -> Path:
        """A path for a file, which its user removes."""
        return self._scratch.new_path()

    @contextlib.contextmanager
    def writing(self, count: int) -> Iterator[None]:
        """A block that writes `count` bytes to a file; they count until `removed`. Raises LimitExceeded."""
        self._disk.take(count)
        try:
            if self._scratch.free_bytes() < count + self._reserve_bytes:
                raise _no_room()
            with disk_faults():
                yield
        except BaseException:
            self._disk.give_back(count)
            raise

    def removed(self, count: int) -> None:
        """Says that bytes are on disk no longer."""
        self._disk.give_back(count)

    def close(self) -> None:
        """Removes all files."""
        self._scratch.close()


class GatheredRows:
    """Batches of one schema, in memory while they are few. Its methods block; `forget` it at the end."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._batches: list[pa.RecordBatch] = []
        self._batch_rows = 0
        self._batch_bytes = 0
        self._disk_bytes = 0
        self._rows = 0
        self._path: Path | None = None
        self._file: pa.OSFile | None = None
        self._writer: pa.RecordBatchFileWriter | None = None

    @property
    def num_rows(self) -> int:
        """Rows so far."""
        return self._rows + self._batch_rows

    @property
    def in_file(self) -> bool:
        """Whether there is a file."""
        return self._path is not None

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes the next batch. Raises LimitExceeded."""
        count = int(batch.nbytes)
        self._workspace.memory.take(count)
        self._batches.append(batch)
        self._batch_rows += batch.num_rows
        self._batch_bytes += count
        full = self._batch_rows >= BATCH_ROWS_MAX and self.in_file
        if self._batch_bytes > GATHERED_MEMORY_BYTES_MAX or full:
            self._write()

    def rows(self, schema: pa.Schema) -> RowSource:
        """All rows; use them before they are forgotten. Raises LimitExceeded."""
        if self._path is None:
            return TableRows(pa.Table.from_batches(self._batches, schema))
        self._write()
        with disk_faults():
            self._close()
        return FileRows(self._path, schema, self._rows)

    def forget(self) -> None:
        """Removes the file and gives back what was taken."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                # It is removed anyway.
                self._close()
            self._path.unlink(missing_ok=True)
        self._workspace.removed(self._disk_bytes)
        self._workspace.memory.give_back(self._batch_bytes)
        self._disk_bytes = self._batch_bytes = 0
        self._batches = []

    def _write(self) -> None:
        """Moves what is in memory to the file, in batches that are worth reading one by one."""
        if not self._batches:
            return
        with self._workspace.writing(self._batch_bytes):
            if self._path is None:
                self._path = self._workspace.new_path()
                self._file = pa.OSFile(str(self._path), "wb")
                self._writer = pa.ipc.new_file(self._file, self._batches[0].schema)
            assert self._writer is not None
            whole = self._batches[0] if len(self._batches) == 1 else pa.concat_batches(self._batches)
            for start in range(0, whole.num_rows, BATCH_ROWS_MAX):
                self._writer.write_batch(whole.slice(start, BATCH_ROWS_MAX))
        self._disk_bytes += self._batch_bytes
        self._rows += self._batch_rows
        self._workspace.memory.give_back(self._batch_bytes)
        self._batches, self._batch_rows, self._batch_bytes = [], 0, 0

    def _close(self) -> None:
        writer, file, self._writer, self._file = self._writer, self._file, None, None
        try:
            if writer is not None:
                writer.close()
        finally:
            if file is not None:
                file.close()


class Room:
    """Bytes that many share, counted from many threads."""

    def __init__(self, bytes_max: int, limit: str) -> None:
        self._bytes_max = bytes_max
        self._limit = limit
        self._held = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Takes bytes. Raises LimitExceeded when there are not so many left."""
        with self._lock:
            if self._held + count > self._bytes_max:
                raise LimitExceeded("too many tables are being sent at once; repeat later", limit=self._limit)
            self._held += count

    def give_back(self, count: int) -> None:
        """Gives bytes back."""
        with self._lock:
            self._held -= count


def _no_room() -> LimitExceeded:
    return LimitExceeded("the disk has no room for the table", limit="disk")


@contextlib.contextmanager
def disk_faults() -> Iterator[None]:
    """A block in which a disk without room is LimitExceeded."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise _no_room() from error
        raise
