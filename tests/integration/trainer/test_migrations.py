"""What was in the database before a release is there after it."""

from __future__ import annotations

import shutil
from pathlib import Path

from sqlalchemy import text

from services.runtime.database import Database, open_database
from services.trainer.__main__ import MIGRATIONS
from services.trainer.models import VersionRef
from services.trainer.postgres import deployments
from tests.conftest import MakeDatabase

VERSION = """
    INSERT INTO model_versions (
        model, version, description, view_name, view_version, signature, artifact_sha256, artifact_bytes, lineage,
        quality, content_sha256, created_at
    ) VALUES (
        'late', 2, '', 'delays', 1,
        '{"task": 3, "inputs": [], "label": {"name": "y", "type": "float64", "dimension": 0, "description": ""},
          "classes": null}',
        repeat('0', 64), 1, '{"train": [], "test": [], "pipeline": {}, "sklearn_version": ""}',
        '{"train_rows": 1, "metrics": {}, "parity_max_difference": 0, "parity_rows": 1, "batch_invariant": true}',
        '', now()
    )
"""


async def test_a_deployment_from_before_there_were_arms_has_one(postgres_url: MakeDatabase, tmp_path: Path) -> None:
    settings = postgres_url("trainer")
    (tmp_path / "versions").mkdir()
    shutil.copy(MIGRATIONS / "env.py", tmp_path)
    shutil.copy(MIGRATIONS / "versions/0001_registry.py", tmp_path / "versions")
    before = Database(settings, "trainer")
    await before.migrate(tmp_path)
    async with before.transaction() as connection:
        await connection.execute(text("INSERT INTO models VALUES ('late', 2)"))
        await connection.execute(text(VERSION.replace(":", "\\:")))
        await connection.execute(text("INSERT INTO deployments VALUES ('delays', 'late', 2, 'etag', now())"))
    await before.close()
    async with open_database(settings, "trainer", MIGRATIONS) as after, after.transaction() as connection:
        (found,) = await deployments.all_deployments(connection)
    assert (found.name, found.salt, found.etag) == ("delays", "delays", "etag")
    assert [(a.name, a.version.ref, a.weight, a.shadow) for a in found.arms] == [
        ("primary", VersionRef("late", 2), 1, False)
    ]
