"""Batch prediction: the latest rows of a group, the view's features as of a time, scores, a table in the sink."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from foresight.scoring import OnnxModel
from foresight.tables import column_to_arrow
from foresight.values import Column, FeatureView, micros_from_instant
from services.runtime.clock import Clock
from services.runtime.database import Database
from services.runtime.errors import AlreadyExists
from services.runtime.ids import new_id
from services.runtime.threads import in_thread
from services.trainer.feature_store import FeatureStore
from services.trainer.metrics import TrainerMetrics
from services.trainer.models import BatchRun, ModelVersion, VersionRef
from services.trainer.postgres import batch_runs
from services.trainer.postgres.sink import Sink
from services.trainer.progress import Progress, Report
from services.trainer.registry import LIST_MAX, Registry
from services.trainer.rows import columns, select
from services.trainer.scorers import Scorers, score_rows
from services.trainer.turns import Turns

AT_ONCE = 2
WAITING_MAX = 16
# Columns of a group's rows that are neither keys nor features.
_ROW_COLUMNS = ("event_time", "known_at", "commit", "deleted")
_INSTANT = pa.timestamp("us", "UTC")


@dataclass(frozen=True, slots=True)
class BatchJob:
    """What to score; `run_id` '' lets the trainer make one."""

    deployment: str
    group: VersionRef
    start: datetime
    end: datetime
    event_time: datetime
    sink_table: str
    run_id: str = ""

    @property
    def content_sha256(self) -> str:
        """Digest of everything but the run id."""
        instants = [micros_from_instant(t) for t in (self.start, self.end, self.event_time)]
        content = (self.deployment, self.group.name, self.group.version, *instants, self.sink_table)
        return hashlib.sha256(repr(content).encode()).hexdigest()


class BatchPrediction:
    """Runs batch predictions, AT_ONCE at a time; up to WAITING_MAX more wait."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        scorers: Scorers,
        feature_store: FeatureStore,
        sink: Sink,
        clock: Clock,
        metrics: TrainerMetrics,
    ) -> None:
        self._database = database
        self._registry = registry
        self._scorers = scorers
        self._feature_store = feature_store
        self._sink = sink
        self._clock = clock
        self._metrics = metrics
        self._turns = Turns("batch predictions", at_once=AT_ONCE, waiting_max=WAITING_MAX)

    async def run(self, job: BatchJob, report: Report) -> BatchRun:
        """Scores and writes; the same run id with the same content answers the first run.

        A run that was cut off leaves no rows, or all of them, which its repetition replaces. Raises AlreadyExists
        for a run id with other content, NotFound, FailedPrecondition when the group lacks what the view needs or the
        sink table has other columns, LimitExceeded when too many runs wait.
        """
        async with self._turns.turn():
            if job.run_id and (first := await self._find(job)) is not None:
                return first
            started = time.perf_counter()
            run_id = job.run_id or new_id()
            deployment = await self._registry.deployment(job.deployment)
            version = deployment.version
            report(Progress("reading"))
            rows, features = await self._read(job, version)
            report(Progress("scoring", rows.num_rows))
            scorer = await self._scorers.load(version)
            outputs = await in_thread(_score, scorer, features)
            report(Progress("writing", rows.num_rows))
            table = _sink_rows(rows, outputs, job, run_id, version.ref, self._clock())
            await self._sink.write(job.sink_table, run_id, table)
            run = BatchRun(
                run_id=run_id,
                deployment=job.deployment,
                model=version.ref,
                sink_table=job.sink_table,
                event_time=job.event_time,
                rows=rows.num_rows,
                finished_at=self._clock(),
                duration_ms=round((time.perf_counter() - started) * 1_000),
            )
            async with self._database.transaction() as connection:
                await batch_runs.add_run(connection, job.content_sha256, run)
        self._metrics.batch_rows.inc(run.rows)
        return run

    async def runs(self) -> Sequence[BatchRun]:
        """The newest runs, newest first, at most LIST_MAX."""
        async with self._database.transaction() as connection:
            return await batch_runs.newest_runs(connection, LIST_MAX)

    async def _find(self, job: BatchJob) -> BatchRun | None:
        async with self._database.transaction() as connection:
            found = await batch_runs.find_run(connection, job.run_id)
        if found is None:
            return None
        content, run = found
        if content != job.content_sha256:
            raise AlreadyExists("the run id was used before with other content", run_id=job.run_id)
        return run

    async def _read(self, job: BatchJob, version: ModelVersion) -> tuple[pa.Table, pa.Table]:
        """The scoring rows (keys, features, event_time), and the model's inputs for each of them."""
        view = await self._feature_store.view(version.view)
        rows = await self._feature_store.latest_rows(job.group, job.start, job.end)
        spine = _spine(rows, view, job.event_time, f"the group {job.group}")
        inputs = version.signature.inputs
        if not rows.num_rows:
            return rows, pa.table({f.name: pa.nulls(0, column_to_arrow(Column.nulls(f, 0)).type) for f in inputs})
        joined = await self._feature_store.as_of(version.view, spine)
        return rows, select(joined, inputs, f"the view {version.view}")


def _spine(rows: pa.Table, view: FeatureView, event_time: datetime, of: str) -> pa.Table:
    spine = select(rows, (*view.entity_keys, *view.request_features), of)
    instants = pa.array(np.full(rows.num_rows, micros_from_instant(event_time), np.int64)).cast(_INSTANT)
    return spine.append_column("event_time", instants)


def _score(model: OnnxModel, features: pa.Table) -> list[Column]:
    """The outputs; those of a row that the model has no answer for (NaN, for a NULL that it does not take) are NULL."""
    signature = model.signature
    if not features.num_rows:
        return [Column.nulls(field, 0) for field in signature.outputs]
    raw = score_rows(model, columns(features, signature.inputs))
    answered = np.isfinite(raw).reshape(len(raw), -1).all(axis=1)
    if answered.all():
        return model.decode(raw)
    raw[~answered] = 0
    return [Column(c.name, c.type, c.values, answered) for c in model.decode(raw)]


def _sink_rows(
    rows: pa.Table, outputs: list[Column], job: BatchJob, run_id: str, model: VersionRef, scored_at: datetime
) -> pa.Table:
    """The table as it goes to the sink: one row per scoring row."""
    n = rows.num_rows

    def same(value: Any, type: pa.DataType) -> pa.Array:
        return pa.repeat(pa.scalar(value, type), n)

    table: dict[str, Any] = {
        "run_id": same(run_id, pa.string()),
        "as_of": same(job.event_time, _INSTANT),
        "scored_at": same(scored_at, _INSTANT),
        "model": same(model.name, pa.string()),
        "model_version": same(model.version, pa.int64()),
    }
    for name in rows.column_names:
        if name not in _ROW_COLUMNS:
            table[name] = rows[name]
    table["scheduled_for"] = rows["event_time"].cast(_INSTANT)
    for output in outputs:
        table[f"prediction_{output.name}"] = column_to_arrow(output)
    return pa.table(table)
