"""Deployments."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.trainer.models import Deployment, VersionRef
from services.trainer.postgres.versions import VERSION_COLUMNS, load_version

# Changes of one deployment take turns, its creation included.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('deployment ' || :name, 0))"
_SELECT = (
    f"SELECT d.name, d.etag, d.updated_at, {VERSION_COLUMNS} FROM deployments d "  # noqa: S608 - column names
    "JOIN model_versions v ON v.model = d.model AND v.version = d.version"
)
_PUT = """
    INSERT INTO deployments (name, model, version, etag, updated_at)
    VALUES (:name, :model, :version, :etag, :updated_at)
    ON CONFLICT (name) DO UPDATE
    SET model = excluded.model, version = excluded.version, etag = excluded.etag, updated_at = excluded.updated_at
"""


async def lock_deployment(connection: AsyncConnection, name: str) -> Deployment | None:
    """The deployment, locked until the transaction ends, also when it does not exist yet."""
    await connection.execute(text(_LOCK), {"name": name})
    return await find_deployment(connection, name)


async def find_deployment(connection: AsyncConnection, name: str) -> Deployment | None:
    """The deployment, if there is one."""
    found = await connection.execute(text(f"{_SELECT} WHERE d.name = :name"), {"name": name})
    row = found.mappings().one_or_none()
    return None if row is None else _load(row)


async def all_deployments(connection: AsyncConnection) -> Sequence[Deployment]:
    """All deployments, by name."""
    rows = await connection.execute(text(f'{_SELECT} ORDER BY d.name COLLATE "C"'))
    return [_load(row) for row in rows.mappings()]


async def count_deployments(connection: AsyncConnection) -> int:
    """How many deployments there are."""
    return int((await connection.execute(text("SELECT count(*) FROM deployments"))).scalar_one())


async def put_deployment(
    connection: AsyncConnection, name: str, model: VersionRef, etag: str, updated_at: datetime
) -> None:
    """Creates or changes the deployment."""
    values = {"name": name, "model": model.name, "version": model.version, "etag": etag, "updated_at": updated_at}
    await connection.execute(text(_PUT), values)


def _load(row: RowMapping) -> Deployment:
    return Deployment(name=row["name"], version=load_version(row), etag=row["etag"], updated_at=row["updated_at"])
