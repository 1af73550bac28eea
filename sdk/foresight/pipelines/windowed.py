"""Running pipelines over windows of event time.

A window is one commit, in which the position moves from its start to its end: rows and position are there together or
not at all. So a run that fails or is killed is repeated from where the last whole window ended, and nothing is written
twice. A window that was done before may be computed again: the same rows change nothing, other rows are refused.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Self

from foresight.client import Commit, PositionMove
from foresight.pipelines.declarations import Pipeline, takes_run
from foresight.pipelines.runs import Run, Store
from foresight.pipelines.windows import Schedule, Window, cut, format_instant, parse_position
from foresight.values import InvalidValue
from foresight.values.pipelines import PipelineRun, Trigger

# Windows of one run; what is due beyond that is left to the next.
WINDOWS_MAX = 100
_MICROSECOND = timedelta(microseconds=1)


class WindowRun(Run):
    """A run over windows; use it in a `with` statement and take one step after the other.

    `track` names the position that it moves: that of the pipeline, or of a backfill.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        client: Store,
        trigger: Trigger = Trigger.MANUAL,
        window: Window | None = None,
        track: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(pipeline.name, pipeline.group, client, trigger, window, clock)
        self._declared = pipeline
        self._with_run = takes_run(pipeline.function)
        self._track = track or pipeline.name
        self.position = ""

    def __enter__(self) -> Self:
        self.position = self.client.pipeline(self._track).position
        return super().__enter__()

    def step(self, window: Window) -> Commit | None:
        """Computes the rows of a window and commits them.

        The window begins at the position, which moves to its end, or ends by it, and then nothing moves. None: there
        was nothing to write. Raises InvalidValue for a window that would leave a gap or overlap, Aborted when another
        run moved the position, AlreadyExists when a window that was done before gives other rows now.
        """
        move = self._move(window)
        counted = self.record.rows_in
        try:
            rows = self._declared.function(window, run=self) if self._with_run else self._declared.function(window)
            write_id = f"{self._track}/{window}"
            read = self.record.rows_in - counted
            commit = self._write(rows, write_id, move, read=0 if read else None)
        except Exception as error:
            error.add_note(f"in the window {window}")
            raise
        if move is not None:
            self.position = move.after
        first, last = self.record.from_event_time, self.record.to_event_time
        self._note(
            from_event_time=min(first or window.start, window.start), to_event_time=max(last or window.end, window.end)
        )
        self.report()
        return commit

    def _move(self, window: Window) -> PositionMove | None:
        position = parse_position(self.position)
        if position is not None and window.end <= position:
            return None
        if position is not None and window.start != position:
            fault = "leave a gap after" if window.start > position else "overlap"
            raise InvalidValue("window", f"{window} would {fault} what is done, which ends at {self.position}")
        return PositionMove(self._track, self.position, format_instant(window.end))


def due(pipeline: Pipeline, position: str, now: datetime) -> Iterator[Window]:
    """The windows that are to be run by now, in order.

    Without a schedule it is one, up to now. Raises InvalidValue when there is neither a schedule nor a start.
    """
    until = now - pipeline.delay
    start = parse_position(position) or pipeline.start
    if pipeline.schedule is None:
        if start is None:
            raise InvalidValue("window", f"is required: {pipeline.name} has neither a schedule nor a start")
        if start < until:
            yield Window(start, until)
        return
    yield from pipeline.schedule.windows(start or _last_whole_period(pipeline.schedule, until), until)


def next_run(pipeline: Pipeline, position: str, now: datetime) -> datetime:
    """When the next window is to be run; the past, when it is due already. The pipeline has a schedule."""
    assert pipeline.schedule is not None
    start = parse_position(position) or pipeline.start
    start = start or _last_whole_period(pipeline.schedule, now - pipeline.delay)
    return pipeline.schedule.after(start) + pipeline.delay


def catch_up(
    pipeline: Pipeline,
    client: Store,
    now: datetime,
    trigger: Trigger = Trigger.SCHEDULE,
    stopping: Callable[[], bool] = lambda: False,
) -> PipelineRun | None:
    """Runs what is due, at most WINDOWS_MAX windows; None when nothing is. Ends early once it is `stopping`."""
    windows = due(pipeline, client.pipeline(pipeline.name).position, now)
    first = next(windows, None)
    if first is None:
        return None
    with WindowRun(pipeline, client, trigger) as run:
        run.step(first)
        for _, window in zip(range(WINDOWS_MAX - 1), windows, strict=False):
            if stopping():
                break
            run.step(window)
    return run.record


def run_window(pipeline: Pipeline, client: Store, window: Window) -> PipelineRun:
    """Runs one window by hand; see `WindowRun.step`."""
    with WindowRun(pipeline, client, Trigger.MANUAL, window) as run:
        run.step(window)
    return run.record


def backfill(
    pipeline: Pipeline,
    client: Store,
    start: datetime,
    end: datetime,
    step: timedelta | Schedule | None = None,
    *,
    label: str = "",
    on_window: Callable[[Window], None] = lambda window: None,
) -> PipelineRun | None:
    """Computes the rows of a time range in steps, one commit each; the pipeline's position stays where it is.

    `step`: a length or a schedule; default: the pipeline's schedule, else one step for all. A backfill that ended
    early goes on where it was when it is called again; one that is done answers None. Another `label` makes it another
    backfill, which writes the range anew: its rows correct the earlier ones. `on_window` hears each finished step.
    Raises InvalidValue.
    """
    whole = Window(start, end)
    if isinstance(step, timedelta) and step <= timedelta(0):
        raise InvalidValue("step", "is not a positive length of time")
    digest = hashlib.blake2b(f"{pipeline.name}|{whole}|{label}".encode(), digest_size=16).hexdigest()
    track = f"backfill_{digest}"
    begin = parse_position(client.pipeline(track).position) or whole.start
    if begin >= whole.end:
        return None
    with WindowRun(pipeline, client, Trigger.BACKFILL, Window(begin, whole.end), track) as run:
        for window in cut(begin, whole.end, step or pipeline.schedule):
            run.step(window)
            on_window(window)
    return run.record


def utc_now() -> datetime:
    """Now."""
    return datetime.now(UTC)


def _last_whole_period(schedule: Schedule, until: datetime) -> datetime:
    """The start of the last window that ended by then."""
    return schedule.at_or_before(schedule.at_or_before(until) - _MICROSECOND)
