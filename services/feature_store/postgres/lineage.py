"""Who uses what.

A use is recorded in the transaction that makes its user, while the used thing's row is held: a drop of that thing
waits, and then finds the use. Sources are not recorded: they are what groups and commits name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.feature_store.registry.lineage import LineageGraph, Thing, ThingKind, Use
from services.runtime.database import Database
from services.runtime.errors import FailedPrecondition, NotFound

THINGS_MAX = 10_000
USES_MAX = 10_000
# As many users are named when something cannot be dropped; a message has a bound of its own.
NAMED_MAX = 8
COUNTED_MAX = 1_000

_REGISTERED = "SELECT 1 FROM {table} WHERE name = :name AND version = :version AND NOT dropped"
_DECLARED = "SELECT 1 FROM declared_things WHERE kind = :kind AND name = :name AND version = :version"
# How to find a thing's row.
_ROWS = {
    ThingKind.FEATURE_GROUP: _REGISTERED.format(table="feature_groups"),
    ThingKind.FEATURE_VIEW: _REGISTERED.format(table="feature_views"),
    ThingKind.TRAINING_DATASET: "SELECT 1 FROM training_datasets WHERE id = :name",
    ThingKind.MODEL: _DECLARED,
    ThingKind.DEPLOYMENT: _DECLARED,
}
_LATEST = {
    ThingKind.FEATURE_GROUP: "SELECT max(version) FROM feature_groups WHERE name = :name AND NOT dropped",
    ThingKind.FEATURE_VIEW: "SELECT max(version) FROM feature_views WHERE name = :name AND NOT dropped",
    ThingKind.MODEL: "SELECT max(version) FROM declared_things WHERE kind = 5 AND name = :name",
}
_USER, _USED = "user_kind, user_name, user_version", "used_kind, used_name, used_version"
_ADD = f"INSERT INTO uses ({_USER}, {_USED}) VALUES (:k, :n, :v, :uk, :un, :uv) ON CONFLICT DO NOTHING"  # noqa: S608
_FORGET = "DELETE FROM uses WHERE user_kind = :kind AND user_name = :name AND user_version = :version"
_KEEP = (
    f" AND ({_USED}) NOT IN "  # noqa: S608
    "(SELECT * FROM unnest(CAST(:kinds AS smallint[]), CAST(:names AS text[]), CAST(:versions AS bigint[])))"
)
_GIVEN = "unnest(CAST(:kinds AS smallint[]), CAST(:names AS text[]), CAST(:versions AS bigint[])) AS t (k, n, v)"
# One step from things to what they use, or to what uses them. The constants are column names; values are bound.
_STEPS = {
    "used": f"SELECT DISTINCT {_USED} FROM uses JOIN {_GIVEN} ON (k, n, v) = ({_USER}) LIMIT :limit",  # noqa: S608
    "users": f"SELECT DISTINCT {_USER} FROM uses JOIN {_GIVEN} ON (k, n, v) = ({_USED}) LIMIT :limit",  # noqa: S608
}
_BETWEEN = (
    f"SELECT {_USER}, {_USED}, since FROM uses JOIN {_GIVEN} ON (k, n, v) = ({_USER}) "  # noqa: S608
    f"WHERE ({_USED}) IN (SELECT k, n, v FROM {_GIVEN}) ORDER BY {_USED}, {_USER} LIMIT :limit"
)
# Where the rows of groups come from: what the group says, and what its writes said.
_SOURCES = """
SELECT name, version, source, min(since) AS since, bool_or(asserted) AS asserted FROM (
  SELECT g.name, g.version, coalesce(c.source, g.about::json->>'source', '') AS source, c.committed_at AS since,
    c.known_at_asserted AS asserted
  FROM feature_groups g JOIN commits c ON c.group_id = g.id AND c.rows > 0 WHERE NOT g.dropped AND {which}
  UNION ALL
  SELECT g.name, g.version, g.about::json->>'source', g.created_at, false
  FROM feature_groups g WHERE NOT g.dropped AND {which}) AS named
WHERE (source <> '' OR asserted) AND (:source = '' OR source = :source)
GROUP BY name, version, source ORDER BY source, name, version LIMIT :limit"""
_OF_GROUPS = "(g.name, g.version) IN (SELECT n, v FROM " + _GIVEN + ")"  # noqa: S608
_OF_SOURCE = """g.id IN (
  SELECT id FROM feature_groups WHERE about::json->>'source' = :source
  UNION SELECT group_id FROM commits WHERE source = :source)"""
_LABELS = "SELECT id, name FROM training_datasets WHERE id = ANY(:ids)"


async def record_uses(connection: AsyncConnection, user: Thing, used: Iterable[Thing]) -> None:
    """Records what a thing uses, in the transaction that makes the thing; uses recorded before stay.

    Raises NotFound for what is not there; what is there cannot be dropped until the transaction has ended.
    """
    # In order, so that two transactions never wait for each other.
    things = sorted(set(used))
    for thing in things:
        if not await _exists(connection, thing, held=True):
            raise NotFound(thing.kind.words, _named(thing))
    if things:
        added = {"k": user.kind, "n": user.name, "v": user.version}
        rows = [added | {"uk": thing.kind, "un": thing.name, "uv": thing.version} for thing in things]
        await connection.execute(text(_ADD), rows)


async def forget_uses(connection: AsyncConnection, user: Thing) -> None:
    """Forgets what a thing used, in the transaction that removes the thing."""
    await connection.execute(text(_FORGET), _as_row(user))


async def refuse_when_used(connection: AsyncConnection, thing: Thing) -> None:
    """Raises FailedPrecondition that names the users of a thing, whose row the caller has locked."""
    users = await direct_users(connection, [thing], limit=COUNTED_MAX)
    if users:
        named = ", ".join(map(str, users[:NAMED_MAX]))
        many = "many" if len(users) == COUNTED_MAX else len(users) - NAMED_MAX
        more = f" and {many} more" if len(users) > NAMED_MAX else ""
        raise FailedPrecondition(f"the {thing} is used by {named}{more}", users=f"{named}{more}")


async def direct_users(connection: AsyncConnection, things: Sequence[Thing], limit: int = THINGS_MAX) -> list[Thing]:
    """What uses any of the things, in order, at most `limit`."""
    return await _step(connection, "users", things, limit)


class LineageTable:
    """See `lineage.Uses`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def users_of(self, thing: Thing) -> list[Thing]:
        """What uses a thing directly, at most THINGS_MAX."""
        async with self._database.statements() as connection:
            return await direct_users(connection, [thing])

    async def all_users_of(self, things: Sequence[Thing]) -> list[Thing]:
        """What uses any of the things, directly or through others: of datasets the models trained on them and the
        deployments that serve those. In order, at most THINGS_MAX."""
        async with self._database.statements() as connection:
            found, _ = await _closure(connection, "users", things, depth=THINGS_MAX)
        return sorted(found.difference(things))

    async def declare(self, user: Thing, used: Sequence[Thing]) -> None:
        """See `Lineage.declare`."""
        async with self._database.transaction() as connection:
            if not used:
                await _withdraw(connection, user)
                return
            row = _as_row(user)
            # Also when it is there already: the update locks its row.
            await connection.execute(
                text(
                    "INSERT INTO declared_things (kind, name, version) VALUES (:kind, :name, :version) "
                    "ON CONFLICT (kind, name, version) DO UPDATE SET kind = excluded.kind"
                ),
                row,
            )
            await record_uses(connection, user, used)
            await connection.execute(text(_FORGET + _KEEP), row | _as_arrays(used))

    async def graph(self, start: Thing, depth: int) -> LineageGraph:
        """See `Lineage.of`."""
        async with self._database.transaction() as connection:
            # All steps see the same state.
            await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            start = await _existing(connection, start)
            made_of, cut_above = await _closure(connection, "used", [start], depth)
            makes, cut_below = await _closure(connection, "users", [start], depth)
            found = [start, *sorted((made_of | makes) - {start})]
            things = found[:THINGS_MAX]
            uses, cut_between = await _uses_between(connection, things)
            labels = await _labels(connection, things)
        cut = cut_above or cut_below or cut_between or len(found) > len(things)
        return LineageGraph(tuple(things), tuple(uses), labels, cut)


async def _withdraw(connection: AsyncConnection, user: Thing) -> None:
    lock = text(_DECLARED + " FOR UPDATE")
    if (await connection.execute(lock, _as_row(user))).first() is None:
        return
    await refuse_when_used(connection, user)
    await forget_uses(connection, user)
    remove = "DELETE FROM declared_things WHERE kind = :kind AND name = :name AND version = :version"
    await connection.execute(text(remove), _as_row(user))


async def _existing(connection: AsyncConnection, thing: Thing) -> Thing:
    """The thing with its version. Raises NotFound."""
    if thing.kind is ThingKind.SOURCE:
        found = bool(await _sources(connection, source=thing.name, limit=1))
    elif not thing.version and thing.kind in _LATEST:
        parameters = {"name": thing.name}
        version = (await connection.execute(text(_LATEST[thing.kind]), parameters)).scalar_one()
        found, thing = version is not None, Thing(thing.kind, thing.name, version or 0)
    else:
        found = await _exists(connection, thing, held=False)
    if not found:
        raise NotFound(thing.kind.words, _named(thing))
    return thing


async def _exists(connection: AsyncConnection, thing: Thing, *, held: bool) -> bool:
    statement = _ROWS[thing.kind] + (" FOR SHARE" if held else "")
    return (await connection.execute(text(statement), _as_row(thing))).first() is not None


async def _closure(
    connection: AsyncConnection, direction: str, start: Sequence[Thing], depth: int
) -> tuple[set[Thing], bool]:
    """All things that some steps in one direction reach, the start among them, and whether there were more."""
    found, frontier = set(start), list(start)
    most = len(found) + THINGS_MAX
    for _ in range(depth):
        if not frontier:
            break
        room = most - len(found)
        reached = set(await _step(connection, direction, frontier, most + 1)) - found
        if len(reached) > room:
            return found.union(sorted(reached)[:room]), True
        found |= reached
        frontier = sorted(reached)
    return found, False


async def _step(connection: AsyncConnection, direction: str, things: Sequence[Thing], limit: int) -> list[Thing]:
    parameters = _as_arrays(things) | {"limit": limit}
    rows = (await connection.execute(text(_STEPS[direction]), parameters)).all()
    reached = {_thing(*row) for row in rows}
    groups = [thing for thing in things if thing.kind is ThingKind.FEATURE_GROUP]
    if direction == "used" and groups:
        reached |= {use.used for use in await _sources(connection, groups=groups, limit=limit)}
    for thing in things:
        if direction == "users" and thing.kind is ThingKind.SOURCE:
            reached |= {use.user for use in await _sources(connection, source=thing.name, limit=limit)}
    return sorted(reached)[:limit]


async def _uses_between(connection: AsyncConnection, things: Sequence[Thing]) -> tuple[list[Use], bool]:
    parameters = _as_arrays(things) | {"limit": USES_MAX + 1}
    rows = (await connection.execute(text(_BETWEEN), parameters)).all()
    uses = [Use(_thing(*row[:3]), _thing(*row[3:6]), row[6]) for row in rows]
    groups = [thing for thing in things if thing.kind is ThingKind.FEATURE_GROUP]
    if groups:
        known = set(things)
        named = await _sources(connection, groups=groups, limit=USES_MAX + 1)
        uses = [*(use for use in named if use.used in known), *uses]
    return uses[:USES_MAX], len(uses) > USES_MAX


async def _sources(
    connection: AsyncConnection, *, groups: Sequence[Thing] = (), source: str = "", limit: int
) -> list[Use]:
    """The sources of groups, or the groups of a source. A writer that vouched for `known_at` and named no source is
    the source ''."""
    statement = _SOURCES.format(which=_OF_SOURCE if source else _OF_GROUPS)
    parameters = {"source": source} | ({} if source else _as_arrays(groups))
    rows = (await connection.execute(text(statement), parameters | {"limit": limit})).all()
    return [
        Use(Thing(ThingKind.FEATURE_GROUP, name, version), Thing(ThingKind.SOURCE, named), since, bool(asserted))
        for name, version, named, since, asserted in rows
    ]


async def _labels(connection: AsyncConnection, things: Sequence[Thing]) -> dict[Thing, str]:
    ids = [thing.name for thing in things if thing.kind is ThingKind.TRAINING_DATASET]
    rows = (await connection.execute(text(_LABELS), {"ids": ids})).all() if ids else []
    labels = {Thing(ThingKind.TRAINING_DATASET, id): name for id, name in rows}
    return labels | {thing: "a writer that named no source" for thing in things if not thing.name}


def _thing(kind: int, name: str, version: int) -> Thing:
    return Thing(ThingKind(kind), name, version)


def _named(thing: Thing) -> str:
    return f"{thing.name} version {thing.version}" if thing.version else thing.name


def _as_row(thing: Thing) -> dict[str, object]:
    return {"kind": int(thing.kind), "name": thing.name, "version": thing.version}


def _as_arrays(things: Sequence[Thing]) -> dict[str, object]:
    return {
        "kinds": [int(thing.kind) for thing in things],
        "names": [thing.name for thing in things],
        "versions": [thing.version for thing in things],
    }
