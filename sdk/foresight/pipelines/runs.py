"""A run of a pipeline, kept in its history: what it read and wrote, and how it ended.

The history is for people. What was done is said by the position, which is stored with the rows.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from foresight.client import Commit, ForesightError, PositionMove
from foresight.pipelines.rows import sendable
from foresight.pipelines.windows import Window
from foresight.values import FeatureGroup
from foresight.values.pipelines import PipelineRun, PipelineStatus, RunReport, RunState, Trigger, cut_error

# A run that lasts is reported so often.
REPORT_EVERY_S = 5.0


class Store(Protocol):
    """What runs need of a `foresight.client.Client`."""

    def group(self, name: str, version: int = 0) -> FeatureGroup:
        """A group."""
        ...

    def write(
        self, group: str, data: Any, *, write_id: str | None = None, source: str = "", move: PositionMove | None = None
    ) -> Commit:
        """Writes rows and moves a position."""
        ...

    def pipeline(self, name: str) -> PipelineStatus:
        """How far a pipeline has come."""
        ...

    def start_run(self, run: PipelineRun) -> PipelineRun:
        """Records that a run began."""
        ...

    def report_run(self, report: RunReport) -> PipelineRun:
        """Records how a run goes on."""
        ...


class Run:
    """One run; use it in a `with` statement. `record` is what the history has of it."""

    def __init__(
        self,
        pipeline: str,
        group: str,
        client: Store,
        trigger: Trigger,
        window: Window | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client
        self._pipeline = pipeline
        self._group = group
        self._known: FeatureGroup | None = None
        self._clock = clock
        self._reported_at = clock()
        self.record = PipelineRun(
            id=str(uuid.uuid4()),
            pipeline=pipeline,
            trigger=trigger,
            from_event_time=window.start if window else None,
            to_event_time=window.end if window else None,
        )

    def count_in(self, rows: int) -> None:
        """Counts what the function read; a function that counts nothing is taken to read what it returns."""
        self._note(rows_in=self.record.rows_in + rows)

    def __enter__(self) -> Self:
        self.record = self.client.start_run(self.record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._report(RunState.SUCCEEDED)
            return
        state = RunState.FAILED if isinstance(error, Exception) else RunState.CANCELLED
        self._note(error=cut_error(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__))
        try:
            self._report(state)
        except ForesightError as unreported:
            error.add_note(f"the history does not say so: {unreported}")

    def report(self) -> None:
        """Says how it goes on, when the last time is some seconds ago."""
        if self._clock() - self._reported_at >= REPORT_EVERY_S:
            self._report(RunState.RUNNING)

    def _report(self, state: RunState) -> None:
        run = self.record
        self._reported_at = self._clock()
        self.record = self.client.report_run(
            RunReport(
                id=run.id,
                state=state,
                rows_in=run.rows_in,
                rows_out=run.rows_out,
                skipped=run.skipped,
                from_event_time=run.from_event_time,
                to_event_time=run.to_event_time,
                commit=run.commit,
                error=run.error,
            )
        )

    def _write(self, rows: Any, write_id: str, move: PositionMove | None, read: int | None = None) -> Commit | None:
        """Commits rows and moves a position; None when there was neither. `read`: None: as many as there are rows."""
        with sendable(rows, self._described()) as (data, count):
            commit = None
            if move is not None or count:
                commit = self.client.write(self._group, data, write_id=write_id, source=self._pipeline, move=move)
            self.count_in(count if read is None else read)
        # A duplicate that moves the position is the answer of this very write, asked for again after it was lost.
        if commit is not None and (move is not None or not commit.duplicate):
            self._note(rows_out=self.record.rows_out + commit.rows, commit=commit.number or self.record.commit)
        return commit

    def _described(self) -> FeatureGroup:
        if self._known is None:
            self._known = self.client.group(self._group)
        return self._known

    def _note(self, **changes: Any) -> None:
        self.record = dataclasses.replace(self.record, **changes)
