"""Tables of any size: in memory while they are small, in a file beyond that.

What moves rows in bulk (uploads, writes, joins, datasets) takes a `RowSource` and goes through it batch by batch, as
often as it needs, so that memory stays bounded whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

# Rows and bytes of a batch at most, where this code cuts them.
BATCH_ROWS_MAX = 65_536
BATCH_BYTES_MAX = 32 << 20


class RowSource(Protocol):
    """Rows that can be gone through more than once. Its methods block."""

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        ...

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        ...

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in order, from the first, at most BATCH_ROWS_MAX in a batch; none is empty."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TableRows:
    """Rows in memory."""

    table: pa.Table

    @property
    def schema(self) -> pa.Schema:
        """See RowSource."""
        return self.table.schema

    @property
    def num_rows(self) -> int:
        """See RowSource."""
        return int(self.table.num_rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See RowSource."""
        return (batch for batch in self.table.to_batches(BATCH_ROWS_MAX) if batch.num_rows)


@dataclass(frozen=True, slots=True, eq=False)
class FileRows:
    """Rows in an Arrow IPC file (the random-access format) that somebody else owns and removes."""

    path: Path
    schema: pa.Schema
    num_rows: int

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See RowSource. Reads the file batch by batch; pages of what was read can be dropped at any time."""
        with pa.OSFile(str(self.path)) as file, pa.ipc.open_file(file) as reader:
            for i in range(reader.num_record_batches):
                yield from _cut(reader.get_batch(i))


def write_rows(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> FileRows:
    """Writes batches to a new file. Raises OSError when the disk is full; the caller removes what is there then."""
    rows = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            if batch.num_rows:
                writer.write_batch(batch)
                rows += batch.num_rows
    return FileRows(path, schema, rows)


def read_all(rows: RowSource) -> pa.Table:
    """The rows as one table in memory: for those that are known to be few."""
    if isinstance(rows, TableRows):
        return rows.table
    return pa.Table.from_batches(list(rows.batches()), rows.schema)


def _cut(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, BATCH_ROWS_MAX):
        yield batch.slice(start, BATCH_ROWS_MAX)
