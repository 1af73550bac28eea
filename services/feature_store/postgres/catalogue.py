"""Registered groups and views, read; `registrations.py` beside this one writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from foresight.values import FeatureGroup, FeatureView
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.registry.about import load_group_about, load_view_about
from services.feature_store.registry.search import CANDIDATES_MAX, Found, Query, results
from services.feature_store.registry.specs import load_group, load_view
from services.runtime.database import Database
from services.runtime.errors import NotFound
from services.runtime.threads import in_thread

GROUPS, VIEWS = "feature_groups", "feature_views"
KINDS = {GROUPS: "feature group", VIEWS: "feature view"}
LOADED_MAX = 1_024

# Statements for both tables; which of them is never input.
_COLUMNS = "id, name, version, created_at, etag, spec, about"
_VERSION = f"SELECT {_COLUMNS} FROM {{table}} WHERE name = :name AND version = :version AND NOT dropped"  # noqa: S608
_LATEST = f"SELECT {_COLUMNS} FROM {{table}} WHERE name = :name AND NOT dropped ORDER BY version DESC LIMIT 1"  # noqa: S608
_LIST = f"SELECT DISTINCT ON (name) {_COLUMNS} FROM {{table}} WHERE NOT dropped ORDER BY name, version DESC"  # noqa: S608
_BY_ID = f"SELECT {_COLUMNS} FROM feature_groups WHERE id = :id AND NOT dropped"  # noqa: S608
_DROPPED = f"SELECT {_COLUMNS} FROM feature_groups WHERE dropped AND dropped_by = ANY(:commits)"  # noqa: S608
_SEARCH = f"""
SELECT * FROM (
  SELECT DISTINCT ON (name) {_COLUMNS}, searched FROM {{table}} WHERE NOT dropped ORDER BY name, version DESC) AS latest
WHERE NOT EXISTS (SELECT 1 FROM unnest(CAST(:words AS text[])) AS word WHERE strpos(searched, word) = 0)
  AND (:owner = '' OR about::json->>'owner' = :owner)
  AND (:deprecated OR about::json->>'deprecation' = '')
  AND about::jsonb->'tags' ?& CAST(:keys AS text[])
  AND about::jsonb->'tags' @> CAST(:valued AS jsonb)
ORDER BY name LIMIT :limit"""  # noqa: S608


class Catalogue:
    """Groups and views in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Groups by id with their etag, as they are long to read; beyond LOADED_MAX anew.
        self._groups: dict[int, StoredGroup] = {}

    async def group(self, reference: Reference) -> StoredGroup:
        """A group version as it is now. Raises NotFound."""
        async with self._database.statements() as connection:
            return self._loaded(await existing_row(connection, GROUPS, reference))

    async def view(self, reference: Reference) -> FeatureView:
        """A view version as it is now. Raises NotFound."""
        async with self._database.statements() as connection:
            return load_view_row(await existing_row(connection, VIEWS, reference))

    async def groups(self) -> list[FeatureGroup]:
        """The latest version of every group, by name."""
        async with self._database.statements() as connection:
            rows = (await connection.execute(text(_LIST.format(table=GROUPS)))).mappings().all()
        return await in_thread(lambda: [load_group_row(row).group for row in rows])

    async def views(self) -> list[FeatureView]:
        """The latest version of every view, by name."""
        async with self._database.statements() as connection:
            rows = (await connection.execute(text(_LIST.format(table=VIEWS)))).mappings().all()
        return await in_thread(lambda: [load_view_row(row) for row in rows])

    async def group_by_id(self, group_id: int) -> StoredGroup:
        """The group version behind an id of the commit log, as it is now. Raises NotFound when it was dropped."""
        async with self._database.statements() as connection:
            row = (await connection.execute(text(_BY_ID), {"id": group_id})).mappings().one_or_none()
        if row is None:
            raise NotFound("feature group", f"with the id {group_id}")
        return self._loaded(row)

    async def dropped_by(self, commits: Sequence[int]) -> list[StoredGroup]:
        """The groups that were dropped by some of the commits."""
        async with self._database.statements() as connection:
            rows = (await connection.execute(text(_DROPPED), {"commits": list(commits)})).mappings().all()
        return [load_group_row(row) for row in rows]

    async def search(self, query: Query) -> list[Found]:
        """The latest versions of groups and views, and features, that a query finds, ranked."""
        parameters = _search_parameters(query)
        async with self._database.statements() as connection:
            groups = (await connection.execute(text(_SEARCH.format(table=GROUPS)), parameters)).mappings().all()
            views = (await connection.execute(text(_SEARCH.format(table=VIEWS)), parameters)).mappings().all()
        return await in_thread(_results, query, groups, views)

    async def visible_rows(self, group_id: int) -> int:
        """Rows of a group in all commits."""
        statement = text("SELECT coalesce(sum(rows), 0)::bigint FROM commits WHERE group_id = :id")
        async with self._database.statements() as connection:
            return int((await connection.execute(statement, {"id": group_id})).scalar_one())

    async def changes(self) -> int:
        """A number that grows with every change in place and every drop."""
        async with self._database.statements() as connection:
            return int((await connection.exec_driver_sql("SELECT changes FROM registry_state")).scalar_one())

    def _loaded(self, row: RowMapping) -> StoredGroup:
        known = self._groups.get(row["id"])
        if known is not None and known.group.etag == row["etag"]:
            return known
        if len(self._groups) >= LOADED_MAX:
            self._groups.clear()
        stored = self._groups[row["id"]] = load_group_row(row)
        return stored


async def find_row(
    connection: AsyncConnection, table: str, reference: Reference, *, lock: str = ""
) -> RowMapping | None:
    """The row of a version that was not dropped; version 0 is the latest. `lock` is a locking clause."""
    statement = (_VERSION if reference.version else _LATEST).format(table=table)
    parameters = {"name": reference.name} | ({"version": reference.version} if reference.version else {})
    return (await connection.execute(text(f"{statement} {lock}"), parameters)).mappings().one_or_none()


async def existing_row(connection: AsyncConnection, table: str, reference: Reference, *, lock: str = "") -> RowMapping:
    """As `find_row`. Raises NotFound."""
    row = await find_row(connection, table, reference, lock=lock)
    if row is None:
        raise NotFound(KINDS[table], str(reference))
    return row


def load_group_row(row: RowMapping) -> StoredGroup:
    """The group of a row."""
    group = load_group(row["name"], row["version"], row["created_at"], row["spec"], row["etag"])
    return StoredGroup(row["id"], load_group_about(group, row["about"]))


def load_view_row(row: RowMapping) -> FeatureView:
    """The view of a row."""
    view = load_view(row["name"], row["version"], row["created_at"], row["spec"], row["etag"])
    return load_view_about(view, row["about"])


def _search_parameters(query: Query) -> dict[str, object]:
    valued = {key: value for key, value in query.tags.items() if value}
    return {
        "words": query.words,
        "owner": query.owner,
        "deprecated": query.include_deprecated,
        "keys": list(query.tags),
        "valued": json.dumps(valued),
        "limit": CANDIDATES_MAX,
    }


def _results(query: Query, groups: Sequence[RowMapping], views: Sequence[RowMapping]) -> list[Found]:
    return results(query, [load_group_row(row).group for row in groups], [load_view_row(row) for row in views])
