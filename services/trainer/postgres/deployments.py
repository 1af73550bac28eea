"""Deployments and their arms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import groupby

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.trainer.models import Arm, Deployment
from services.trainer.postgres.versions import VERSION_COLUMNS, load_version

# Changes of one deployment take turns, its creation included.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('deployment ' || :name, 0))"
# One row per arm.
_SELECT = (
    f"SELECT d.name, d.etag, d.salt, d.updated_at, r.name AS arm, r.weight, r.shadow, {VERSION_COLUMNS} "  # noqa: S608 - column names
    "FROM deployments d JOIN deployment_arms r ON r.deployment = d.name "
    "JOIN model_versions v ON v.model = r.model AND v.version = r.version"
)
_PUT = """
    INSERT INTO deployments (name, salt, etag, updated_at) VALUES (:name, :salt, :etag, :updated_at)
    ON CONFLICT (name) DO UPDATE
    SET salt = excluded.salt, etag = excluded.etag, updated_at = excluded.updated_at
"""
_REMOVE_ARMS = "DELETE FROM deployment_arms WHERE deployment = :name"
_ADD_ARM = """
    INSERT INTO deployment_arms (deployment, place, name, model, version, weight, shadow)
    VALUES (:deployment, :place, :name, :model, :version, :weight, :shadow)
"""


async def lock_deployment(connection: AsyncConnection, name: str) -> Deployment | None:
    """The deployment, locked until the transaction ends, also when it does not exist yet."""
    await connection.execute(text(_LOCK), {"name": name})
    return await find_deployment(connection, name)


async def find_deployment(connection: AsyncConnection, name: str) -> Deployment | None:
    """The deployment, if there is one."""
    rows = await connection.execute(text(f"{_SELECT} WHERE d.name = :name ORDER BY r.place"), {"name": name})
    return next(_load(rows.mappings()), None)


async def all_deployments(connection: AsyncConnection) -> Sequence[Deployment]:
    """All deployments, by name."""
    rows = await connection.execute(text(f'{_SELECT} ORDER BY d.name COLLATE "C", r.place'))
    return list(_load(rows.mappings()))


async def count_deployments(connection: AsyncConnection) -> int:
    """How many deployments there are."""
    return int((await connection.execute(text("SELECT count(*) FROM deployments"))).scalar_one())


async def count_arms(connection: AsyncConnection, *, besides: str) -> int:
    """How many arms all deployments but one have."""
    statement = text("SELECT count(*) FROM deployment_arms WHERE deployment <> :besides")
    return int((await connection.execute(statement, {"besides": besides})).scalar_one())


async def put_deployment(connection: AsyncConnection, deployment: Deployment) -> None:
    """Creates or changes the deployment."""
    name = deployment.name
    values = {"name": name, "salt": deployment.salt, "etag": deployment.etag, "updated_at": deployment.updated_at}
    await connection.execute(text(_PUT), values)
    await connection.execute(text(_REMOVE_ARMS), {"name": name})
    await connection.execute(
        text(_ADD_ARM),
        [
            {
                "deployment": name,
                "place": place,
                "name": arm.name,
                "model": arm.version.ref.name,
                "version": arm.version.ref.version,
                "weight": arm.weight,
                "shadow": arm.shadow,
            }
            for place, arm in enumerate(deployment.arms)
        ],
    )


def _load(rows: Iterable[RowMapping]) -> Iterator[Deployment]:
    """The deployments of rows that are ordered by deployment and place."""

    def head(row: RowMapping) -> tuple[str, str, str, datetime]:
        return row["name"], row["salt"], row["etag"], row["updated_at"]

    for (name, salt, etag, updated_at), found in groupby(rows, head):
        arms = tuple(Arm(row["arm"], load_version(row), row["weight"], row["shadow"]) for row in found)
        yield Deployment(name, arms, salt, etag, updated_at)
