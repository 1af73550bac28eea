"""Reading rows: a row is visible when the commit of its write number is at or below the watermark.

Bulk reads are Arrow over ADBC; its fast path (COPY) takes no parameters, so the values of a filter are written into
the statement: numbers and instants by type, texts of a caller escaped (see `row_filters`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import adbc_driver_manager as adbc
import pyarrow as pa
from sqlalchemy.exc import DBAPIError

from foresight.tables import arrow_type
from foresight.values import Column, FeatureGroup, Field
from services.feature_store.groups import StoredGroup
from services.feature_store.postgres.row_filters import conditions_sql, keys_join_sql
from services.feature_store.postgres.row_tables import physical_names, table_of
from services.feature_store.reads.histories import BatchStream, EventTimes, history_schema
from services.feature_store.reads.queries import Condition, GroupQuery, SpineQuery
from services.feature_store.writes.row_tables import EVENT_TIME
from services.runtime.database import Database
from services.runtime.errors import NotFound
from services.runtime.threads import in_thread

UTC_MICROS = pa.timestamp("us", "UTC")
KNOWN_AT = "coalesce(r.known_at, c.committed_at)"
_FIXED = {"event_time": "r.event_time", "known_at": KNOWN_AT, "commit": "c.commit", "deleted": "r.deleted"}

# How long the size of a table is taken for what it is, and of how many tables.
SIZE_KNOWN_S = 10.0
SIZES_MAX = 1_024
_UNDEFINED_TABLE = "42P01"
_COUNT = "SELECT coalesce(sum(rows), 0) FROM commits WHERE group_id = $1 AND commit <= $2"


class RowReader:
    """Reads rows of groups."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sizes: dict[int, tuple[float, int]] = {}

    async def history_within(
        self,
        stored: StoredGroup,
        features: Sequence[str],
        watermark: int,
        times: EventTimes,
        *,
        rows_max: int,
        bytes_max: int,
        keys: tuple[Column, ...] = (),
    ) -> pa.Table | None:
        """All visible rows: keys, `event_time`, `known_at`, `commit`, `deleted`, then `features`; None for more rows
        or bytes. `keys`: only of these."""
        schema = history_schema(stored.group, features)
        statement = _select(stored, schema.names, watermark, times, keys=keys)
        try:
            with _still_there(stored):
                return await self._database.in_arrow(_fetch_within, statement, schema, rows_max, bytes_max)
        except _TooMany:
            return None

    @contextlib.asynccontextmanager
    async def history_stream(
        self, stored: StoredGroup, features: Sequence[str], watermark: int, times: EventTimes
    ) -> AsyncIterator[BatchStream]:
        """The same rows, batch by batch. Holds one Arrow connection until it is closed."""
        schema = history_schema(stored.group, features)
        statement = _select(stored, schema.names, watermark, times)
        with _still_there(stored):
            async with streamed(self._database, statement, schema) as batches:
                yield batches

    async def size_bytes(self, stored: StoredGroup) -> int:
        """Size of a group's table as it was at most SIZE_KNOWN_S ago."""
        now = time.monotonic()
        known = self._sizes.get(stored.id)
        if known is None or now - known[0] > SIZE_KNOWN_S:
            with _still_there(stored):
                async with self._database.statements() as connection:
                    found = await connection.exec_driver_sql(
                        "SELECT pg_relation_size($1::text::regclass)", (table_of(stored.id),)
                    )
                    known = now, int(found.scalar_one())
            if len(self._sizes) >= SIZES_MAX:
                self._sizes.clear()
            self._sizes[stored.id] = known
        return known[1]

    async def count(self, stored: StoredGroup, watermark: int) -> int:
        """The rows of a group, all versions of them."""
        async with self._database.statements() as connection:
            return int((await connection.exec_driver_sql(_COUNT, (stored.id, watermark))).scalar_one())

    async def of_writes(self, stored: StoredGroup, writes: Sequence[int]) -> pa.Table:
        """All columns of the rows of published writes, `commit` among them."""
        names = [f.name for f in stored.group.fields]
        statement = _select(stored, [*names, "event_time", "deleted", "commit"], None, EventTimes())
        numbers = ",".join(str(int(write)) for write in writes)
        return await self._table(f"{statement} AND r.write IN ({numbers})")

    @contextlib.asynccontextmanager
    async def stream(self, stored: StoredGroup, query: GroupQuery, watermark: int) -> AsyncIterator[BatchStream]:
        """The rows of a query with all columns as `ReadFeatures` answers them, batch by batch.

        Every row in commit order; or the latest per key, without tombstones, in the order of keys. Holds one Arrow
        connection until it is closed.
        """
        group = stored.group
        schema = result_schema(group.entity_keys, group.features)
        if query.latest_only:
            statement = _select_distinct(stored, query, [(name, name) for name in schema.names], watermark)
        else:
            keys = query.key_columns(group)
            rows = _select(stored, schema.names, watermark, query.times, keys=keys, where=query.where)
            statement = f"{rows} ORDER BY c.commit, r.event_time, {', '.join(_key_columns(group))}"
        with _still_there(stored):
            async with streamed(self._database, statement, schema) as batches:
                yield batches

    @contextlib.asynccontextmanager
    async def spine(
        self, stored: StoredGroup, query: SpineQuery, columns: Sequence[tuple[str, str]], watermark: int
    ) -> AsyncIterator[BatchStream]:
        """The rows of a query as a spine with `columns`, as (column of the group, name in the spine).

        Without tombstones and rows that a later commit corrected at the same event time; in the order of keys and event
        time. Holds one Arrow connection until it is closed.
        """
        fields = {f.name: f for f in (*stored.group.fields, EVENT_TIME)}
        schema = pa.schema([(name, arrow_type(fields[column])) for column, name in columns])
        statement = _select_distinct(stored, query.query, columns, watermark, at=query.at)
        with _still_there(stored):
            async with streamed(self._database, statement, schema) as batches:
                yield batches

    async def _table(self, statement: str) -> pa.Table:
        return await self._database.in_arrow(_fetch, statement)


def result_schema(keys: Sequence[Field], features: Sequence[Field]) -> pa.Schema:
    """Schema of what ReadFeatures answers: keys, event_time, features, known_at, commit, deleted."""
    fields = [(f.name, arrow_type(f)) for f in keys]
    fields.append(("event_time", UTC_MICROS))
    fields.extend((f.name, arrow_type(f)) for f in features)
    fields.extend([("known_at", UTC_MICROS), ("commit", pa.int64()), ("deleted", pa.bool_())])
    return pa.schema(fields)


@contextlib.asynccontextmanager
async def streamed(database: Database, statement: str, schema: pa.Schema) -> AsyncIterator[BatchStream]:
    """The result of a statement, with the types of a schema. Holds one Arrow connection until it is closed."""
    async with database.arrow() as connection:
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


@contextlib.contextmanager
def _still_there(stored: StoredGroup) -> Iterator[None]:
    """A block that reads the table of a group. Raises NotFound when the group was dropped since it was looked up, which
    may be long ago where reads wait for one another."""
    try:
        yield
    except (adbc.Error, DBAPIError) as error:
        state = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)
        if state != _UNDEFINED_TABLE:
            raise
        raise NotFound("feature group", f"{stored.group.name} version {stored.group.version}") from None


def instant_sql(instant: datetime) -> str:
    """An instant as a literal."""
    return f"'{instant.isoformat()}'::timestamptz"


def _select_distinct(
    stored: StoredGroup,
    query: GroupQuery,
    columns: Sequence[tuple[str, str]],
    watermark: int,
    *,
    at: datetime | None = None,
) -> str:
    """The latest row per key, or per key and event time, where it is no tombstone and the conditions hold for it.

    `columns` are (column of the group, name). With `at` that is what `event_time` reads, and later rows are left out.
    """
    group = stored.group
    settled = {key.name for key in group.entity_keys} | (set() if query.latest_only else {"event_time"})
    # What is the same for all rows that one is chosen from can be asked before, in reach of the indexes.
    before = tuple(c for c in query.where if c.column in settled)
    after = tuple(c for c in query.where if c.column not in settled)
    names = [*dict.fromkeys([*(column for column, _ in columns), *(c.column for c in after), "deleted"])]
    times = query.times
    if at is not None and (times.end is None or at < times.end):
        times = EventTimes(times.first, at, inclusive=True)
    rows = _select(stored, names, watermark, times, keys=query.key_columns(group), where=before)
    by = [*_key_columns(group), *([] if query.latest_only else ["r.event_time"])]
    order = [*by, *(["r.event_time DESC"] if query.latest_only else []), "c.commit DESC"]
    distinct = rows.replace("SELECT ", f"SELECT DISTINCT ON ({', '.join(by)}) ", 1)
    wanted = [
        f'{instant_sql(at)} AS "{name}"' if at is not None and name == "event_time" else f'"{column}" AS "{name}"'
        for column, name in columns
    ]
    conditions = ["NOT deleted", *conditions_sql(after, {name: f'"{name}"' for name in names})]
    return (
        f"SELECT {', '.join(wanted)} FROM ({distinct} ORDER BY {', '.join(order)}) AS found "  # noqa: S608
        f"WHERE {' AND '.join(conditions)}"
    )


def select_versions(
    stored: StoredGroup,
    columns: Mapping[str, str],
    watermark: int | None,
    times: EventTimes,
    *,
    keys: Sequence[Column] = (),
    where: Sequence[Condition] = (),
) -> str:
    """All versions of rows within `times` with `columns` (name: column of the group), of these keys (in the order of
    the group's; none: of all) that fulfil the conditions."""
    physical = {name: f"r.{column}" for name, column in physical_names(stored.group).items()} | _FIXED
    listed = ", ".join(f'{physical[column]} AS "{name}"' for name, column in columns.items())
    conditions = [f"c.group_id = {stored.id:d}"]
    if watermark is not None:
        conditions.append(f"c.commit <= {watermark:d}")
    if times.first is not None:
        conditions.append(f"r.event_time >= {instant_sql(times.first)}")
    if times.end is not None:
        conditions.append(f"r.event_time {'<=' if times.inclusive else '<'} {instant_sql(times.end)}")
    conditions += conditions_sql(where, physical)
    asked = keys_join_sql(stored.group, keys)
    # Names of columns are letters, digits and underscores; everything else is a number, an instant or escaped.
    return (
        f"SELECT {listed} FROM {table_of(stored.id)} r JOIN commits c ON c.write = r.write{asked} "  # noqa: S608
        f"WHERE {' AND '.join(conditions)}"
    )


def _select(
    stored: StoredGroup,
    names: Sequence[str],
    watermark: int | None,
    times: EventTimes,
    *,
    keys: Sequence[Column] = (),
    where: Sequence[Condition] = (),
) -> str:
    return select_versions(stored, {name: name for name in names}, watermark, times, keys=keys, where=where)


def _key_columns(group: FeatureGroup) -> list[str]:
    return [f"r.k{i}" for i in range(len(group.entity_keys))]


def _fetch(connection: Any, statement: str) -> pa.Table:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        table: pa.Table = cursor.fetch_arrow_table()
    # Drops the driver's notes on the fields, which would make equal schemas differ.
    return pa.table([_as_plain(column) for column in table.columns], names=table.column_names)


class _TooMany(Exception):
    """There are more rows than are wanted. It ends the connection, which would have to read the others."""


def _fetch_within(connection: Any, statement: str, schema: pa.Schema, rows_max: int, bytes_max: int) -> pa.Table:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        batches, rows, size = [], 0, 0
        with cursor.fetch_record_batch() as reader:
            for batch in reader:
                rows, size = rows + batch.num_rows, size + batch.nbytes
                if rows > rows_max or size > bytes_max:
                    raise _TooMany
                batches.append(batch)
            table = pa.Table.from_batches(batches, reader.schema)
    return pa.table(
        [
            column if column.type == field.type else column.cast(field.type)
            for column, field in zip(table.columns, schema, strict=True)
        ],
        schema=schema,
    )


def _open_reader(cursor: Any, statement: str) -> Any:
    cursor.execute(statement)
    return cursor.fetch_record_batch()


def _as(column: pa.Array, type: pa.DataType) -> pa.Array:
    return column if column.type == type else column.cast(type)


def _as_plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.list_(pa.float32())) if pa.types.is_list(column.type) else column
