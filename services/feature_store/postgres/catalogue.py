"""Registered groups and views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from foresight.values import FeatureGroup, FeatureView, Field
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.postgres.row_tables import add_column_statements, create_statements
from services.feature_store.specs import dump_group, dump_view, load_group, load_view
from services.runtime.database import Database
from services.runtime.errors import NotFound

# One statement for both tables; which of them is never input.
_FIND = "SELECT id, name, version, spec, created_at FROM {table} WHERE name = :name AND version = :version"
_LATEST = "SELECT id, name, version, spec, created_at FROM {table} WHERE name = :name ORDER BY version DESC LIMIT 1"
_LIST = "SELECT DISTINCT ON (name) id, name, version, spec, created_at FROM {table} ORDER BY name, version DESC"
# Waits for a registration that is under way, and inserts nothing when it won.
_ADD = (
    "INSERT INTO {table} (name, version, spec, created_at) VALUES (:name, :version, :spec, now()) "
    "ON CONFLICT (name, version) DO NOTHING RETURNING id, name, version, spec, created_at"
)
_GROUPS, _VIEWS = "feature_groups", "feature_views"
LOADED_MAX = 1_024


class Catalogue:
    """Groups and views in the database; versions are allocated here and never change."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Groups by id with the text that they were read from, which is long to read; beyond LOADED_MAX anew.
        self._groups: dict[int, tuple[str, StoredGroup]] = {}

    async def group(self, reference: Reference) -> StoredGroup:
        """A group version. Raises NotFound."""
        async with self._database.statements() as connection:
            row = await _find(connection, _GROUPS, reference)
        if row is None:
            raise NotFound("feature group", str(reference))
        return self._loaded(row)

    async def view(self, reference: Reference) -> FeatureView:
        """A view version. Raises NotFound."""
        async with self._database.statements() as connection:
            row = await _find(connection, _VIEWS, reference)
        if row is None:
            raise NotFound("feature view", str(reference))
        return _view(row)

    async def groups(self) -> list[FeatureGroup]:
        """The latest version of every group, by name."""
        async with self._database.statements() as connection:
            rows = (await connection.execute(text(_LIST.format(table=_GROUPS)))).mappings().all()
        return [_stored_group(row).group for row in rows]

    async def views(self) -> list[FeatureView]:
        """The latest version of every view, by name."""
        async with self._database.statements() as connection:
            rows = (await connection.execute(text(_LIST.format(table=_VIEWS)))).mappings().all()
        return [_view(row) for row in rows]

    async def group_by_id(self, group_id: int) -> StoredGroup:
        """The group version behind an id of the commit log."""
        statement = text("SELECT id, name, version, spec, created_at FROM feature_groups WHERE id = :id")
        async with self._database.statements() as connection:
            row = (await connection.execute(statement, {"id": group_id})).mappings().one()
        return self._loaded(row)

    async def register_group(self, group: FeatureGroup) -> tuple[StoredGroup, bool]:
        """The group as registered and whether it is new; its table is made in the same transaction.

        A derived group has one version, which is answered whatever its content is.
        """
        async with self._database.transaction() as connection:
            row, created = await _register(connection, _GROUPS, group.name, dump_group(group), single=group.derived)
            stored = _stored_group(row)
            if created:
                for statement in create_statements(stored.id, stored.group):
                    await connection.exec_driver_sql(statement)
        return stored, created

    async def register_view(self, view: FeatureView) -> tuple[FeatureView, bool]:
        """The view as registered and whether it is new."""
        async with self._database.transaction() as connection:
            row, created = await _register(connection, _VIEWS, view.name, dump_view(view))
        return _view(row), created

    async def add_features(self, stored: StoredGroup, fields: Sequence[Field]) -> StoredGroup:
        """Adds those `fields` to a derived group that it does not have yet; old rows read NULL there."""
        lock = text("SELECT id, name, version, spec, created_at FROM feature_groups WHERE id = :id FOR UPDATE")
        update = text("UPDATE feature_groups SET spec = :spec WHERE id = :id")
        async with self._database.transaction() as connection:
            now = _stored_group((await connection.execute(lock, {"id": stored.id})).mappings().one())
            known = {f.name for f in now.group.fields}
            added = [f for f in fields if f.name not in known]
            group = replace(now.group, features=(*now.group.features, *added))
            await connection.execute(update, {"id": stored.id, "spec": dump_group(group)})
            for statement in add_column_statements(stored.id, group, added):
                await connection.exec_driver_sql(statement)
        return StoredGroup(stored.id, group)

    async def visible_rows(self, group_id: int) -> int:
        """Rows of a group in all commits."""
        statement = text("SELECT coalesce(sum(rows), 0)::bigint FROM commits WHERE group_id = :id")
        async with self._database.statements() as connection:
            return int((await connection.execute(statement, {"id": group_id})).scalar_one())

    def _loaded(self, row: RowMapping) -> StoredGroup:
        known = self._groups.get(row["id"])
        if known is not None and known[0] == row["spec"]:
            return known[1]
        if len(self._groups) >= LOADED_MAX:
            self._groups.clear()
        stored = _stored_group(row)
        self._groups[stored.id] = (row["spec"], stored)
        return stored


async def _find(connection: AsyncConnection, table: str, reference: Reference) -> RowMapping | None:
    statement = (_FIND if reference.version else _LATEST).format(table=table)
    parameters = {"name": reference.name} | ({"version": reference.version} if reference.version else {})
    return (await connection.execute(text(statement), parameters)).mappings().one_or_none()


async def _register(
    connection: AsyncConnection, table: str, name: str, spec: str, *, single: bool = False
) -> tuple[RowMapping, bool]:
    """The latest version when its content is `spec` (or it is the `single` one), else the next version; a lost race
    goes round again."""
    while True:
        latest = await _find(connection, table, Reference(name))
        if latest is not None and (single or latest["spec"] == spec):
            return latest, False
        version = latest["version"] + 1 if latest is not None else 1
        parameters = {"name": name, "version": version, "spec": spec}
        added = (await connection.execute(text(_ADD.format(table=table)), parameters)).mappings().one_or_none()
        if added is not None:
            return added, True


def _stored_group(row: RowMapping) -> StoredGroup:
    return StoredGroup(row["id"], load_group(row["name"], row["version"], row["created_at"], row["spec"]))


def _view(row: RowMapping) -> FeatureView:
    return load_view(row["name"], row["version"], row["created_at"], row["spec"])
