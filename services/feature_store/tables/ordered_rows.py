"""Rows that are made out of order and read back in it, and sources of rows put side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from services.feature_store.tables.row_source import BATCH_ROWS_MAX
from services.feature_store.tables.spill import PartitionedRows, Spill

ROW = "row"


class OrderedRows:
    """A row source whose rows are written in any order, each once, with their numbers 0 to n - 1.

    They lie in ranges of numbers, which are put in order one by one as they are read.
    """

    def __init__(self, spill: Spill, schema: pa.Schema, range_rows: int = BATCH_ROWS_MAX) -> None:
        self.schema = schema
        self._range_rows = min(range_rows, BATCH_ROWS_MAX)
        self._parts: PartitionedRows = spill.partitions(schema.append(pa.field(ROW, pa.int64())))

    @property
    def num_rows(self) -> int:
        """See RowSource."""
        return sum(self._parts.count(part) for part in self._parts.partitions())

    def write(self, batch: pa.RecordBatch) -> None:
        """Takes rows of the schema with their numbers in a last column `row`. Blocks; raises LimitExceeded."""
        self._parts.write(batch, np.asarray(batch.column(ROW)) // self._range_rows)

    def finish(self) -> None:
        """Ends the writing; reading comes after it."""
        self._parts.finish()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See RowSource."""
        for part in self._parts.partitions():
            (batch,) = self._parts.read(part).combine_chunks().to_batches()
            numbers = np.asarray(batch.column(ROW))
            if (np.diff(numbers) < 0).any():
                batch = batch.take(pa.array(np.argsort(numbers)))
            yield batch.select(self.schema.names)


@dataclass(frozen=True, slots=True)
class _Cursor:
    """What is left of a batch."""

    batch: pa.RecordBatch
    start: int

    @property
    def left(self) -> int:
        return int(self.batch.num_rows) - self.start


def side_by_side(sources: Sequence[Iterator[pa.RecordBatch]]) -> Iterator[list[pa.RecordBatch]]:
    """Batches of all sources with the same rows; the sources have equally many rows."""
    cursors: list[_Cursor | None] = [None] * len(sources)
    while True:
        for i, source in enumerate(sources):
            if cursors[i] is None:
                batch = next(source, None)
                if batch is None:
                    return
                cursors[i] = _Cursor(batch, 0)
        present = [cursor for cursor in cursors if cursor is not None]
        count = min(cursor.left for cursor in present)
        yield [cursor.batch.slice(cursor.start, count) for cursor in present]
        for i, cursor in enumerate(present):
            cursors[i] = None if cursor.left == count else _Cursor(cursor.batch, cursor.start + count)
