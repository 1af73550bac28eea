"""Removing the rows of an entity, a bounded part per transaction; what was removed is counted in the same one.

A commit that loses rows keeps its number, and its count says what is left of it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from foresight.values import Column, DataType
from services.feature_store.erasure.erasures import Entity, WayInView, view_keys
from services.feature_store.groups import StoredGroup
from services.feature_store.postgres.row_tables import physical_names, table_of
from services.runtime.database import Database
from services.runtime.threads import in_thread

# Rows of one transaction, and keys that are told at once.
ROWS_PER_TRANSACTION = 20_000
KEYS_PER_BATCH = 10_000
PIECES_PER_TRANSACTION = 16

_COUNT = """
INSERT INTO erased_rows AS e (number, group_id, rows, first_commit)
SELECT {number}, {group_id}, gone.rows, gone.first FROM
  (SELECT count(*) AS rows, min(c.commit) AS first FROM {gone} JOIN commits c USING (write)) AS gone
WHERE gone.rows > 0
ON CONFLICT (number, group_id) DO UPDATE
  SET rows = e.rows + excluded.rows, first_commit = least(e.first_commit, excluded.first_commit)"""
_CORRECT = """
UPDATE commits c SET rows = c.rows - lost.rows
FROM (SELECT write, count(*) AS rows FROM {gone} GROUP BY write) AS lost WHERE c.write = lost.write"""
_TYPES = {DataType.INT64: "bigint", DataType.STRING: "text", DataType.BOOL: "boolean"}
_PIECES = text(
    """
    SELECT q.write, q.piece, q.arrow FROM quarantine q JOIN commits c ON c.write = q.write
    WHERE q.group_id = :group_id AND c.commit <= :commit AND (q.write, q.piece) > (:write, :piece)
    ORDER BY q.write, q.piece LIMIT :limit
    """
)
_DELETE_PIECE = text("DELETE FROM quarantine WHERE write = :write AND piece = :piece")
_REWRITE_PIECE = text("UPDATE quarantine SET arrow = :arrow, rows = :rows WHERE write = :write AND piece = :piece")
_COUNT_APART = text(
    """
    UPDATE commits SET quarantined_rows = quarantined_rows - :rows, expectations = :expectations WHERE write = :write
    """
)
_EXPECTATIONS = text("SELECT expectations FROM commits WHERE write = :write FOR UPDATE")


class ErasedRowTables:
    """Removes rows of groups."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def remove(self, number: int, stored: StoredGroup, entity: Entity, commit: int) -> int:
        """Removes the next rows of an entity in the commits up to one; answers how many, 0 when none is left."""
        conditions = _conditions(stored, entity.keys)
        doomed = f"""
          SELECT r.ctid AS place FROM {table_of(stored.id)} r JOIN commits c ON c.write = r.write
          WHERE {conditions} AND c.commit <= {commit:d} LIMIT {ROWS_PER_TRANSACTION:d}"""  # noqa: S608 - names are checked, values bound
        statement = _removing(number, stored.id, doomed, [], [])
        async with self._database.transaction() as connection:
            return int((await connection.execute(text(statement), _values(entity.keys))).scalar_one())

    async def remove_predictions(
        self,
        number: int,
        predictions: StoredGroup,
        outcomes: StoredGroup | None,
        entity: Entity,
        way: WayInView,
        served_before: datetime,
    ) -> int:
        """Removes the next logged predictions with some values of the view's keys, with their outcomes; answers how
        many predictions, 0 when none is left."""
        columns = view_keys(entity, way)
        names = physical_names(predictions.group)
        if any(column.name not in names for column in columns):
            return 0
        table = table_of(predictions.id)
        doomed = f"""
          SELECT r.ctid AS place, r.k0 AS id FROM {table} r
          WHERE {_conditions(predictions, columns)} AND r.{names["log_served_at"]} < :served_before
          LIMIT {ROWS_PER_TRANSACTION:d}"""  # noqa: S608 - as above
        others, counted = [], []
        if outcomes is not None:
            others.append(
                f"told AS (DELETE FROM {table_of(outcomes.id)} o USING doomed "  # noqa: S608
                "WHERE hashtextextended(o.k0, 0) = hashtextextended(doomed.id, 0) AND o.k0 = doomed.id "
                "RETURNING o.write)"
            )
            counted.append((outcomes.id, "told"))
        statement = _removing(number, predictions.id, doomed, others, counted)
        values = _values(columns) | {"served_before": served_before}
        async with self._database.transaction() as connection:
            return int((await connection.execute(text(statement), values)).scalar_one())

    async def remove_quarantined(
        self, stored: StoredGroup, entity: Entity, commit: int, after: tuple[int, int]
    ) -> tuple[int, int] | None:
        """Removes the entity's rows from the next pieces of rows that were kept apart; answers the last piece, or None
        when there is none."""
        asked = {"group_id": stored.id, "commit": commit, "write": after[0], "piece": after[1]}
        async with self._database.transaction() as connection:
            found = await connection.execute(_PIECES, asked | {"limit": PIECES_PER_TRANSACTION})
            pieces = found.mappings().all()
            for piece in pieces:
                rewritten = await in_thread(_without, piece["arrow"], entity)
                if rewritten is not None:
                    await _replace_piece(connection, piece["write"], piece["piece"], *rewritten)
        return (pieces[-1]["write"], pieces[-1]["piece"]) if pieces else None


async def keys_of_entity(
    connection: AsyncConnection, stored: StoredGroup, entity: Entity, commit: int
) -> AsyncIterator[tuple[Column, ...]]:
    """The distinct keys of a group that are the entity's in the commits up to one, batch by batch."""
    keys = stored.group.entity_keys
    columns = ", ".join(f"r.k{i}" for i in range(len(keys)))
    statement = (
        f"SELECT DISTINCT {columns} FROM {table_of(stored.id)} r JOIN commits c ON c.write = r.write "  # noqa: S608
        f"WHERE {_conditions(stored, entity.keys)} AND c.commit <= {commit:d}"
    )
    result = await connection.stream(text(statement), _values(entity.keys))
    async for rows in result.partitions(KEYS_PER_BATCH):
        found = zip(keys, zip(*rows, strict=True), strict=True)
        yield tuple(Column.build(key.name, key.type, values) for key, values in found)


def _removing(
    number: int, group_id: int, doomed: str, others: Sequence[str], counted: Sequence[tuple[int, str]]
) -> str:
    """A statement that deletes rows at the places of `doomed`, counts them, and answers how many they were."""
    parts = [
        f"doomed AS MATERIALIZED ({doomed})",
        f"gone AS (DELETE FROM {table_of(group_id)} r USING doomed WHERE r.ctid = doomed.place RETURNING r.write)",  # noqa: S608
        *others,
    ]
    for i, (group, gone) in enumerate([(group_id, "gone"), *counted]):
        parts.append(f"counted{i} AS ({_COUNT.format(number=number, group_id=group, gone=gone)})")
    lost = " UNION ALL ".join(f"SELECT write FROM {gone}" for gone in ("gone", *(gone for _, gone in counted)))  # noqa: S608
    parts.append(f"lost AS ({lost})")
    parts.append(f"corrected AS ({_CORRECT.format(gone='lost')})")
    return f"WITH {', '.join(parts)} SELECT count(*) FROM gone"  # noqa: S608


def _conditions(stored: StoredGroup, columns: Sequence[Column]) -> str:
    """That a row has the values of columns; texts in the key index are hashes."""
    names = physical_names(stored.group)
    keys = {key.name for key in stored.group.entity_keys}
    conditions = []
    for i, column in enumerate(columns):
        mine, value = f"r.{names[column.name]}", f"CAST(:v{i} AS {_TYPES[column.type]})"
        conditions.append(f"{mine} = {value}")
        if column.type is DataType.STRING and column.name in keys:
            conditions.append(f"hashtextextended({mine}, 0) = hashtextextended({value}, 0)")
    return " AND ".join(conditions)


def _values(columns: Sequence[Column]) -> dict[str, Any]:
    return {f"v{i}": column.python(0) for i, column in enumerate(columns)}


async def _replace_piece(
    connection: AsyncConnection, write: int, piece: int, arrow: bytes, kept: int, removed: int
) -> None:
    place = {"write": write, "piece": piece}
    if kept:
        await connection.execute(_REWRITE_PIECE, place | {"arrow": arrow, "rows": kept})
    else:
        await connection.execute(_DELETE_PIECE, place)
    expectations = (await connection.execute(_EXPECTATIONS, {"write": write})).scalar_one()
    without = _without_samples(expectations)
    await connection.execute(_COUNT_APART, {"write": write, "rows": removed, "expectations": without})


def _without(arrow: bytes, entity: Entity) -> tuple[bytes, int, int] | None:
    """The piece without the entity's rows, how many are left and how many went; None when it has none of them."""
    with pa.ipc.open_stream(arrow) as reader:
        table = reader.read_all()
    if not {column.name for column in entity.keys} <= set(table.column_names):
        return None
    mine = None
    for column in entity.keys:
        equal = pc.fill_null(pc.equal(table[column.name], pa.scalar(column.python(0))), False)
        mine = equal if mine is None else pc.and_(mine, equal)
    kept = table.filter(pc.invert(mine))
    if kept.num_rows == table.num_rows:
        return None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, kept.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(kept.combine_chunks())
    return sink.getvalue().to_pybytes(), kept.num_rows, table.num_rows - kept.num_rows


def _without_samples(expectations: str | None) -> str | None:
    """What is said about expectations without the values that broke them."""
    if not expectations:
        return expectations
    content = json.loads(expectations)
    for broken in content.get("broken", ()):
        broken["samples"] = []
    return json.dumps(content)
