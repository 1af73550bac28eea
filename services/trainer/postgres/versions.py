"""Model versions and aliases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.trainer import signatures
from services.trainer.models import DatasetSelection, Lineage, ModelVersion, NewVersion, Quality, VersionRef

VERSION_COLUMNS = """
    v.model, v.version, v.description, v.view_name, v.view_version, v.signature, v.artifact_sha256,
    v.artifact_bytes, v.lineage, v.quality, v.created_at,
    ARRAY(SELECT a.alias FROM aliases a WHERE a.model = v.model AND a.version = v.version ORDER BY a.alias) AS aliases
"""
# The constants are column names; values are bound.
_BY_VERSION = f"SELECT {VERSION_COLUMNS} FROM model_versions v WHERE v.model = :model AND v.version = :version"  # noqa: S608
_LATEST = (
    f"SELECT {VERSION_COLUMNS} FROM model_versions v JOIN models m "  # noqa: S608
    "ON m.name = v.model AND m.latest_version = v.version WHERE v.model = :model"
)
_BY_ALIAS = (
    f"SELECT {VERSION_COLUMNS} FROM model_versions v JOIN aliases x "  # noqa: S608
    "ON x.model = v.model AND x.version = v.version WHERE v.model = :model AND x.alias = :alias"
)
_NEWEST = (
    f"SELECT {VERSION_COLUMNS} FROM model_versions v WHERE :model = '' OR v.model = :model "  # noqa: S608
    "ORDER BY v.created_at DESC, v.model, v.version DESC LIMIT :limit"
)
_NEXT = (
    f"SELECT {VERSION_COLUMNS} FROM model_versions v WHERE (v.model, v.version) > (:model, :version) "  # noqa: S608
    "ORDER BY v.model, v.version LIMIT :limit"
)
# Also when the model exists already: the update locks its row until the transaction ends.
_LOCK = """
    INSERT INTO models (name, latest_version) VALUES (:model, 0)
    ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING latest_version
"""
_SAME = "SELECT content_sha256 FROM model_versions WHERE model = :model AND version = :version"
_INSERT = """
    INSERT INTO model_versions (
        model, version, description, view_name, view_version, signature, artifact_sha256, artifact_bytes,
        lineage, quality, content_sha256, created_at
    ) VALUES (
        :model, :version, :description, :view_name, :view_version, CAST(:signature AS jsonb), :artifact_sha256,
        :artifact_bytes, CAST(:lineage AS jsonb), CAST(:quality AS jsonb), :content_sha256, :created_at
    )
"""
_ADVANCE = "UPDATE models SET latest_version = :version WHERE name = :model"
_POINT = """
    INSERT INTO aliases (model, alias, version) VALUES (:model, :alias, :version)
    ON CONFLICT (model, alias) DO UPDATE SET version = excluded.version
"""


async def add_version(connection: AsyncConnection, new: NewVersion, created_at: datetime) -> VersionRef:
    """Numbers and stores a version; the latest one with the same content is answered instead of a copy."""
    latest = (await connection.execute(text(_LOCK), {"model": new.model})).scalar_one()
    content = _content_sha256(new)
    if latest:
        same = (await connection.execute(text(_SAME), {"model": new.model, "version": latest})).scalar_one()
        if same == content:
            return VersionRef(new.model, latest)
    ref = VersionRef(new.model, latest + 1)
    values = {
        "model": ref.name,
        "version": ref.version,
        "description": new.description,
        "view_name": new.view.name,
        "view_version": new.view.version,
        "signature": json.dumps(signatures.to_json(new.signature)),
        "artifact_sha256": new.artifact_sha256,
        "artifact_bytes": new.artifact_bytes,
        "lineage": json.dumps(_dump_lineage(new.lineage)),
        "quality": json.dumps(_dump_quality(new.quality)),
        "content_sha256": content,
        "created_at": created_at,
    }
    await connection.execute(text(_INSERT), values)
    await connection.execute(text(_ADVANCE), {"model": ref.name, "version": ref.version})
    return ref


async def find_version(connection: AsyncConnection, ref: VersionRef, alias: str = "") -> ModelVersion | None:
    """A version; with version 0 the one of the alias, or the latest."""
    if ref.version:
        statement, values = _BY_VERSION, {"model": ref.name, "version": ref.version}
    elif alias:
        statement, values = _BY_ALIAS, {"model": ref.name, "alias": alias}
    else:
        statement, values = _LATEST, {"model": ref.name}
    row = (await connection.execute(text(statement), values)).mappings().one_or_none()
    return None if row is None else load_version(row)


async def newest_versions(connection: AsyncConnection, model: str, limit: int) -> Sequence[ModelVersion]:
    """The newest versions of a model, or of all."""
    rows = await connection.execute(text(_NEWEST), {"model": model, "limit": limit})
    return [load_version(row) for row in rows.mappings()]


async def next_versions(connection: AsyncConnection, after: VersionRef | None, limit: int) -> Sequence[ModelVersion]:
    """The versions of all models after one, by model and version."""
    values = {"model": after.name if after else "", "version": after.version if after else 0, "limit": limit}
    rows = await connection.execute(text(_NEXT), values)
    return [load_version(row) for row in rows.mappings()]


async def point_alias(connection: AsyncConnection, ref: VersionRef, alias: str) -> None:
    """Points the alias at an existing version."""
    await connection.execute(text(_POINT), {"model": ref.name, "alias": alias, "version": ref.version})


def load_version(row: RowMapping) -> ModelVersion:
    """The version of a row with VERSION_COLUMNS."""
    return ModelVersion(
        ref=VersionRef(row["model"], row["version"]),
        description=row["description"],
        view=VersionRef(row["view_name"], row["view_version"]),
        signature=signatures.from_json(row["signature"]),
        artifact_sha256=row["artifact_sha256"],
        artifact_bytes=row["artifact_bytes"],
        lineage=_load_lineage(row["lineage"]),
        quality=Quality(**row["quality"]),
        created_at=row["created_at"],
        aliases=tuple(row["aliases"]),
    )


def _content_sha256(new: NewVersion) -> str:
    content = {
        "artifact": new.artifact_sha256,
        "view": [new.view.name, new.view.version],
        "signature": signatures.to_json(new.signature),
        "lineage": _dump_lineage(new.lineage),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _dump_lineage(lineage: Lineage) -> dict[str, Any]:
    return {
        "train": [[s.dataset_id, s.split] for s in lineage.train],
        "test": [[s.dataset_id, s.split] for s in lineage.test],
        "pipeline": dict(lineage.pipeline),
        "sklearn_version": lineage.sklearn_version,
    }


def _load_lineage(data: dict[str, Any]) -> Lineage:
    return Lineage(
        train=tuple(DatasetSelection(*s) for s in data["train"]),
        test=tuple(DatasetSelection(*s) for s in data["test"]),
        pipeline=data["pipeline"],
        sklearn_version=data["sklearn_version"],
    )


def _dump_quality(quality: Quality) -> dict[str, Any]:
    return {
        "train_rows": quality.train_rows,
        "metrics": dict(quality.metrics),
        "parity_max_difference": quality.parity_max_difference,
        "parity_rows": quality.parity_rows,
        "batch_invariant": quality.batch_invariant,
    }
