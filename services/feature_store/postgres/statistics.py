"""Kept statistics, and which commits a group has."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.feature_store.commits import PublishedCommit
from services.feature_store.statistics.description import Statistics
from services.feature_store.statistics.tables import dump_statistics, load_statistics
from services.feature_store.statistics.targets import Subject
from services.runtime.database import Database

# Statistics of latest rows and of windows are kept for the newest so many per group; the others are bounded by what
# they are of.
KEPT_MAX = {"latest": 16, "log": 256}

_LAST_OF = """
SELECT commit, write, group_id, rows FROM commits WHERE group_id = :group_id AND commit <= :at_most
ORDER BY commit DESC LIMIT 1"""
_SAME = """kind = :kind AND group_id = :group_id AND dataset_id = :dataset_id AND commit = :commit
  AND selection = :selection"""
_FIND = f"SELECT content FROM statistics WHERE {_SAME}"  # noqa: S608 (only constants)
# Waits for a forgetting that is under way and then sees its count; one that comes later waits and removes this row.
_ERASURES_HELD = "SELECT erasures FROM statistics_state FOR SHARE"
_KEEP = """
INSERT INTO statistics (kind, group_id, dataset_id, commit, selection, content, computed_at)
VALUES (:kind, :group_id, :dataset_id, :commit, :selection, :content, clock_timestamp())
ON CONFLICT (kind, group_id, dataset_id, commit, selection)
DO UPDATE SET content = excluded.content, computed_at = excluded.computed_at"""
_TRIM = """
DELETE FROM statistics WHERE id IN (
  SELECT id FROM statistics WHERE kind = :kind AND group_id = :group_id
  ORDER BY computed_at DESC, id DESC OFFSET :kept)"""
_FORGET = """
DELETE FROM statistics WHERE group_id = ANY(CAST(:group_ids AS bigint[]))
  OR dataset_id = ANY(CAST(:dataset_ids AS text[]))"""


class StatisticsTable:
    """Keeps statistics of subjects; those of datasets have group 0, those of groups no dataset."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, subject: Subject) -> Statistics | None:
        """What was kept of a subject, if anything."""
        async with self._database.statements() as connection:
            content = (await connection.execute(text(_FIND), _key(subject))).scalar_one_or_none()
        return None if content is None else load_statistics(content)

    async def erasures(self) -> int:
        """How often statistics were forgotten; read before the rows are."""
        async with self._database.statements() as connection:
            return int((await connection.execute(text("SELECT erasures FROM statistics_state"))).scalar_one())

    async def keep(self, subject: Subject, statistics: Statistics, erasures: int) -> bool:
        """Keeps statistics, and so many of their kind as there may be; not when some were forgotten since `erasures`
        was read, for they may show what is gone."""
        key = _key(subject)
        async with self._database.transaction() as connection:
            if (await connection.execute(text(_ERASURES_HELD))).scalar_one() != erasures:
                return False
            await connection.execute(text(_KEEP), key | {"content": dump_statistics(statistics)})
            kept = KEPT_MAX.get(subject.kind)
            if kept is not None:
                group = {"kind": key["kind"], "group_id": key["group_id"], "kept": kept}
                await connection.execute(text(_TRIM), group)
        return True

    async def forget(self, group_ids: Sequence[int], dataset_ids: Sequence[str]) -> int:
        """Removes all statistics of groups and datasets, and how many that were; what is being computed from rows read
        before is not kept either. Call it once the rows are gone."""
        async with self._database.transaction() as connection:
            return await forget_statistics(connection, group_ids, dataset_ids)


async def forget_statistics(connection: AsyncConnection, group_ids: Sequence[int], dataset_ids: Sequence[str]) -> int:
    """As `StatisticsTable.forget`, in the transaction that removes the rows."""
    await connection.execute(text("UPDATE statistics_state SET erasures = erasures + 1"))
    ids = {"group_ids": list(group_ids), "dataset_ids": list(dataset_ids)}
    return int((await connection.execute(text(_FORGET), ids)).rowcount)


class GroupCommitTable:
    """Which commits a group has."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def last_of(self, group_id: int, at_most: int) -> PublishedCommit | None:
        """The group's last commit up to a number."""
        async with self._database.statements() as connection:
            found = await connection.execute(text(_LAST_OF), {"group_id": group_id, "at_most": at_most})
            row = found.mappings().one_or_none()
        return None if row is None else PublishedCommit(row["commit"], row["write"], row["group_id"], row["rows"])


def _key(subject: Subject) -> dict[str, object]:
    return {
        "kind": subject.kind,
        "group_id": 0 if subject.group is None else subject.group.id,
        "dataset_id": subject.dataset_id,
        "commit": subject.commit,
        "selection": subject.selection,
    }
