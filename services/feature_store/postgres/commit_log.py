"""The commit log: rows are copied in under a write number, then published by the last statements of the transaction.

The single row of `commit_state` is locked only by those, so that writers copy side by side, and commit numbers
become visible in order: a later number is given out only after the transaction of the former ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import adbc_driver_manager as adbc
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from services.feature_store.commits import Commit, CursorMove, CursorMoved, PublishedCommit, StagedRows
from services.feature_store.postgres.row_tables import physical_names, table_of
from services.runtime.database import Database
from services.runtime.errors import AlreadyExists, LimitExceeded

UNIQUE_VIOLATION = "23505"
# Such as a row that is larger than a page although its long values are stored elsewhere.
PROGRAM_LIMIT = "54"

_START = """
SELECT nextval('write_numbers'), c.commit, c.committed_at, c.rows, c.group_id, c.content
FROM (SELECT 1) AS one LEFT JOIN commits c ON c.write_id = $1"""
# now() is the start of the transaction and would run backwards; the former time is read under the lock.
_PUBLISH = """
WITH taken AS (
  UPDATE commit_state SET last_commit = last_commit + 1,
    last_time = greatest(clock_timestamp(), last_time + interval '1 microsecond'),
    write_bound = greatest(write_bound, $1::bigint)
  RETURNING last_commit, last_time, write_bound)
INSERT INTO commits (commit, write, write_bound, group_id, committed_at, rows, write_id, content, latest_event_time)
SELECT last_commit, $1::bigint, write_bound, $2::bigint, last_time, $3::bigint, nullif($4, ''), nullif($5, ''),
  $6::timestamptz
FROM taken
RETURNING commit, committed_at"""
_LAST_BY = "SELECT commit FROM commits WHERE committed_at <= $1 ORDER BY committed_at DESC LIMIT 1"
_MOVE_CURSOR = """
UPDATE log_cursor SET cursor = $2::bigint, predictions = predictions + $3::bigint, outcomes = outcomes + $4::bigint
WHERE cursor = $1::bigint RETURNING cursor"""


class CommitLog:
    """Writes commits and says which there are."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, staged: StagedRows, write_id: str = "", content: str = "") -> Commit:
        """Publishes rows as one commit.

        With a write id: the same id with the same group and content answers the first commit as a duplicate.
        Raises AlreadyExists for an id that was used with others, LimitExceeded for rows that cannot be stored.
        """
        return await self._database.in_arrow(_write, staged, write_id, content)

    async def reingest(self, staged: Sequence[StagedRows], move: CursorMove) -> list[Commit]:
        """Publishes one commit per element and moves the cursor, all or nothing. Raises CursorMoved."""
        return await self._database.in_arrow(_reingest, staged, move)

    async def last(self) -> int:
        """Number of the last commit, 0 without any. No lower number appears later."""
        async with self._database.statements() as connection:
            return int((await connection.exec_driver_sql("SELECT last_commit FROM commit_state")).scalar_one())

    async def last_by(self, instant: datetime) -> int:
        """Number of the last commit that was published by then, 0 for none; none can be published by then later."""
        async with self._database.transaction() as connection:
            # A commit that is being published has its time already; it holds this lock until it is visible.
            await connection.exec_driver_sql("SELECT last_commit FROM commit_state FOR SHARE")
            return int((await connection.exec_driver_sql(_LAST_BY, (instant,))).scalar_one_or_none() or 0)

    async def after(self, commit: int, limit: int) -> list[PublishedCommit]:
        """The next commits after one, in order, at most `limit`."""
        statement = "SELECT commit, write, group_id, rows FROM commits WHERE commit > $1 ORDER BY commit LIMIT $2"
        async with self._database.statements() as connection:
            rows = (await connection.exec_driver_sql(statement, (commit, limit))).mappings().all()
        return [PublishedCommit(row["commit"], row["write"], row["group_id"], row["rows"]) for row in rows]

    async def cursor(self) -> tuple[int, int, int]:
        """The cursor of log reingestion, and the predictions and outcomes reingested so far."""
        statement = "SELECT cursor, predictions, outcomes FROM log_cursor"
        async with self._database.statements() as connection:
            row = (await connection.exec_driver_sql(statement)).mappings().one()
        return row["cursor"], row["predictions"], row["outcomes"]


def _write(connection: Any, staged: StagedRows, write_id: str, content: str) -> Commit:
    try:
        write, known = _start(connection, staged, write_id, content)
        if known is not None:
            return known
        _copy(connection, staged, write)
        commit = _publish(connection, staged, write, write_id, content)
        connection.commit()
    except adbc.Error as error:
        state = getattr(error, "sqlstate", None) or ""
        if state == UNIQUE_VIOLATION and write_id:
            # The same write came twice at once and the other one was faster.
            connection.rollback()
            _, known = _start(connection, staged, write_id, content)
            if known is not None:
                return known
        if state.startswith(PROGRAM_LIMIT):
            raise LimitExceeded("a row is too large to be stored", limit="row_bytes") from error
        raise
    return commit


def _reingest(connection: Any, staged: Sequence[StagedRows], move: CursorMove) -> list[Commit]:
    numbered = [(rows, _start(connection, rows, "", "")[0]) for rows in staged]
    for rows, write in numbered:
        _copy(connection, rows, write)
    with connection.cursor() as cursor:
        cursor.execute(_MOVE_CURSOR, (move.before, move.after, move.predictions, move.outcomes))
        if cursor.fetchone() is None:
            raise CursorMoved
    commits = [_publish(connection, rows, write, "", "") for rows, write in numbered]
    connection.commit()
    return commits


def _start(connection: Any, staged: StagedRows, write_id: str, content: str) -> tuple[int, Commit | None]:
    """A fresh write number, and the commit that was published under the write id before, if any."""
    with connection.cursor() as cursor:
        cursor.execute(_START, (write_id,))
        write, number, committed_at, rows, group_id, known_content = cursor.fetchone()
    if number is None:
        return write, None
    if group_id != staged.group.id or known_content != content:
        raise AlreadyExists("the write id was used before with other rows", write_id=write_id)
    return write, Commit(number, _utc(committed_at), rows, duplicate=True)


def _copy(connection: Any, staged: StagedRows, write: int) -> None:
    names = physical_names(staged.group.group)
    rows = staged.rows.rename_columns([names.get(name, name) for name in staged.rows.column_names])
    rows = rows.append_column("write", pa.array(np.full(rows.num_rows, write, np.int64)))
    with connection.cursor() as cursor:
        cursor.adbc_ingest(table_of(staged.group.id), rows, mode="append")


def _publish(connection: Any, staged: StagedRows, write: int, write_id: str, content: str) -> Commit:
    with connection.cursor() as cursor:
        latest = pc.max(staged.rows["event_time"]).as_py()
        cursor.execute(_PUBLISH, (write, staged.group.id, staged.rows.num_rows, write_id, content, latest))
        number, committed_at = cursor.fetchone()
    return Commit(number, _utc(committed_at), staged.rows.num_rows)


def _utc(instant: datetime) -> datetime:
    return instant.astimezone(UTC)
