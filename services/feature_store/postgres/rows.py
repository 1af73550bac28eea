"""Reading rows: a row is visible when the commit of its write number is at or below the watermark.

Bulk reads are Arrow over ADBC; its fast path (COPY) takes no parameters, so the numbers and instants of a filter are
written into the statement. They are numbers and instants by type, never text of a caller.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from foresight.tables import arrow_type
from foresight.values import Field
from services.feature_store.groups import StoredGroup
from services.feature_store.histories import BatchStream, EventTimes
from services.feature_store.postgres.row_tables import physical_names, table_of
from services.runtime.database import Database
from services.runtime.threads import in_thread

UTC_MICROS = pa.timestamp("us", "UTC")
KNOWN_AT = "coalesce(r.known_at, c.committed_at)"
_FIXED = {"event_time": "r.event_time", "known_at": KNOWN_AT, "commit": "c.commit", "deleted": "r.deleted"}


class RowReader:
    """Reads rows of groups."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def history(
        self, stored: StoredGroup, features: Sequence[str], watermark: int, times: EventTimes
    ) -> pa.Table:
        """All visible rows: keys, `event_time`, `known_at`, `commit`, `deleted`, then `features`."""
        keys = [key.name for key in stored.group.entity_keys]
        statement = _select(stored, [*keys, *_FIXED, *features], watermark, times)
        return await self._table(statement)

    async def of_writes(self, stored: StoredGroup, writes: Sequence[int]) -> pa.Table:
        """All columns of the rows of published writes, `commit` among them."""
        names = [f.name for f in stored.group.fields]
        statement = _select(stored, [*names, "event_time", "deleted", "commit"], None, EventTimes())
        numbers = ",".join(str(int(write)) for write in writes)
        return await self._table(f"{statement} AND r.write IN ({numbers})")

    @contextlib.asynccontextmanager
    async def stream(
        self, stored: StoredGroup, watermark: int, times: EventTimes, *, latest_only: bool
    ) -> AsyncIterator[BatchStream]:
        """The rows with all columns as `ReadFeatures` answers them, batch by batch.

        Every row in commit order; or the latest per key, without tombstones, in the order of keys. Holds one Arrow
        connection until it is closed.
        """
        group = stored.group
        keys = [f"k{i}" for i in range(len(group.entity_keys))]
        names = [
            *(f.name for f in group.entity_keys),
            "event_time",
            *(f.name for f in group.features),
            *("known_at", "commit", "deleted"),
        ]
        select = _select(stored, names, watermark, times)
        quoted = ", ".join(f'"{name}"' for name in names)
        if latest_only:
            order = f"{', '.join(f'r.{key}' for key in keys)}, r.event_time DESC, c.commit DESC"
            distinct = ", ".join(f"r.{key}" for key in keys)
            inner = select.replace("SELECT ", f"SELECT DISTINCT ON ({distinct}) ", 1)
            statement = f"SELECT {quoted} FROM ({inner} ORDER BY {order}) AS latest WHERE NOT deleted"  # noqa: S608
        else:
            statement = f"{select} ORDER BY c.commit, r.event_time, {', '.join(f'r.{key}' for key in keys)}"
        schema = result_schema(group.entity_keys, group.features)
        async with self._database.arrow() as connection:
            cursor = connection.cursor()
            try:
                reader = await in_thread(_open_reader, cursor, statement)

                def read_next() -> pa.RecordBatch | None:
                    try:
                        batch = reader.read_next_batch()
                    except StopIteration:
                        return None
                    columns = [_as(column, field.type) for column, field in zip(batch.columns, schema, strict=True)]
                    return pa.record_batch(columns, schema=schema)

                yield BatchStream(schema, read_next)
                await in_thread(reader.close)
            finally:
                await in_thread(cursor.close)

    async def _table(self, statement: str) -> pa.Table:
        return await self._database.in_arrow(_fetch, statement)


def result_schema(keys: Sequence[Field], features: Sequence[Field]) -> pa.Schema:
    """Schema of what ReadFeatures answers: keys, event_time, features, known_at, commit, deleted."""
    fields = [(f.name, arrow_type(f)) for f in keys]
    fields.append(("event_time", UTC_MICROS))
    fields.extend((f.name, arrow_type(f)) for f in features)
    fields.extend([("known_at", UTC_MICROS), ("commit", pa.int64()), ("deleted", pa.bool_())])
    return pa.schema(fields)


def instant_sql(instant: datetime) -> str:
    """An instant as a literal."""
    return f"'{instant.isoformat()}'::timestamptz"


def _select(stored: StoredGroup, names: Sequence[str], watermark: int | None, times: EventTimes) -> str:
    physical = physical_names(stored.group)
    columns = ", ".join(f'{_FIXED.get(name) or "r." + physical[name]} AS "{name}"' for name in names)
    conditions = [f"c.group_id = {stored.id:d}"]
    if watermark is not None:
        conditions.append(f"c.commit <= {watermark:d}")
    if times.first is not None:
        conditions.append(f"r.event_time >= {instant_sql(times.first)}")
    if times.end is not None:
        conditions.append(f"r.event_time {'<=' if times.inclusive else '<'} {instant_sql(times.end)}")
    table = table_of(stored.id)
    # Names of columns are letters, digits and underscores; everything else is a number or an instant.
    return (
        f"SELECT {columns} FROM {table} r JOIN commits c ON c.write = r.write "  # noqa: S608
        f"WHERE {' AND '.join(conditions)}"
    )


def _fetch(connection: Any, statement: str) -> pa.Table:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        table: pa.Table = cursor.fetch_arrow_table()
    # Drops the driver's notes on the fields, which would make equal schemas differ.
    return pa.table([_as_plain(column) for column in table.columns], names=table.column_names)


def _open_reader(cursor: Any, statement: str) -> Any:
    cursor.execute(statement)
    return cursor.fetch_record_batch()


def _as(column: pa.Array, type: pa.DataType) -> pa.Array:
    return column if column.type == type else column.cast(type)


def _as_plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.list_(pa.float32())) if pa.types.is_list(column.type) else column
