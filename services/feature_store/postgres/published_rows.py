"""Rows for the online store: those of published writes, and the latest per key."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import adbc_driver_manager as adbc
import pyarrow as pa

from foresight.tables import arrow_type
from foresight.values import FeatureGroup
from services.feature_store.groups import StoredGroup
from services.feature_store.postgres.row_tables import physical_names, table_of
from services.feature_store.reads.histories import BatchStream
from services.feature_store.tables.row_source import RowSource, TableRows, write_rows
from services.feature_store.tables.scratch import ScratchFolder
from services.runtime.database import Database
from services.runtime.errors import NotFound
from services.runtime.threads import in_thread

_UNDEFINED_TABLE = "42P01"
# More rows than this go through a file.
MEMORY_ROWS_MAX = 250_000
_FIXED = {"event_time": "r.event_time", "deleted": "r.deleted", "commit": "c.commit"}


class PublishedRowReader:
    """Reads what the online store needs."""

    def __init__(self, database: Database, scratch: ScratchFolder, memory_rows: int = MEMORY_ROWS_MAX) -> None:
        self._database = database
        self._scratch = scratch
        self._memory_rows = memory_rows

    @contextlib.asynccontextmanager
    async def of_writes(self, stored: StoredGroup, writes: Sequence[int], rows: int) -> AsyncIterator[RowSource]:
        """Keys, features, `event_time`, `deleted` and `commit` of the rows of published writes, about `rows` of them.

        Many of them lie in a file until the end of the block.
        """
        numbers = ",".join(str(int(write)) for write in writes)
        statement = f"{_select(stored.group, stored.id)} WHERE r.write IN ({numbers})"
        if rows <= self._memory_rows:
            yield TableRows(await self._database.in_arrow(_fetch, statement))
            return
        path = self._scratch.new_path()
        try:
            yield await self._database.in_arrow(_fetch_into, statement, row_schema(stored.group), path)
        finally:
            await in_thread(path.unlink, missing_ok=True)

    async def group_ids(self, watermark: int) -> Sequence[int]:
        """The groups that have commits up to `watermark`."""
        statement = "SELECT DISTINCT group_id FROM commits WHERE commit <= $1 ORDER BY group_id"
        async with self._database.statements() as connection:
            return (await connection.exec_driver_sql(statement, (watermark,))).scalars().all()

    @contextlib.asynccontextmanager
    async def latest(self, stored: StoredGroup, watermark: int) -> AsyncIterator[BatchStream]:
        """The latest row per key among commits up to `watermark`, tombstones too: they keep late rows out.

        Holds one Arrow connection until it is closed. Raises NotFound for a group that was dropped.
        """
        keys = ", ".join(f"r.k{i}" for i in range(len(stored.group.entity_keys)))
        select = _select(stored.group, stored.id).replace("SELECT ", f"SELECT DISTINCT ON ({keys}) ", 1)
        statement = f"{select} WHERE c.commit <= {watermark:d} ORDER BY {keys}, r.event_time DESC, c.commit DESC"
        schema = row_schema(stored.group)
        async with self._database.arrow() as connection:
            cursor = connection.cursor()
            try:
                try:
                    reader = await in_thread(_open, cursor, statement)
                except adbc.ProgrammingError as error:
                    if error.sqlstate != _UNDEFINED_TABLE:
                        raise
                    raise NotFound("feature group", stored.group.name) from error
                yield BatchStream(schema, lambda: next(_cast(reader, schema), None))
                await in_thread(reader.close)
            finally:
                await in_thread(cursor.close)


def row_schema(group: FeatureGroup) -> pa.Schema:
    """Keys, features, `event_time`, `deleted`, `commit`."""
    fields = [(f.name, arrow_type(f)) for f in group.fields]
    return pa.schema(
        [*fields, ("event_time", pa.timestamp("us", "UTC")), ("deleted", pa.bool_()), ("commit", pa.int64())]
    )


def _select(group: FeatureGroup, group_id: int) -> str:
    physical = {name: f"r.{column}" for name, column in physical_names(group).items()} | _FIXED
    # Names of columns are letters, digits and underscores; everything else is a number.
    columns = ", ".join(f'{sql} AS "{name}"' for name, sql in physical.items())
    return f"SELECT {columns} FROM {table_of(group_id)} r JOIN commits c ON c.write = r.write"  # noqa: S608


def _open(cursor: Any, statement: str) -> Any:
    cursor.execute(statement)
    return cursor.fetch_record_batch()


def _cast(reader: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for batch in reader:
        columns = [c if c.type == f.type else c.cast(f.type) for c, f in zip(batch.columns, schema, strict=True)]
        yield pa.record_batch(columns, schema=schema)


def _fetch(connection: Any, statement: str) -> pa.Table:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        table: pa.Table = cursor.fetch_arrow_table()
    # The driver's lists of vectors have no fixed length, and its fields have notes.
    columns = [c.cast(pa.list_(pa.float32())) if pa.types.is_list(c.type) else c for c in table.columns]
    return pa.table(columns, names=table.column_names)


def _fetch_into(connection: Any, statement: str, schema: pa.Schema, path: Any) -> RowSource:
    with connection.cursor() as cursor:
        reader = _open(cursor, statement)
        try:
            return write_rows(path, schema, _cast(reader, schema))
        finally:
            reader.close()
