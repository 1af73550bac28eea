"""Manifests of training datasets, and which stored files they refer to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.feature_store.datasets.manifests import (
    Manifest,
    ManifestFilter,
    ManifestPlace,
    dump_manifest,
    load_manifest,
)
from services.feature_store.groups import Reference
from services.feature_store.postgres.lineage import forget_uses, record_uses, refuse_when_used
from services.feature_store.postgres.statistics import forget_statistics
from services.feature_store.reads.queries import without_values
from services.feature_store.registry.lineage import Thing, ThingKind
from services.runtime.database import Database
from services.runtime.errors import FailedPrecondition, NotFound, StaleEtag

_COLUMNS = "manifest, stored, stored_bytes, forgotten_at"
_KIND = "training dataset"


class ManifestTable:
    """Keeps manifests."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Nobody else names or removes files of datasets, or changes which are needed, until the block ends."""
        # In turns here, so that those who wait do not hold the connections that the one inside needs.
        async with self._turn, self._database.transaction() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('feature_store.training_datasets'))"))
            yield

    async def erasures(self) -> int:
        """How often an entity was forgotten so far."""
        async with self._database.statements() as connection:
            found = await connection.execute(text("SELECT erasures FROM training_dataset_state"))
            return int(found.scalar_one())

    async def begin_erasure(self) -> None:
        """Rows that are being made from now on count as made before the erasure, and will not be stored."""
        async with self._database.transaction() as connection:
            await connection.execute(text("UPDATE training_dataset_state SET erasures = erasures + 1"))

    async def add(self, manifest: Manifest, spine_groups: Iterable[Reference], erasures: int) -> None:
        """Keeps a manifest under its id; the groups are those whose rows are its spine.

        Raises StaleEtag when there were more than `erasures` since, NotFound when what it is made of was dropped.
        """
        view = Thing(ThingKind.FEATURE_VIEW, manifest.view.name, manifest.view.version)
        groups = [Thing(ThingKind.FEATURE_GROUP, group.name, group.version) for group in spine_groups]
        async with self._database.transaction() as connection:
            await _check_erasures(connection, erasures)
            await record_uses(connection, _thing(manifest.id), [view, *groups])
            await connection.execute(
                text(
                    "INSERT INTO training_datasets (id, name, view_name, view_version, created_at, manifest,"
                    " content_sha256, spine_sha256, stored, stored_bytes) VALUES (:id, :name, :view_name,"
                    " :view_version, :created_at, :manifest, :content_sha256, :spine_sha256, true, :stored_bytes)"
                ),
                {
                    "id": manifest.id,
                    "name": manifest.name,
                    "view_name": manifest.view.name,
                    "view_version": manifest.view.version,
                    "created_at": manifest.created_at,
                    "manifest": dump_manifest(manifest),
                    "content_sha256": manifest.content_sha256,
                    "spine_sha256": manifest.spine_sha256,
                    "stored_bytes": manifest.stored_bytes,
                },
            )

    async def get(self, dataset_id: str) -> Manifest:
        """The manifest of an id. Raises NotFound."""
        async with self._database.statements() as connection:
            return await _get(connection, dataset_id)

    async def page(self, wanted: ManifestFilter, after: ManifestPlace | None, size: int) -> list[Manifest]:
        """At most `size` manifests, the newest first, that come after a place in that order."""
        conditions: list[str] = ["true"]
        values: dict[str, Any] = {"size": size}
        if wanted.name:
            conditions.append("name = :name")
            values["name"] = wanted.name
        if wanted.view is not None:
            conditions.append("view_name = :view_name AND (:view_version = 0 OR view_version = :view_version)")
            values |= {"view_name": wanted.view.name, "view_version": wanted.view.version}
        if wanted.remembered:
            conditions.append("forgotten_at IS NULL")
        if after is not None:
            conditions.append("(created_at, id) < (:created_at, :id)")
            values |= {"created_at": after.created_at, "id": after.id}
        statement = (
            f"SELECT {_COLUMNS} FROM training_datasets WHERE {' AND '.join(conditions)}"  # noqa: S608 - constants
            " ORDER BY created_at DESC, id DESC LIMIT :size"
        )
        async with self._database.statements() as connection:
            return [_load(row) for row in (await connection.execute(text(statement), values)).mappings()]

    async def set_stored(self, dataset_id: str, stored_bytes: int, erasures: int) -> Manifest:
        """Says that the rows are stored. Raises NotFound, StaleEtag, FailedPrecondition when they were forgotten."""
        async with self._database.transaction() as connection:
            await _check_erasures(connection, erasures)
            return await _change(connection, dataset_id, "stored = true, stored_bytes = :bytes", bytes=stored_bytes)

    async def set_purged(self, dataset_id: str) -> Manifest:
        """Says that the rows are not stored any more. Raises NotFound."""
        async with self._database.transaction() as connection:
            return await _change(connection, dataset_id, "stored = false, stored_bytes = 0", forgotten=True)

    async def set_forgotten(self, dataset_id: str, at: datetime) -> Manifest:
        """Says that an entity in the rows was forgotten: the rows are not stored any more, and the query of the spine
        names no keys and values any more. Raises NotFound."""
        changes = (
            "stored = false, stored_bytes = 0, forgotten_at = coalesce(forgotten_at, :at),"
            " manifest = coalesce(:manifest, manifest)"
        )
        async with self._database.transaction() as connection:
            known = await _get(connection, dataset_id, "FOR UPDATE")
            manifest = None
            if known.spine is not None:
                manifest = dump_manifest(replace(known, spine=without_values(known.spine)))
            return await _change(connection, dataset_id, changes, forgotten=True, at=at, manifest=manifest)

    async def remove(self, dataset_id: str) -> Manifest:
        """Removes a manifest and the statistics of its rows, and answers what it was.

        Raises NotFound, FailedPrecondition that names its users.
        """
        async with self._database.transaction() as connection:
            # Locked, so that nobody starts to use it in between.
            manifest = await _get(connection, dataset_id, "FOR UPDATE")
            await refuse_when_used(connection, _thing(dataset_id))
            await forget_uses(connection, _thing(dataset_id))
            await forget_statistics(connection, [], [dataset_id])
            for statement in (
                "DELETE FROM statistics WHERE dataset_id = :id",
                "DELETE FROM training_datasets WHERE id = :id",
            ):
                await connection.execute(text(statement), {"id": dataset_id})
        return manifest

    async def is_needed(self, sha256: str) -> bool:
        """Whether a manifest refers to a stored file: to its rows, or to the spine that was sent."""
        statement = (
            "SELECT EXISTS (SELECT FROM training_datasets WHERE stored AND content_sha256 = :sha256) OR"
            " EXISTS (SELECT FROM training_datasets WHERE forgotten_at IS NULL AND spine_sha256 = :sha256)"
        )
        async with self._database.statements() as connection:
            return bool((await connection.execute(text(statement), {"sha256": sha256})).scalar_one())


def _thing(dataset_id: str) -> Thing:
    return Thing(ThingKind.TRAINING_DATASET, dataset_id)


async def _get(connection: AsyncConnection, dataset_id: str, lock: str = "") -> Manifest:
    statement = f"SELECT {_COLUMNS} FROM training_datasets WHERE id = :id {lock}"  # noqa: S608 - constants
    row = (await connection.execute(text(statement), {"id": dataset_id})).mappings().first()
    if row is None:
        raise NotFound(_KIND, dataset_id)
    return _load(row)


async def _change(
    connection: AsyncConnection, dataset_id: str, changes: str, *, forgotten: bool = False, **values: Any
) -> Manifest:
    """Changes a manifest's row; `forgotten`: also when an entity in it was forgotten."""
    manifest = await _get(connection, dataset_id, "FOR UPDATE")
    if manifest.forgotten_at is not None and not forgotten:
        raise FailedPrecondition(f"an entity in the rows of training dataset {dataset_id} was forgotten")
    statement = f"UPDATE training_datasets SET {changes} WHERE id = :id RETURNING {_COLUMNS}"  # noqa: S608 - constants
    row = (await connection.execute(text(statement), {"id": dataset_id, **values})).mappings().one()
    return _load(row)


async def _check_erasures(connection: AsyncConnection, erasures: int) -> None:
    found = await connection.execute(text("SELECT erasures FROM training_dataset_state"))
    if found.scalar_one() != erasures:
        raise StaleEtag("an entity was forgotten while the rows were made; repeat the call")


def _load(row: RowMapping) -> Manifest:
    return load_manifest(
        row["manifest"], stored=row["stored"], stored_bytes=row["stored_bytes"], forgotten_at=row["forgotten_at"]
    )
