"""Feature pipelines as the store sees them: how far each has come, and the history of its runs.

A position moves only in the transaction of the write that it comes with (see `writes.py`); here it is read. A run that
is over is not changed any more. Of a pipeline's runs that move its position at most one is said to go on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from foresight.values import InvalidValue, check_name
from foresight.values.pipelines import PipelineRun, PipelineStatus, RunReport, RunState
from services.runtime.clock import Clock
from services.runtime.errors import AlreadyExists, FailedPrecondition

RUNS_LISTED = 50
RUNS_LISTED_MAX = 1_000
# Of each pipeline; older ones are forgotten.
RUNS_KEPT = 10_000
PIPELINES_MAX = 1_000


class PipelineHistory(Protocol):
    """Keeps pipelines and their runs."""

    async def pipeline(self, name: str) -> PipelineStatus:
        """A pipeline, with the empty position when it never wrote."""
        ...

    async def pipelines(self) -> list[PipelineStatus]:
        """Those that ran, by name."""
        ...

    async def start(self, run: PipelineRun, now: datetime) -> PipelineRun:
        """Adds a run, or answers it when it is there. Raises AlreadyExists, LimitExceeded."""
        ...

    async def report(self, report: RunReport, now: datetime) -> PipelineRun:
        """Changes a run. Raises NotFound, FailedPrecondition."""
        ...

    async def runs(self, pipeline: str, limit: int) -> list[PipelineRun]:
        """The newest runs of a pipeline, or of all when it is empty."""
        ...


class Pipelines:
    """Positions and history of pipelines."""

    def __init__(self, history: PipelineHistory, clock: Clock) -> None:
        self._history = history
        self._clock = clock

    async def pipeline(self, name: str) -> PipelineStatus:
        """How far a pipeline has come. Raises InvalidValue."""
        return await self._history.pipeline(check_name(name))

    async def pipelines(self) -> Sequence[PipelineStatus]:
        """The pipelines that ran at least once, by name."""
        return await self._history.pipelines()

    async def start(self, run: PipelineRun) -> PipelineRun:
        """Records that a run began. Raises AlreadyExists for the id of another run, LimitExceeded."""
        return await self._history.start(run, self._clock())

    async def report(self, report: RunReport) -> PipelineRun:
        """Records how a run goes on or ended. Raises NotFound, FailedPrecondition when it was over before."""
        return await self._history.report(report, self._clock())

    async def runs(self, pipeline: str, limit: int) -> Sequence[PipelineRun]:
        """Runs, the newest first; of all pipelines when none is named. Raises InvalidValue."""
        if pipeline:
            check_name(pipeline, "pipeline")
        if limit > RUNS_LISTED_MAX:
            raise InvalidValue("limit", f"is more than {RUNS_LISTED_MAX}")
        return await self._history.runs(pipeline, limit or RUNS_LISTED)


def check_same_run(known: PipelineRun, run: PipelineRun) -> PipelineRun:
    """The run that has the id of one that begins. Raises AlreadyExists unless they are the same."""
    same = dataclasses.replace(
        run,
        state=known.state,
        started_at=known.started_at,
        finished_at=known.finished_at,
        rows_in=known.rows_in,
        rows_out=known.rows_out,
        skipped=known.skipped,
        to_event_time=known.to_event_time,
        commit=known.commit,
        error=known.error,
    )
    if same != known:
        raise AlreadyExists("the id of the run is that of another one", run=run.id)
    return known


def reported(known: PipelineRun, report: RunReport, now: datetime) -> PipelineRun:
    """The run as it is with a report. Raises FailedPrecondition when it was over before, with another report."""
    # That a lost run goes on makes it no less lost: it can write no more.
    state = known.state if known.state is RunState.LOST and not report.state.is_final else report.state
    told = dataclasses.replace(
        known,
        state=state,
        rows_in=report.rows_in,
        rows_out=report.rows_out,
        skipped=report.skipped,
        from_event_time=report.from_event_time or known.from_event_time,
        to_event_time=report.to_event_time or known.to_event_time,
        commit=report.commit,
        error=report.error,
    )
    if not known.state.is_final:
        return dataclasses.replace(told, finished_at=now if told.state.is_final else None)
    if told != known:
        raise FailedPrecondition(f"the run is over: it {known.state.name.lower()}", run=known.id)
    return known
