"""The sink: tables that reports read. A run's rows appear in one transaction, and replace those of its repetition."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from sqlalchemy import text

from services.runtime.database import Database
from services.runtime.errors import FailedPrecondition
from services.runtime.threads import in_thread

# Lists come from float vectors only.
_TYPES = (
    (pa.types.is_int64, "bigint", "bigint"),
    (pa.types.is_float64, "double precision", "double precision"),
    (pa.types.is_boolean, "boolean", "boolean"),
    (pa.types.is_string, "text", "text"),
    (pa.types.is_large_string, "text", "text"),
    (pa.types.is_timestamp, "timestamptz", "timestamp with time zone"),
    (pa.types.is_list, "real[]", "ARRAY"),
    (pa.types.is_fixed_size_list, "real[]", "ARRAY"),
)
_FLOATS = pa.list_(pa.float32())


class Sink:
    """The schema `sink` of a database, which is opened at the first write."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ready = False

    async def write(self, table: str, run_id: str, rows: pa.Table) -> None:
        """Replaces the rows of a run, and makes the table if there is none; `table` is a checked name.

        Raises FailedPrecondition when the table is there with other columns, Unavailable.
        """
        if not self._ready:
            await self._create_schema()
            self._ready = True
        async with self._database.arrow() as connection:
            await in_thread(_write, connection, self._database.schema, table, run_id, rows)

    async def _create_schema(self) -> None:
        schema = self._database.schema
        async with self._database.transaction() as connection:
            exists = text("SELECT 1 FROM pg_namespace WHERE nspname = :schema")
            # Asked first: a role that may not create schemas can still use one made for it.
            if (await connection.execute(exists, {"schema": schema})).scalar() is None:
                await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))


def _write(connection: Any, schema: str, table: str, run_id: str, rows: pa.Table) -> None:
    with connection.cursor() as cursor:
        # Writers of one table take turns, its creation included.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", (f"sink {table}",))
        cursor.fetchall()
        _ensure_table(cursor, schema, table, rows.schema)
        cursor.execute(f'DELETE FROM "{schema}"."{table}" WHERE run_id = $1', (run_id,))  # noqa: S608 - checked name
        if rows.num_rows:
            cursor.adbc_ingest(table, _with_lists(rows), mode="append", db_schema_name=schema)
    connection.commit()


def _ensure_table(cursor: Any, schema: str, table: str, columns: pa.Schema) -> None:
    cursor.execute(
        "SELECT column_name::text, data_type::text FROM information_schema.columns "
        "WHERE table_schema = $1 AND table_name = $2",
        (schema, table),
    )
    present = dict(cursor.fetchall())
    wanted = {field.name: _type(field.type) for field in columns}
    if not present:
        declared = ", ".join(f'"{name}" {ddl}' for name, (ddl, _) in wanted.items())
        cursor.execute(f'CREATE TABLE "{schema}"."{table}" ({declared})')
        cursor.execute(f'CREATE INDEX ON "{schema}"."{table}" (run_id)')
    elif present != {name: known for name, (_, known) in wanted.items()}:
        different = sorted(
            name for name in present.keys() | wanted.keys() if present.get(name) != wanted.get(name, ("", None))[1]
        )
        raise FailedPrecondition(
            f"the sink table {table} has other columns than this run writes: {', '.join(different)[:300]}"
        )


def _type(type: pa.DataType) -> tuple[str, str]:
    """PostgreSQL's type for an Arrow type, and its name in the information schema."""
    for test, ddl, known in _TYPES:
        if test(type):
            return ddl, known
    raise AssertionError(f"a feature cannot be {type}")


def _with_lists(rows: pa.Table) -> pa.Table:
    """The table with vectors as lists of any length, which is what PostgreSQL's arrays are."""
    fields = [
        f.with_type(_FLOATS) if pa.types.is_fixed_size_list(f.type) or pa.types.is_list(f.type) else f
        for f in rows.schema
    ]
    return rows.cast(pa.schema(fields))
