"""How far erasures are.

A new erasure takes its number and its last commit under the lock that publishes commits: whatever is published later is
not concerned, and numbers become visible in order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from foresight.values import Column
from services.feature_store.erasure.erasures import (
    Concerned,
    Entity,
    ErasedRows,
    Erasure,
    KeyNames,
    Step,
    WayInView,
    covers,
    dump_names,
    entity_columns,
    load_names,
    salted_hashes,
    ways_in_view,
)
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.logs.log_groups import OUTCOMES, PREDICTIONS, group_name
from services.feature_store.online.catch_up import PublishedErasure
from services.feature_store.postgres.catalogue import load_group_row, load_view_row
from services.feature_store.postgres.erased_rows import keys_of_entity
from services.runtime.database import Database
from services.runtime.errors import AlreadyExists, NotFound
from services.runtime.threads import in_thread

_COLUMNS = """number, request_id, names, entity, digest, requested_at, finished_at, commit, step, log_position,
  predictions"""
_BY_ID = text(f"SELECT {_COLUMNS} FROM erasures WHERE request_id = :id")  # noqa: S608 - constants
_BY_NUMBER = text(f"SELECT {_COLUMNS} FROM erasures WHERE number = :number")  # noqa: S608 - constants
_LOCK = "SELECT last_commit FROM commit_state FOR UPDATE"
_ADD = text(
    f"""
    INSERT INTO erasures (number, request_id, names, entity, digest, requested_at, touched_at, commit, step)
    SELECT coalesce(max(number), 0) + 1, :id, :names, :entity, :digest, :at, clock_timestamp(), :commit, 1 FROM erasures
    RETURNING {_COLUMNS}
    """  # noqa: S608 - constants
)
_UNFINISHED = text(
    """
    SELECT number FROM erasures
    WHERE finished_at IS NULL AND touched_at <= clock_timestamp() - make_interval(secs => :untouched_s)
    ORDER BY number LIMIT :limit
    """
)
_TOUCH = text(
    """
    UPDATE erasures SET touched_at = clock_timestamp(), log_position = greatest(log_position, :log_position),
      predictions = greatest(predictions, :predictions)
    WHERE number = :number
    """
)
_ADVANCE = text(
    """
    UPDATE erasures SET step = :step, touched_at = clock_timestamp(),
      finished_at = CASE WHEN CAST(:done AS boolean) THEN CAST(:at AS timestamptz) END,
      entity = CASE WHEN CAST(:done AS boolean) THEN NULL ELSE entity END
    WHERE number = :number AND step < :step
    """
)
_AFTER = text("SELECT number, commit FROM erasures WHERE number > :number ORDER BY number LIMIT :limit")
_SETTLED = text(
    """
    SELECT coalesce((SELECT min(number) - 1 FROM erasures WHERE step <= :step), (SELECT max(number) FROM erasures), 0)
    """
)
_ROWS = text(
    """
    SELECT e.group_id, g.name, g.version, e.rows, e.first_commit
    FROM erased_rows e JOIN feature_groups g ON g.id = e.group_id WHERE e.number = :number ORDER BY g.name, g.version
    """
)
_ADD_DATASET = text(
    "INSERT INTO erased_datasets (number, dataset_id, name) VALUES (:number, :id, :name) ON CONFLICT DO NOTHING"
)
_DATASETS = text("SELECT dataset_id, name FROM erased_datasets WHERE number = :number ORDER BY dataset_id")
_GROUPS = "SELECT id, name, version, created_at, etag, spec, about, dropped FROM feature_groups"
_VIEWS = "SELECT id, name, version, created_at, etag, spec, about, dropped FROM feature_views"
_HASHES = text(
    """
    SELECT names, digest, commit FROM erasures e
    WHERE EXISTS (SELECT FROM erased_rows r WHERE r.number = e.number AND r.group_id = :group_id)
    """
)


class ErasureTable:
    """Keeps erasures."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, request_id: str) -> Erasure:
        """The erasure of a request. Raises NotFound."""
        async with self._database.statements() as connection:
            row = (await connection.execute(_BY_ID, {"id": request_id})).mappings().one_or_none()
        if row is None:
            raise NotFound("erasure", request_id)
        return _load(row)

    async def get(self, number: int) -> Erasure:
        """The erasure of a number."""
        async with self._database.statements() as connection:
            return _load((await connection.execute(_BY_NUMBER, {"number": number})).mappings().one())

    async def begin(self, request_id: str, entity: Entity, at: datetime) -> Erasure:
        """A new erasure of an entity, or that of an earlier call. Raises AlreadyExists for an id used with another."""
        async with self._database.transaction() as connection:
            commit = (await connection.exec_driver_sql(_LOCK)).scalar_one()
            salt = await _salt(connection)
            row = (await connection.execute(_BY_ID, {"id": request_id})).mappings().one_or_none()
            digest = entity.hash(salt)
            if row is None:
                new = {
                    "id": request_id,
                    "names": dump_names(entity.names),
                    "entity": entity.dump(),
                    "digest": digest,
                    "at": at,
                    "commit": commit,
                }
                row = (await connection.execute(_ADD, new)).mappings().one()
            if row["digest"] != digest:
                raise AlreadyExists("the request id was used for another entity", request_id=request_id)
        return _load(row)

    async def unfinished(self, untouched_s: float, limit: int) -> list[int]:
        """Numbers of erasures that nobody worked on for some time, at most `limit`, the oldest first."""
        asked = {"untouched_s": untouched_s, "limit": limit}
        async with self._database.statements() as connection:
            return list((await connection.execute(_UNFINISHED, asked)).scalars())

    async def touch(self, number: int, log_position: int = 0, predictions: int = 0) -> None:
        """Says that somebody works on it, and how far it is in the log."""
        made = {"number": number, "log_position": log_position, "predictions": predictions}
        async with self._database.statements() as connection:
            await connection.execute(_TOUCH, made)

    async def advance(self, number: int, step: Step, at: datetime) -> None:
        """Goes on to a step; the last one forgets the entity."""
        async with self._database.statements() as connection:
            await connection.execute(_ADVANCE, {"number": number, "step": step, "done": step is Step.DONE, "at": at})

    async def rows(self, number: int) -> tuple[ErasedRows, ...]:
        """Rows removed so far, by group."""
        async with self._database.statements() as connection:
            rows = (await connection.execute(_ROWS, {"number": number})).mappings().all()
        return tuple(
            ErasedRows(Reference(row["name"], row["version"]), row["group_id"], row["rows"], row["first_commit"])
            for row in rows
        )

    async def add_dataset(self, number: int, dataset_id: str, name: str) -> None:
        """Notes a dataset that had rows of the entity."""
        async with self._database.statements() as connection:
            await connection.execute(_ADD_DATASET, {"number": number, "id": dataset_id, "name": name})

    async def datasets(self, number: int) -> tuple[tuple[str, str], ...]:
        """Id and name of the datasets that had rows of the entity."""
        async with self._database.statements() as connection:
            rows = await connection.execute(_DATASETS, {"number": number})
            return tuple((row.dataset_id, row.name) for row in rows)

    async def concerned(self, names: KeyNames) -> Concerned:
        """Everything that keys of these names and types are in."""
        async with self._database.transaction() as connection:
            groups = (await connection.exec_driver_sql(_GROUPS)).mappings().all()
            views = (await connection.exec_driver_sql(_VIEWS)).mappings().all()
        return await in_thread(_concerned, groups, views, names)

    # For online stores, see `applier.Erasures`

    async def after(self, erasure: int, limit: int) -> list[PublishedErasure]:
        """See `applier.Erasures`."""
        async with self._database.statements() as connection:
            rows = await connection.execute(_AFTER, {"number": erasure, "limit": limit})
            return [PublishedErasure(row.number, row.commit) for row in rows]

    async def settled(self) -> int:
        """See `applier.Erasures`."""
        async with self._database.statements() as connection:
            return int((await connection.execute(_SETTLED, {"step": Step.ROWS})).scalar_one())

    async def groups(self, erasure: PublishedErasure) -> list[StoredGroup]:
        """See `applier.Erasures`."""
        found = await self.get(erasure.number)
        return (await self.concerned(found.names)).online()

    async def keys(
        self, erasure: PublishedErasure, stored: StoredGroup, held: AsyncIterator[tuple[Column, ...]]
    ) -> AsyncIterator[tuple[Column, ...]]:
        """See `applier.Erasures`: from the offline rows while they are there, else those held that have the hash."""
        async with self._database.transaction() as connection:
            # One snapshot: either no row is gone yet, or the step says that some may be.
            await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            row = (await connection.execute(_BY_NUMBER, {"number": erasure.number})).mappings().one()
            found, salt = _load(row), await _salt(connection)
            if found.entity is not None and found.step < Step.ROWS:
                async for keys in keys_of_entity(connection, stored, found.entity, erasure.commit):
                    yield keys
                return
        async for keys in held:
            hashes = await in_thread(salted_hashes, salt, entity_columns(found.names, keys))
            mine = [i for i, found_hash in enumerate(hashes) if found_hash == row["digest"]]
            if mine:
                yield tuple(column.take(mine) for column in keys)

    # For replays

    async def erased_commits(self, stored: StoredGroup, keys: Sequence[Column]) -> list[int]:
        """For each key of a group the last commit up to which its rows were erased; 0: they never were."""
        async with self._database.statements() as connection:
            rows = (await connection.execute(_HASHES, {"group_id": stored.id})).mappings().all()
            salt = await _salt(connection) if rows else b""
        return await in_thread(_erased_commits, rows, salt, stored, keys)


async def _salt(connection: AsyncConnection) -> bytes:
    return bytes((await connection.exec_driver_sql("SELECT salt FROM erasure_state")).scalar_one())


def _load(row: RowMapping) -> Erasure:
    return Erasure(
        number=row["number"],
        request_id=row["request_id"],
        requested_at=row["requested_at"],
        finished_at=row["finished_at"],
        commit=row["commit"],
        step=Step(row["step"]),
        names=load_names(row["names"]),
        entity=None if row["entity"] is None else Entity.load(row["entity"]),
        log_position=row["log_position"],
        predictions=row["predictions"],
    )


def _concerned(groups: Sequence[RowMapping], views: Sequence[RowMapping], names: KeyNames) -> Concerned:
    """Views that were dropped count too: their log may still be there."""
    loaded = {row["id"]: load_group_row(row) for row in groups}
    versions = {Reference(s.group.name, s.group.version): s.group for s in loaded.values()}
    present = [loaded[row["id"]] for row in groups if not row["dropped"]]
    derived = {stored.group.name: stored for stored in present if stored.group.derived}
    ways: list[WayInView] = []
    keys: dict[Reference, tuple[str, ...]] = {}
    filled: dict[str, dict[Reference, StoredGroup]] = {PREDICTIONS: {}, OUTCOMES: {}}
    for row in views:
        view = load_view_row(row)
        mine = ways_in_view(view, versions, names)
        if not mine:
            continue
        ways += mine
        reference = Reference(view.name, view.version)
        keys[reference] = tuple(key.name for key in view.entity_keys)
        for kind, into in filled.items():
            stored = derived.get(group_name(kind, view.name, view.version))
            if stored is not None:
                into[reference] = stored
    covering = tuple(stored for stored in present if covers(stored.group, names))
    return Concerned(covering, tuple(ways), keys, filled[PREDICTIONS], filled[OUTCOMES])


def _erased_commits(rows: Sequence[RowMapping], salt: bytes, stored: StoredGroup, keys: Sequence[Column]) -> list[int]:
    erased = [0] * len(keys[0])
    named = [column.renamed(key.name) for column, key in zip(keys, stored.group.entity_keys, strict=True)]
    by_names: dict[str, dict[bytes, int]] = {}
    for row in rows:
        digests = by_names.setdefault(row["names"], {})
        digests[row["digest"]] = max(row["commit"], digests.get(row["digest"], 0))
    for names, digests in by_names.items():
        columns = entity_columns(load_names(names), named)
        for i, found in enumerate(salted_hashes(salt, columns)):
            # A NULL stands as a zero there.
            if all(column.is_valid(i) for column in columns):
                erased[i] = max(erased[i], digests.get(found, 0))
    return erased
