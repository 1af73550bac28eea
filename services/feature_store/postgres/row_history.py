"""The latest rows as of an earlier commit, found by the key index."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from foresight.values import Column, DataType, micros_from_instant
from services.feature_store.groups import StoredGroup
from services.feature_store.online.store import FoundRow, FoundRows, KeyQuery
from services.feature_store.postgres.commit_log import CommitLog
from services.feature_store.postgres.row_tables import key_expressions, table_of
from services.runtime.database import Database

# The planner multiplies the selectivity of a key with that of its hash, and would sort instead of reading in order.
_IN_INDEX_ORDER = "SELECT " + ", ".join(
    f"set_config('enable_{method}', 'off', true)"
    for method in ("hashjoin", "mergejoin", "sort", "bitmapscan", "seqscan", "material")
)
_WRITE_BOUND = "SELECT coalesce(max(write_bound), 0) FROM commits WHERE commit = $1"
# No row of those commits is later: the scan need not pass over what came after them.
_LATEST = "SELECT max(latest_event_time) FROM commits WHERE group_id = $1 AND commit <= $2"
_ARRAYS = {DataType.INT64: "bigint[]", DataType.STRING: "text[]", DataType.BOOL: "boolean[]"}


class RowHistoryReader:
    """Replays look-ups of the online store from offline rows."""

    def __init__(self, database: Database, commits: CommitLog) -> None:
        self._database = database
        self._commits = commits

    async def last(self) -> int:
        """Number of the last commit."""
        return await self._commits.last()

    async def lookup(self, queries: Sequence[KeyQuery], applied_commit: int) -> list[FoundRows]:
        """For each query the latest row per entity by (event time, commit) among commits up to `applied_commit`."""
        async with self._database.transaction() as connection:
            await connection.exec_driver_sql(_IN_INDEX_ORDER)
            bound = (await connection.exec_driver_sql(_WRITE_BOUND, (applied_commit,))).scalar_one()
            return [await _latest(connection, query, applied_commit, bound) for query in queries]


async def _latest(connection: AsyncConnection, query: KeyQuery, applied_commit: int, write_bound: int) -> FoundRows:
    latest = (await connection.exec_driver_sql(_LATEST, (query.group.id, applied_commit))).scalar_one()
    entities = list(zip(*(_values(column) for column in query.keys), strict=True))
    if latest is None:
        return FoundRows.of([None] * len(entities), query.group.group.features)
    # Requests often ask for the same entity in many rows; each is looked up once.
    positions: dict[tuple[Any, ...], int] = {}
    asked = [positions.setdefault(entity, len(positions)) for entity in entities]
    found: list[FoundRow | None] = [None] * len(positions)
    keys = (list(values) for values in zip(*positions, strict=True))
    parameters = (*keys, applied_commit, write_bound, latest)
    result = await connection.exec_driver_sql(_statement(query.group), parameters)
    features = query.group.group.features
    for position, event_time, commit, deleted, *raw in map(tuple[Any, ...], result):
        values = tuple(_value(value, f.type) for value, f in zip(raw, features, strict=True))
        found[position - 1] = FoundRow(micros_from_instant(event_time), commit, deleted, values)
    return FoundRows.of([found[position] for position in asked], features)


def _statement(stored: StoredGroup) -> str:
    """One index scan per entity, backwards from the latest event time that a commit up to the watermark has.

    Rows of later commits are passed over: most by the bound on their write number, in the index; the rest by their
    commit.
    """
    keys = stored.group.entity_keys
    arrays = ", ".join(f"${i}::{_ARRAYS[key.type]}" for i, key in enumerate(keys, 1))
    asked = ", ".join(f"k{i}" for i in range(len(keys)))
    equal = [f"r.k{i} = asked.k{i}" for i in range(len(keys))]
    # The index holds hashes of texts.
    pairs = zip(key_expressions(keys, "r."), key_expressions(keys, "asked."), strict=True)
    equal += [f"{mine} = {theirs}" for mine, theirs in pairs if mine.startswith("hash")]
    features = "".join(f", r.f{i}" for i in range(len(stored.group.features)))
    return (
        f"SELECT asked.position, latest.* FROM unnest({arrays}) WITH ORDINALITY AS asked ({asked}, position) "  # noqa: S608
        f"CROSS JOIN LATERAL (SELECT r.event_time, c.commit, r.deleted{features} "
        f"FROM {table_of(stored.id)} r JOIN commits c ON c.write = r.write "
        f"WHERE {' AND '.join(equal)} AND c.commit <= ${len(keys) + 1} AND r.write <= ${len(keys) + 2} "
        f"AND r.event_time <= ${len(keys) + 3} "
        "ORDER BY r.event_time DESC, c.commit DESC LIMIT 1) AS latest"
    )


def _values(column: Column) -> list[Any]:
    return [value if column.is_valid(i) else None for i, value in enumerate(column.values.tolist())]


def _value(value: Any, type: DataType) -> Any:
    return micros_from_instant(value) if isinstance(value, datetime) else value
