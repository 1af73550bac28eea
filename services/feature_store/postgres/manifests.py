"""Manifests of training datasets."""

from __future__ import annotations

from sqlalchemy import text

from services.feature_store.manifests import Manifest, dump_manifest, load_manifest
from services.runtime.database import Database
from services.runtime.errors import NotFound


class ManifestTable:
    """Keeps manifests; they never change."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, manifest: Manifest) -> None:
        """Keeps a manifest under its id."""
        statement = text(
            "INSERT INTO training_datasets (id, name, manifest, created_at) VALUES (:id, :name, :manifest, :created_at)"
        )
        row = {
            "id": manifest.id,
            "name": manifest.name,
            "manifest": dump_manifest(manifest),
            "created_at": manifest.created_at,
        }
        async with self._database.transaction() as connection:
            await connection.execute(statement, row)

    async def get(self, dataset_id: str) -> Manifest:
        """The manifest of an id. Raises NotFound."""
        statement = text("SELECT manifest FROM training_datasets WHERE id = :id")
        async with self._database.transaction() as connection:
            manifest = (await connection.execute(statement, {"id": dataset_id})).scalar_one_or_none()
        if manifest is None:
            raise NotFound("training dataset", dataset_id)
        return load_manifest(manifest)
