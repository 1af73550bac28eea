"""Positions of pipelines, which writes move, and the history of their runs."""

from __future__ import annotations

import dataclasses
from datetime import datetime

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from foresight.values.pipelines import PipelineRun, PipelineStatus, RunReport, RunState, Trigger
from services.feature_store.pipelines import PIPELINES_MAX, RUNS_KEPT, check_same_run, reported
from services.runtime.database import Database
from services.runtime.errors import LimitExceeded, NotFound

_COLUMNS = (
    "id, pipeline, trigger, state, started_at, finished_at, rows_in, rows_out, skipped, from_event_time, to_event_time,"
    " commit, error"
)
_POSITION = text("SELECT position, commit, moved_at FROM pipeline_positions WHERE pipeline = :name")
_PIPELINES = text(
    """
    SELECT p.name, q.position, q.commit AS position_commit, q.moved_at, r.*
    FROM pipelines p LEFT JOIN pipeline_positions q ON q.pipeline = p.name
      LEFT JOIN LATERAL (SELECT * FROM pipeline_runs WHERE pipeline = p.name ORDER BY number DESC LIMIT 1) r ON true
    ORDER BY p.name
    """
)
_ADD_PIPELINE = text(
    "INSERT INTO pipelines (name) SELECT :name WHERE (SELECT count(*) FROM pipelines) < :most ON CONFLICT DO NOTHING"
)
# Locked, so that two runs of a pipeline that begin at once take turns.
_LOCK_PIPELINE = text("SELECT name FROM pipelines WHERE name = :name FOR UPDATE")
_RUN = text(f"SELECT {_COLUMNS} FROM pipeline_runs WHERE id = :id FOR UPDATE")  # noqa: S608 - a constant
_ADD_RUN = text(
    """
    INSERT INTO pipeline_runs (id, pipeline, trigger, state, started_at, from_event_time, to_event_time)
    VALUES (:id, :pipeline, :trigger, :state, :started_at, :from_event_time, :to_event_time)
    ON CONFLICT DO NOTHING
    """
)
_LOSE_OTHERS = text(
    """
    UPDATE pipeline_runs SET state = :lost
    WHERE pipeline = :pipeline AND state = :running AND trigger <> :backfill AND id <> :id
    """
)
_FORGET_OLD = text(
    """
    DELETE FROM pipeline_runs WHERE pipeline = :pipeline AND number <= (
      SELECT number FROM pipeline_runs WHERE pipeline = :pipeline ORDER BY number DESC OFFSET :kept LIMIT 1)
    """
)
_CHANGE_RUN = text(
    """
    UPDATE pipeline_runs SET state = :state, finished_at = :finished_at, rows_in = :rows_in, rows_out = :rows_out,
      skipped = :skipped, from_event_time = :from_event_time, to_event_time = :to_event_time, commit = :commit,
      error = :error
    WHERE id = :id
    """
)
_RUNS = text(f"SELECT {_COLUMNS} FROM pipeline_runs ORDER BY number DESC LIMIT :limit")  # noqa: S608 - a constant
_RUNS_OF = text(
    f"SELECT {_COLUMNS} FROM pipeline_runs WHERE pipeline = :pipeline ORDER BY number DESC LIMIT :limit"  # noqa: S608
)
_LAST_RUN = text(
    f"SELECT {_COLUMNS} FROM pipeline_runs WHERE pipeline = :name ORDER BY number DESC LIMIT 1"  # noqa: S608
)


class PipelineTable:
    """Pipelines and runs in the store's schema; see `services.feature_store.pipelines`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def pipeline(self, name: str) -> PipelineStatus:
        """A pipeline, with the empty position when it never wrote."""
        async with self._database.statements() as connection:
            position = (await connection.execute(_POSITION, {"name": name})).mappings().one_or_none()
            run = (await connection.execute(_LAST_RUN, {"name": name})).mappings().one_or_none()
        last_run = None if run is None else _run(run)
        if position is None:
            return PipelineStatus(name, last_run=last_run)
        return PipelineStatus(name, position["position"], position["commit"] or 0, position["moved_at"], last_run)

    async def pipelines(self) -> list[PipelineStatus]:
        """Those that ran, by name."""
        async with self._database.statements() as connection:
            rows = (await connection.execute(_PIPELINES)).mappings().all()
        return [
            PipelineStatus(
                name=row["name"],
                position=row["position"] or "",
                commit=row["position_commit"] or 0,
                moved_at=row["moved_at"],
                last_run=None if row["id"] is None else _run(row),
            )
            for row in rows
        ]

    async def start(self, run: PipelineRun, now: datetime) -> PipelineRun:
        """Adds a run, or answers it when it is there. Raises AlreadyExists, LimitExceeded."""
        row = {
            "id": run.id,
            "pipeline": run.pipeline,
            "trigger": run.trigger.value,
            "state": int(RunState.RUNNING),
            "started_at": now,
            "from_event_time": run.from_event_time,
            "to_event_time": run.to_event_time,
        }
        async with self._database.transaction() as connection:
            await _lock_pipeline(connection, run.pipeline)
            if (await connection.execute(_ADD_RUN, row)).rowcount == 0:
                known = (await connection.execute(_RUN, {"id": run.id})).mappings().one()
                return check_same_run(_run(known), run)
            if run.trigger is not Trigger.BACKFILL:
                states = {"lost": int(RunState.LOST), "running": int(RunState.RUNNING)}
                await connection.execute(
                    _LOSE_OTHERS,
                    {"pipeline": run.pipeline, "id": run.id, "backfill": Trigger.BACKFILL.value, **states},
                )
            await connection.execute(_FORGET_OLD, {"pipeline": run.pipeline, "kept": RUNS_KEPT})
        return dataclasses.replace(run, state=RunState.RUNNING, started_at=now)

    async def report(self, report: RunReport, now: datetime) -> PipelineRun:
        """Changes a run. Raises NotFound, FailedPrecondition."""
        async with self._database.transaction() as connection:
            row = (await connection.execute(_RUN, {"id": report.id})).mappings().one_or_none()
            if row is None:
                raise NotFound("pipeline run", report.id)
            run = reported(_run(row), report, now)
            await connection.execute(_CHANGE_RUN, dataclasses.asdict(run))
        return run

    async def runs(self, pipeline: str, limit: int) -> list[PipelineRun]:
        """The newest runs of a pipeline, or of all when it is empty."""
        async with self._database.statements() as connection:
            if pipeline:
                found = await connection.execute(_RUNS_OF, {"pipeline": pipeline, "limit": limit})
            else:
                found = await connection.execute(_RUNS, {"limit": limit})
            return [_run(row) for row in found.mappings()]


async def _lock_pipeline(connection: AsyncConnection, name: str) -> None:
    """Holds a pipeline until the transaction ends, and adds it when it is new. Raises LimitExceeded."""
    await connection.execute(_ADD_PIPELINE, {"name": name, "most": PIPELINES_MAX})
    if (await connection.execute(_LOCK_PIPELINE, {"name": name})).one_or_none() is None:
        raise LimitExceeded(f"there are {PIPELINES_MAX} pipelines already", limit="pipelines")


def _run(row: RowMapping) -> PipelineRun:
    return PipelineRun(
        id=row["id"],
        pipeline=row["pipeline"],
        trigger=Trigger(row["trigger"]),
        state=RunState(row["state"]),
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        rows_in=row["rows_in"],
        rows_out=row["rows_out"],
        skipped=row["skipped"],
        from_event_time=row["from_event_time"],
        to_event_time=row["to_event_time"],
        commit=row["commit"],
        error=row["error"],
    )
