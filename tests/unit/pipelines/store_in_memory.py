"""A feature store in memory, with the rules of the real one that pipelines lean on, and a way to die in between."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyarrow import parquet

from foresight.client import Aborted, AlreadyExists, Commit, PositionMove
from foresight.client.frames import to_table
from foresight.pipelines import Window
from foresight.values import DataType, FeatureGroup, Field
from foresight.values.pipelines import PipelineRun, PipelineStatus, RunReport, RunState

GROUP = FeatureGroup("weather", (Field("place", DataType.STRING),), (Field("wind", DataType.FLOAT64),))
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Killed(BaseException):
    """The process is gone."""


class StoreInMemory:
    """`die_before` and `die_after`: numbers of writes, counted from 1, at which the writer is killed."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.sources: list[str] = []
        self.runs: dict[str, PipelineRun] = {}
        self.positions: dict[str, str] = {}
        self.reports = 0
        self.writes = 0
        self.die_before: set[int] = set()
        self.die_after: set[int] = set()
        self._commits: dict[str, tuple[Any, Commit]] = {}

    def group(self, name: str, version: int = 0) -> FeatureGroup:
        return dataclasses.replace(GROUP, name=name, version=1)

    def write(
        self, group: str, data: Any, *, write_id: str | None = None, source: str = "", move: PositionMove | None = None
    ) -> Commit:
        self.writes += 1
        if self.writes in self.die_before:
            raise Killed
        table = parquet.read_table(data) if isinstance(data, Path) else to_table(data)
        commit = self._commit(table.to_pylist(), write_id or "", source, move)
        if self.writes in self.die_after:
            raise Killed
        return commit

    def _commit(self, rows: list[dict[str, Any]], write_id: str, source: str, move: PositionMove | None) -> Commit:
        assert 1 <= len(write_id.encode()) <= 128
        if write_id in self._commits:
            content, commit = self._commits[write_id]
            if content != rows:
                raise AlreadyExists("the write id was used before with other rows")
            return dataclasses.replace(commit, duplicate=True)
        if move is not None:
            if self.positions.get(move.pipeline, "") != move.before:
                raise Aborted("another run moved the position")
            self.positions[move.pipeline] = move.after
        self.rows += rows
        self.sources.append(source)
        commit = Commit(len(self._commits) + 1 if rows else 0, NOW, len(rows), duplicate=False)
        self._commits[write_id] = rows, commit
        return commit

    def pipeline(self, name: str) -> PipelineStatus:
        return PipelineStatus(name, self.positions.get(name, ""))

    def start_run(self, run: PipelineRun) -> PipelineRun:
        self.runs[run.id] = dataclasses.replace(run, started_at=NOW)
        return self.runs[run.id]

    def report_run(self, report: RunReport) -> PipelineRun:
        self.reports += 1
        known = self.runs[report.id]
        assert not known.state.is_final
        self.runs[report.id] = dataclasses.replace(known, **dataclasses.asdict(report))
        return self.runs[report.id]

    @property
    def states(self) -> list[RunState]:
        """Of the runs, in order."""
        return [run.state for run in self.runs.values()]


def row(at: datetime, place: str = "a", wind: float = 1.0) -> dict[str, Any]:
    """A row of the group."""
    return {"place": place, "event_time": at, "wind": wind}


def one_row(window: Window) -> list[dict[str, Any]]:
    """A function of windows: one row, at the start of each."""
    return [row(window.start)]
