"""Registering, changing and dropping groups and views: each a transaction that has locked what it is about.

Registrations of one name take turns by an advisory lock, also of a name that is not there yet; changes of a version
lock its row. A view holds the rows of its groups until it is there (`record_uses`), and a drop locks the row before it
asks for users: one of both comes first, and the other one sees it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import RowMapping, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from foresight.values import Column, FeatureGroup, FeatureView, Field
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.logs.log_groups import view_of_group
from services.feature_store.postgres.catalogue import (
    GROUPS,
    KINDS,
    VIEWS,
    existing_row,
    find_row,
    load_group_row,
    load_view_row,
)
from services.feature_store.postgres.lineage import forget_uses, record_uses, refuse_when_used
from services.feature_store.postgres.row_tables import add_column_statements, create_statements, table_of
from services.feature_store.postgres.statistics import forget_statistics
from services.feature_store.registry.about import (
    GroupAbout,
    ViewAbout,
    dump_group_about,
    dump_view_about,
    searched_in,
)
from services.feature_store.registry.lineage import Thing, ThingKind
from services.feature_store.registry.registrations import registered_group, registered_view, with_features
from services.feature_store.registry.specs import dump_group, dump_view
from services.runtime.database import Database
from services.runtime.errors import FailedPrecondition, StaleEtag, Unavailable
from services.runtime.ids import new_id

# Others may read the row, and point at it; nobody else may change it.
_LOCK = "FOR NO KEY UPDATE"
_TURN = "SELECT pg_advisory_xact_lock(hashtextextended(:table || ' ' || :name, 0))"
_RETURNING = "RETURNING id, name, version, created_at, etag, spec, about"
# Versions of what was dropped are not given out again.
_ADD = f"""
INSERT INTO {{table}} (name, version, created_at, etag, spec, about, searched)
SELECT :name, coalesce(max(version), 0) + 1, now(), :etag, :spec, :about, :searched FROM {{table}} WHERE name = :name
{_RETURNING}"""  # noqa: S608 - one of two tables
_PUT = f"""
UPDATE {{table}} SET etag = :etag, spec = :spec, about = :about, searched = :searched WHERE id = :id
{_RETURNING}"""  # noqa: S608
_DROP_VIEW = "UPDATE feature_views SET dropped = true, etag = :etag WHERE id = :id"
# Rows that were kept apart, and what is remembered of writes without rows.
_FORGET_ROWS = (
    "DELETE FROM quarantine WHERE group_id = :id",
    "DELETE FROM empty_writes WHERE group_id = :id",
)
_CHANGED = "UPDATE registry_state SET changes = changes + 1"
# A change of a table waits for those who read and write it, and everybody else waits behind it meanwhile.
PATIENCE_S = 3.0
_LOCK_NOT_AVAILABLE = "55P03"
# What was published of a dropped group stays in the order of commits, without rows; the drop itself is the last of
# its commits, so that online stores follow in order.
_WITHOUT_ROWS = "UPDATE commits SET rows = 0 WHERE group_id = :id AND rows > 0"
_PUBLISH_DROP = """
WITH taken AS (
  UPDATE commit_state SET last_commit = last_commit + 1,
    last_time = greatest(clock_timestamp(), last_time + interval '1 microsecond')
  RETURNING last_commit, last_time, write_bound),
published AS (
  INSERT INTO commits (commit, write, write_bound, group_id, committed_at, rows, latest_event_time)
  SELECT last_commit, nextval('write_numbers'), write_bound, :id, last_time, 0, '-infinity' FROM taken
  RETURNING commit)
UPDATE feature_groups SET dropped = true, etag = :etag, dropped_by = commit FROM published WHERE id = :id"""


class Registrations:
    """Writes groups and views."""

    def __init__(self, database: Database, patience_s: float = PATIENCE_S) -> None:
        self._database = database
        self._patience = f"SET LOCAL lock_timeout = {round(patience_s * 1_000)}"

    async def register_group(self, asked: FeatureGroup) -> tuple[StoredGroup, bool]:
        """The group as registered and whether it is a new version; its table is made in the same transaction.

        A derived group has one version, which is answered whatever its content is. Raises StaleEtag.
        """
        async with self._database.transaction() as connection:
            row = await _latest(connection, GROUPS, asked.name, asked.etag)
            if row is not None:
                latest = load_group_row(row)
                after = latest.group if asked.derived else registered_group(latest.group, asked)
                if after is not None:
                    return load_group_row(await _put(connection, GROUPS, row, *_group_texts(after))), False
            added = load_group_row(
                await _add(connection, GROUPS, asked.name, *_group_texts(replace(asked, defaults={})))
            )
            for statement in create_statements(added.id, added.group):
                await connection.exec_driver_sql(statement)
        return added, True

    async def register_view(self, asked: FeatureView) -> tuple[FeatureView, bool]:
        """The view, as derived from its groups, as registered, and whether it is a new version.

        Raises StaleEtag, NotFound when one of its groups was dropped meanwhile.
        """
        async with self._database.transaction() as connection:
            row = await _latest(connection, VIEWS, asked.name, asked.etag)
            if row is not None:
                after = registered_view(load_view_row(row), asked)
                if after is not None:
                    return load_view_row(await _put(connection, VIEWS, row, *_view_texts(after))), False
            added = load_view_row(await _add(connection, VIEWS, asked.name, *_view_texts(asked)))
            groups = [Thing(ThingKind.FEATURE_GROUP, s.group, s.group_version) for s in asked.sources]
            await record_uses(connection, Thing(ThingKind.FEATURE_VIEW, added.name, added.version), groups)
        return added, True

    async def update_group(self, reference: Reference, about: GroupAbout, etag: str) -> StoredGroup:
        """The group with what is said about it now. Raises NotFound, StaleEtag, InvalidValue."""
        async with self._database.transaction() as connection:
            row = await _locked(connection, GROUPS, reference, etag)
            after = about.put_on(load_group_row(row).group)
            return load_group_row(await _put(connection, GROUPS, row, *_group_texts(after)))

    async def update_view(self, reference: Reference, about: ViewAbout, etag: str) -> FeatureView:
        """The view with what is said about it now. Raises NotFound, StaleEtag, InvalidValue."""
        async with self._database.transaction() as connection:
            row = await _locked(connection, VIEWS, reference, etag)
            return load_view_row(await _put(connection, VIEWS, row, *_view_texts(about.put_on(load_view_row(row)))))

    async def add_features(
        self, reference: Reference, fields: Sequence[Field], defaults: Mapping[str, Column], etag: str
    ) -> StoredGroup:
        """Adds features with defaults in place; see `registrations.with_features`.

        Raises NotFound, StaleEtag, FailedPrecondition for a derived group, Unavailable when long reads or writes of
        the group leave no gap.
        """

        def widened(group: FeatureGroup) -> FeatureGroup:
            if group.derived:
                raise FailedPrecondition(f"{group.name} is filled by reingestion, which adds its features")
            return with_features(group, fields, defaults)

        return await self._widen(reference, etag, widened)

    async def widen_derived(
        self, reference: Reference, fields: Sequence[Field], defaults: Mapping[str, Column]
    ) -> StoredGroup:
        """Adds those `fields` to a derived group that it does not have yet; old rows read the default, else NULL."""

        def widened(group: FeatureGroup) -> FeatureGroup:
            known = {f.name for f in group.fields}
            added = tuple(f for f in fields if f.name not in known)
            its = {f.name: defaults[f.name] for f in added if f.name in defaults}
            return replace(group, features=(*group.features, *added), defaults={**group.defaults, **its})

        return await self._widen(reference, "", widened)

    async def drop_group(self, reference: Reference, etag: str) -> int:
        """Removes a group version with its rows; answers how many there were.

        Raises NotFound, StaleEtag, FailedPrecondition that names the users, or the view whose log fills it.
        """
        async with self._database.transaction() as connection:
            row = await _locked(connection, GROUPS, reference, etag)
            thing = Thing(ThingKind.FEATURE_GROUP, row["name"], row["version"])
            await _refuse_while_filled(connection, load_group_row(row).group)
            await refuse_when_used(connection, thing)
            async with self._patient(connection, thing):
                await connection.exec_driver_sql(f"LOCK TABLE {table_of(row['id'])} IN ACCESS EXCLUSIVE MODE")
            counted = "SELECT coalesce(sum(rows), 0)::bigint FROM commits WHERE group_id = :id"
            rows = int((await connection.execute(text(counted), {"id": row["id"]})).scalar_one())
            await connection.exec_driver_sql(f"DROP TABLE {table_of(row['id'])}")
            await connection.execute(text(_WITHOUT_ROWS), {"id": row["id"]})
            for statement in _FORGET_ROWS:
                await connection.execute(text(statement), {"id": row["id"]})
            await forget_statistics(connection, [row["id"]], [])
            await connection.exec_driver_sql(_CHANGED)
            await connection.execute(text(_PUBLISH_DROP), {"id": row["id"], "etag": new_id()})
        return rows

    async def drop_view(self, reference: Reference, etag: str) -> None:
        """Removes a view version. Raises NotFound, StaleEtag, FailedPrecondition that names the users."""
        async with self._database.transaction() as connection:
            row = await _locked(connection, VIEWS, reference, etag)
            thing = Thing(ThingKind.FEATURE_VIEW, row["name"], row["version"])
            await refuse_when_used(connection, thing)
            await forget_uses(connection, thing)
            await connection.execute(text(_DROP_VIEW), {"id": row["id"], "etag": new_id()})
            await connection.exec_driver_sql(_CHANGED)

    async def _widen(
        self, reference: Reference, etag: str, widened: Callable[[FeatureGroup], FeatureGroup]
    ) -> StoredGroup:
        async with self._database.transaction() as connection:
            row = await _locked(connection, GROUPS, reference, etag)
            before = load_group_row(row).group
            after = widened(before)
            added = after.features[len(before.features) :]
            if not added:
                return load_group_row(row)
            thing = Thing(ThingKind.FEATURE_GROUP, before.name, before.version)
            async with self._patient(connection, thing):
                for statement in add_column_statements(row["id"], after, added):
                    await connection.exec_driver_sql(statement)
            return load_group_row(await _put(connection, GROUPS, row, *_group_texts(after)))

    @contextlib.asynccontextmanager
    async def _patient(self, connection: AsyncConnection, thing: Thing) -> AsyncIterator[None]:
        """Waits a short while for a table. Raises Unavailable when reads or writes of it go on for longer."""
        await connection.exec_driver_sql(self._patience)
        try:
            yield
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            raise Unavailable(f"a long read or write of the {thing} is under way; try again later") from error
        await connection.exec_driver_sql("SET LOCAL lock_timeout = 0")


async def _latest(connection: AsyncConnection, table: str, name: str, etag: str) -> RowMapping | None:
    """The latest version of a name, locked, when it is this caller's turn. Raises StaleEtag."""
    await connection.execute(text(_TURN), {"table": table, "name": name})
    row = await find_row(connection, table, Reference(name), lock=_LOCK)
    _check_etag(table, name, row, etag)
    return row


async def _locked(connection: AsyncConnection, table: str, reference: Reference, etag: str) -> RowMapping:
    """The row of a version, locked. Raises NotFound, StaleEtag."""
    row = await existing_row(connection, table, reference, lock=_LOCK)
    _check_etag(table, reference.name, row, etag)
    return row


def _check_etag(table: str, name: str, row: RowMapping | None, etag: str) -> None:
    if etag and (row is None or row["etag"] != etag):
        present = "" if row is None else row["etag"]
        raise StaleEtag(f"the {KINDS[table]} {name} has changed since it was read", name=name, etag=present)


async def _add(connection: AsyncConnection, table: str, name: str, spec: str, about: str, searched: str) -> RowMapping:
    values = {"name": name, "etag": new_id(), "spec": spec, "about": about, "searched": searched}
    return (await connection.execute(text(_ADD.format(table=table)), values)).mappings().one()


async def _put(
    connection: AsyncConnection, table: str, row: RowMapping, spec: str, about: str, searched: str
) -> RowMapping:
    """The row with new texts; one that says the same already stays as it is, with its etag."""
    if (row["spec"], row["about"]) == (spec, about):
        return row
    values = {"id": row["id"], "etag": new_id(), "spec": spec, "about": about, "searched": searched}
    changed = (await connection.execute(text(_PUT.format(table=table)), values)).mappings().one()
    await connection.exec_driver_sql(_CHANGED)
    return changed


async def _refuse_while_filled(connection: AsyncConnection, group: FeatureGroup) -> None:
    """Raises FailedPrecondition for a log group whose view is there: the next page of the log would bring it back."""
    view = view_of_group(group)
    if view is not None and await find_row(connection, VIEWS, view, lock="FOR SHARE") is not None:
        raise FailedPrecondition(f"{group.name} is filled from the log of {view}; drop the view first")


def _group_texts(group: FeatureGroup) -> tuple[str, str, str]:
    return dump_group(group), dump_group_about(group), searched_in(group)


def _view_texts(view: FeatureView) -> tuple[str, str, str]:
    return dump_view(view), dump_view_about(view), searched_in(view)
