"""Rows of training datasets and their spines: Parquet files, each named by the digest of its content.

A file is written aside, batch by batch, while its digest is taken, and gets its name once it is whole and on the
disk. What a process left unfinished is removed when the next one starts. Reading takes the digest again: the checksum
of every page is compared before its rows are handed out, and the digest before the last of them are known to be the
last; rows that differ end with DataLoss. Memory is bounded by a group of rows, whatever their number.

Who may name and remove files at a time, and which are still needed, is for the caller to know.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from services.feature_store.datasets.splits import SPLIT
from services.feature_store.tables.conformance import is_text
from services.feature_store.tables.content import ContentDigest
from services.feature_store.tables.row_source import BATCH_BYTES_MAX, BATCH_ROWS_MAX
from services.feature_store.tables.scratch import ScratchFolder
from services.feature_store.tables.stored_columns import StoredColumns
from services.runtime.errors import DataLoss, LimitExceeded
from services.runtime.threads import in_thread

SUFFIX = ".parquet"
# What reading bytes that are not as they were written comes to.
_DAMAGE = (OSError, pa.ArrowException, ValueError, KeyError)


@dataclass(frozen=True, slots=True)
class WrittenRows:
    """A whole file without a name yet."""

    path: Path
    sha256: str
    rows: int
    bytes: int


class DatasetFiles:
    """A folder of files; its methods block, but for `written`."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder, and removes what was left unfinished in it."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._unfinished = ScratchFolder(folder / "unfinished")

    def close(self) -> None:
        """Removes what has got no name."""
        self._unfinished.close()

    @contextlib.asynccontextmanager
    async def written(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> AsyncIterator[WrittenRows]:
        """Rows written aside, in a thread; gone at the end of the block unless they were given their name.

        Raises LimitExceeded when the disk is full, InvalidValue for types that are not carried.
        """
        path = self._unfinished.new_path()
        try:
            yield await in_thread(self._write, path, schema, batches)
        finally:
            await in_thread(path.unlink, missing_ok=True)

    def name(self, written: WrittenRows) -> None:
        """Gives a file its name, in place of what has it already. Raises LimitExceeded."""
        with _room():
            written.path.replace(self._path(written.sha256))
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def has(self, sha256: str) -> bool:
        """Whether there is a file of a digest, whatever is in it."""
        return self._path(sha256).exists()

    def remove(self, sha256: str) -> int:
        """Removes the file of a digest, if it is there. Returns the bytes that became free."""
        path = self._path(sha256)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return 0
        path.unlink(missing_ok=True)
        return size

    @contextlib.contextmanager
    def opened(self, sha256: str) -> Iterator[StoredRows]:
        """The rows of a digest, which stay readable in the block though the file be removed. Raises DataLoss."""
        from pyarrow import parquet

        with contextlib.ExitStack() as stack:
            with _damage(sha256):
                source = stack.enter_context(pa.OSFile(str(self._path(sha256))))
                # Pages are read when their rows are wanted, not all at once before.
                file = parquet.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)
                stack.enter_context(file)
                columns = StoredColumns.of_file(file.metadata.metadata)
            yield StoredRows(file, columns, sha256)

    def _write(self, path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> WrittenRows:
        from pyarrow import parquet

        digest, columns, rows = ContentDigest(schema), StoredColumns(schema), 0
        with contextlib.ExitStack() as stack:
            with _room():
                file = stack.enter_context(pa.OSFile(str(path), "wb"))
                writer = parquet.ParquetWriter(file, columns.stored, compression="zstd", write_page_checksum=True)
            # Its own end, when it is collected, must not write once more after a failure.
            stack.callback(setattr, writer, "is_open", False)
            for group in _groups(batches):
                digest.update(group)
                rows += group.num_rows
                stored = [columns.to_stored(batch) for batch in group.to_batches()]
                with _room():
                    writer.write_table(pa.Table.from_batches(stored, columns.stored), group.num_rows)
            with _room():
                writer.close()
                file.close()
        with _room(), path.open("rb") as whole:
            os.fsync(whole.fileno())
            size = os.fstat(whole.fileno()).st_size
        return WrittenRows(path, digest.hexdigest(), rows, size)

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}{SUFFIX}"


class StoredRows:
    """See RowSource: the rows of an open file. Whoever goes through them to the end knows that they are those of the
    digest; DataLoss ends them otherwise. One at a time may go through them."""

    def __init__(self, file: Any, columns: StoredColumns, sha256: str) -> None:
        self._file = file
        self._columns = columns
        self._sha256 = sha256

    @property
    def schema(self) -> pa.Schema:
        """See RowSource."""
        return self._columns.schema

    @property
    def num_rows(self) -> int:
        """See RowSource."""
        return int(self._file.metadata.num_rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See RowSource. Raises DataLoss."""
        digest = ContentDigest(self.schema)
        stored = self._file.iter_batches(BATCH_ROWS_MAX)
        while True:
            with _damage(self._sha256):
                batch = next(stored, None)
                if batch is None:
                    break
                batch = self._columns.from_stored(batch)
                digest.update(batch)
            if batch.num_rows:
                yield batch
        if digest.hexdigest() != self._sha256:
            raise DataLoss("the stored rows of the dataset do not match their digest", content_sha256=self._sha256)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether a row has all these values, by column; never, when a column is not there. Raises DataLoss."""
        if not all(name in self.schema.names for name in values):
            return False
        with _damage(self._sha256):
            for batch in self._file.iter_batches(BATCH_ROWS_MAX, columns=list(values)):
                found = [_equal(batch[name], value) for name, value in values.items()]
                if any(all(row) for row in zip(*(f.to_pylist() for f in found), strict=True)):
                    return True
        return False


@dataclass(frozen=True, slots=True, eq=False)
class SplitRows:
    """See RowSource: the rows of one split; DataLoss as the rows that they are chosen from."""

    whole: StoredRows
    split: str
    num_rows: int

    @property
    def schema(self) -> pa.Schema:
        """See RowSource."""
        return self.whole.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See RowSource."""
        for batch in self.whole.batches():
            chosen = batch.filter(pc.equal(batch[SPLIT], self.split))
            if chosen.num_rows:
                yield chosen


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows in tables of BATCH_ROWS_MAX rows or about BATCH_BYTES_MAX bytes, whichever comes first."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        for piece in _pieces(batch):
            if held and (rows + piece.num_rows > BATCH_ROWS_MAX or size + piece.nbytes > BATCH_BYTES_MAX):
                yield pa.Table.from_batches(held)
                held, rows, size = [], 0, 0
            held.append(piece)
            rows += piece.num_rows
            size += piece.nbytes
    if held:
        yield pa.Table.from_batches(held)


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if batch.num_rows:
        step = min(BATCH_ROWS_MAX, max(1, BATCH_BYTES_MAX * batch.num_rows // max(batch.nbytes, 1)))
        for start in range(0, batch.num_rows, step):
            yield batch.slice(start, step)


def _equal(array: pa.Array, value: Any) -> pa.Array:
    """Where the column has the value; nowhere, when it holds values of another kind."""
    if isinstance(value, str):
        of_its_kind, type = is_text(array.type), pa.large_string()
    elif isinstance(value, bool):
        of_its_kind, type = pa.types.is_boolean(array.type), pa.bool_()
    else:
        of_its_kind, type = pa.types.is_integer(array.type), array.type
    try:
        wanted = pa.scalar(value).cast(type) if of_its_kind else None
    except pa.ArrowInvalid:
        # A number that the column's type has no room for.
        wanted = None
    if wanted is None:
        return pa.repeat(False, len(array))
    return pc.fill_null(pc.equal(array.cast(type), wanted), False)


@contextlib.contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LimitExceeded("the dataset cannot be stored: no room left", limit="disk") from error


@contextlib.contextmanager
def _damage(sha256: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise DataLoss("the stored rows of the dataset cannot be read", content_sha256=sha256) from error
