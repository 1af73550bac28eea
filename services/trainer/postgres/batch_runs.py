"""Finished batch runs."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.trainer.models import BatchRun, VersionRef

_COLUMNS = "run_id, deployment, model, version, sink_table, event_time, rows, finished_at, duration_ms"
_FIND = f"SELECT content_sha256, {_COLUMNS} FROM batch_runs WHERE run_id = :run_id"  # noqa: S608 - column names
_LIST = f"SELECT {_COLUMNS} FROM batch_runs ORDER BY finished_at DESC, run_id LIMIT :limit"  # noqa: S608 - column names
# Of two equal runs at once the first one to end is kept.
_INSERT = f"""
    INSERT INTO batch_runs (content_sha256, {_COLUMNS}) VALUES (
        :content_sha256, :run_id, :deployment, :model, :version, :sink_table, :event_time, :rows, :finished_at,
        :duration_ms
    ) ON CONFLICT (run_id) DO NOTHING
"""  # noqa: S608 - column names


async def find_run(connection: AsyncConnection, run_id: str) -> tuple[str, BatchRun] | None:
    """Content digest and run of an id, if there is one."""
    row = (await connection.execute(text(_FIND), {"run_id": run_id})).mappings().one_or_none()
    return None if row is None else (row["content_sha256"], _load(row))


async def newest_runs(connection: AsyncConnection, limit: int) -> Sequence[BatchRun]:
    """The newest runs, newest first."""
    rows = await connection.execute(text(_LIST), {"limit": limit})
    return [_load(row) for row in rows.mappings()]


async def add_run(connection: AsyncConnection, content_sha256: str, run: BatchRun) -> None:
    """Stores a run, unless there is one of its id."""
    values = {
        "content_sha256": content_sha256,
        "run_id": run.run_id,
        "deployment": run.deployment,
        "model": run.model.name,
        "version": run.model.version,
        "sink_table": run.sink_table,
        "event_time": run.event_time,
        "rows": run.rows,
        "finished_at": run.finished_at,
        "duration_ms": run.duration_ms,
    }
    await connection.execute(text(_INSERT), values)


def _load(row: RowMapping) -> BatchRun:
    return BatchRun(
        run_id=row["run_id"],
        deployment=row["deployment"],
        model=VersionRef(row["model"], row["version"]),
        sink_table=row["sink_table"],
        event_time=row["event_time"],
        rows=row["rows"],
        finished_at=row["finished_at"],
        duration_ms=row["duration_ms"],
    )
