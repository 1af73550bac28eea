"""The commit log: which commits there are, and new ones; see `writing`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from services.feature_store.commits import Commit, CursorMove, PublishedCommit, RowsToWrite, StagedRows, WriteOrigin
from services.feature_store.groups import StoredGroup
from services.feature_store.postgres.writing import reingest, write_rows
from services.runtime.database import Database

_LAST_BY = "SELECT commit FROM commits WHERE committed_at <= $1 ORDER BY committed_at DESC LIMIT 1"


class CommitLog:
    """Writes commits and says which there are."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, stored: StoredGroup, rows: RowsToWrite, origin: WriteOrigin) -> Commit:
        """Publishes rows as one commit.

        With a write id: the same id with the same group and content answers the first commit as a duplicate, without
        a look at the position of a pipeline. Raises AlreadyExists for an id that was used with others, StaleEtag for a
        pipeline that has another position, LimitExceeded for rows that cannot be stored, NotFound for a group that was
        dropped meanwhile, and what `rows` raise. A write without rows only moves the position.
        """
        return await self._database.in_arrow(write_rows, stored, rows, origin)

    async def reingest(self, staged: Sequence[StagedRows], move: CursorMove) -> list[Commit]:
        """Publishes one commit per element and moves the cursor, all or nothing. Raises CursorMoved."""
        return await self._database.in_arrow(reingest, staged, move)

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
