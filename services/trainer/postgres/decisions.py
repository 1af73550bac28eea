"""Decisions about challengers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.trainer.models import DatasetSelection, Decision, Judgement, ModelMetrics, VersionRef

_COLUMNS = """
    id, deployment, champion_model, champion_version, challenger_model, challenger_version, dataset_id, split,
    metric, margin, promoted, models, rows, judged_at, created_at
"""
_FIND = f"""
    SELECT {_COLUMNS} FROM decisions WHERE deployment = :deployment AND challenger_model = :challenger_model
    AND challenger_version = :challenger_version AND dataset_id = :dataset_id AND split = :split
    AND metric = :metric AND judged_at = :judged_at
"""  # noqa: S608 - column names
_LIST = f"""
    SELECT * FROM (
        SELECT sequence, {_COLUMNS} FROM decisions WHERE :deployment = '' OR deployment = :deployment
        ORDER BY sequence DESC LIMIT :limit
    ) newest ORDER BY sequence
"""  # noqa: S608 - column names
_INSERT = f"""
    INSERT INTO decisions ({_COLUMNS}) VALUES (
        :id, :deployment, :champion_model, :champion_version, :challenger_model, :challenger_version, :dataset_id,
        :split, :metric, :margin, :promoted, CAST(:models AS jsonb), :rows, :judged_at, :created_at
    )
"""  # noqa: S608 - column names


async def find_decision(connection: AsyncConnection, judgement: Judgement) -> Decision | None:
    """The decision on the same question; the margin is no part of it."""
    values = _dump_judgement(judgement)
    del values["margin"]
    row = (await connection.execute(text(_FIND), values)).mappings().one_or_none()
    return None if row is None else _load(row)


async def newest_decisions(connection: AsyncConnection, deployment: str, limit: int) -> Sequence[Decision]:
    """The newest decisions of a deployment, or of all, oldest first."""
    rows = await connection.execute(text(_LIST), {"deployment": deployment, "limit": limit})
    return [_load(row) for row in rows.mappings()]


async def add_decision(connection: AsyncConnection, decision: Decision) -> None:
    """Stores a decision; the caller holds the deployment's lock and knows that there is none yet."""
    models = [[m.model.name, m.model.version, dict(m.metrics)] for m in decision.models]
    values = {
        **_dump_judgement(decision.judgement),
        "id": decision.id,
        "champion_model": decision.champion.name,
        "champion_version": decision.champion.version,
        "promoted": decision.promoted,
        "models": json.dumps(models),
        "rows": decision.rows,
        "created_at": decision.created_at,
    }
    await connection.execute(text(_INSERT), values)


def _dump_judgement(judgement: Judgement) -> dict[str, Any]:
    return {
        "deployment": judgement.deployment,
        "challenger_model": judgement.challenger.name,
        "challenger_version": judgement.challenger.version,
        "dataset_id": judgement.dataset.dataset_id,
        "split": judgement.dataset.split,
        "metric": judgement.metric,
        "margin": judgement.margin,
        "judged_at": judgement.judged_at,
    }


def _load(row: RowMapping) -> Decision:
    return Decision(
        id=row["id"],
        judgement=Judgement(
            deployment=row["deployment"],
            challenger=VersionRef(row["challenger_model"], row["challenger_version"]),
            dataset=DatasetSelection(row["dataset_id"], row["split"]),
            metric=row["metric"],
            margin=row["margin"],
            judged_at=row["judged_at"],
        ),
        champion=VersionRef(row["champion_model"], row["champion_version"]),
        promoted=row["promoted"],
        models=tuple(ModelMetrics(VersionRef(n, v), metrics) for n, v, metrics in row["models"]),
        rows=row["rows"],
        created_at=row["created_at"],
    )
