"""Rows that writes kept apart, in pieces: Arrow IPC streams of a bounded size.

A piece is there for readers once a commit has its write number.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pyarrow as pa

from foresight.tables import arrow_type
from services.feature_store.groups import StoredGroup
from services.feature_store.reads.histories import BatchStream
from services.feature_store.tables.row_source import RowSource
from services.feature_store.writes.row_tables import EVENT_TIME
from services.runtime.database import Database
from services.runtime.threads import in_thread

# A piece at most; one row may be larger.
PIECE_ROWS = 8_192
PIECE_BYTES = 1 << 20

_KEEP = "INSERT INTO quarantine (write, piece, group_id, rows, arrow) VALUES ($1, $2, $3, $4, $5)"
# The numbers are written into it: COPY takes no parameters.
_PIECES = """
SELECT c.commit, q.arrow FROM quarantine q JOIN commits c ON c.write = q.write
WHERE q.group_id = {group_id:d} AND c.group_id = {group_id:d} AND c.commit > {after:d} AND c.commit <= {last:d}
ORDER BY c.commit, q.piece"""


class Quarantine:
    """Reads rows that were kept apart."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextlib.asynccontextmanager
    async def stream(self, stored: StoredGroup, after_commit: int, last_commit: int) -> AsyncIterator[BatchStream]:
        """The rows of the commits after one up to another, in order, with the columns of `quarantine_schema`.

        Holds one Arrow connection until it is closed.
        """
        statement = _PIECES.format(group_id=stored.id, after=after_commit, last=last_commit)
        async with self._database.arrow() as connection:
            cursor = connection.cursor()
            try:
                await in_thread(cursor.execute, statement)
                reader = await in_thread(cursor.fetch_record_batch)
                schema = quarantine_schema(stored)
                rows = _rows(reader, schema)
                yield BatchStream(schema, lambda: next(rows, None))
                await in_thread(reader.close)
            finally:
                await in_thread(cursor.close)


def keep_apart(connection: Any, stored: StoredGroup, write: int, rows: RowSource) -> None:
    """Adds the rows that a write keeps apart, within its transaction. Blocks."""
    number = 0
    for batch in rows.batches():
        for piece in _cut(batch):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, piece.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
                writer.write_batch(piece)
            values = (write, number, stored.id, piece.num_rows, sink.getvalue().to_pybytes())
            with connection.cursor() as cursor:
                cursor.execute(_KEEP, values)
            number += 1


def quarantine_schema(stored: StoredGroup) -> pa.Schema:
    """Keys, `event_time`, features, `deleted`, `commit`, `broken`."""
    group = stored.group
    fields = [(f.name, arrow_type(f)) for f in (*group.entity_keys, EVENT_TIME, *group.features)]
    return pa.schema([*fields, ("deleted", pa.bool_()), ("commit", pa.int64()), ("broken", pa.list_(pa.string()))])


def _rows(reader: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for pieces in reader:
        for commit, arrow in zip(pieces.column(0), pieces.column(1), strict=True):
            with pa.ipc.open_stream(arrow.as_buffer()) as piece:
                for batch in piece:
                    yield _completed(batch, schema, commit.as_py())


def _cut(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    rows = min(PIECE_ROWS, max(1, PIECE_BYTES * batch.num_rows // max(batch.nbytes, 1)))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _completed(batch: pa.RecordBatch, schema: pa.Schema, commit: int) -> pa.RecordBatch:
    """With the columns that the write left out, or that the group did not have then."""
    n = batch.num_rows
    made = {"deleted": pa.repeat(False, n), "commit": pa.repeat(pa.scalar(commit, pa.int64()), n)}
    there = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns = [there.get(f.name, made.get(f.name)) for f in schema]
    arrays = [pa.nulls(n, f.type) if c is None else c for f, c in zip(schema, columns, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
