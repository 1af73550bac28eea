"""Feature pipelines and their runs, as the store keeps them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from foresight.values.errors import InvalidValue
from foresight.values.names import check_name, check_text

RUN_ID_BYTES_MAX = 128
POSITION_BYTES_MAX = 1_024
ERROR_BYTES_MAX = 2_048
_COUNT_MAX = 2**63 - 1


class RunState(enum.IntEnum):
    """State of a run. The numbers are those of the wire enum RunState."""

    RUNNING = 1
    SUCCEEDED = 2
    FAILED = 3
    CANCELLED = 4
    # Nothing was heard of its end, and another run began since.
    LOST = 5

    @property
    def is_final(self) -> bool:
        """Whether the run is over, as far as its own program said."""
        return self not in (RunState.RUNNING, RunState.LOST)


class Trigger(enum.StrEnum):
    """What made a run begin."""

    SCHEDULE = "schedule"
    STREAM = "stream"
    BACKFILL = "backfill"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class PipelineRun:
    """One run. Raises InvalidValue for what no run can be.

    `rows_in` counts what was read, `skipped` the messages among it on which the function failed, `rows_out` what was
    written; `commit` is the last one, 0 without any. The server sets `started_at` and `finished_at`.
    """

    id: str
    pipeline: str
    trigger: Trigger
    state: RunState = RunState.RUNNING
    started_at: datetime | None = None
    finished_at: datetime | None = None
    rows_in: int = 0
    rows_out: int = 0
    skipped: int = 0
    from_event_time: datetime | None = None
    to_event_time: datetime | None = None
    commit: int = 0
    error: str = ""

    def __post_init__(self) -> None:
        check_run_id(self.id)
        check_name(self.pipeline, "pipeline")
        check_run_times(self.from_event_time, self.to_event_time)


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run's program says of it; times that are None stay as they were. Raises InvalidValue."""

    id: str
    state: RunState
    rows_in: int = 0
    rows_out: int = 0
    skipped: int = 0
    from_event_time: datetime | None = None
    to_event_time: datetime | None = None
    commit: int = 0
    error: str = ""

    def __post_init__(self) -> None:
        check_run_id(self.id)
        if self.state is RunState.LOST:
            raise InvalidValue("state", "is set by the server only")
        for name in ("rows_in", "rows_out", "skipped", "commit"):
            if not 0 <= getattr(self, name) <= _COUNT_MAX:
                raise InvalidValue(name, "does not fit into 63 bits")
        check_run_times(self.from_event_time, self.to_event_time)


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """How far a pipeline has come. `position` is in its own terms, empty when it never wrote; `commit` 0: none."""

    name: str
    position: str = ""
    commit: int = 0
    moved_at: datetime | None = None
    last_run: PipelineRun | None = None


@dataclass(frozen=True, slots=True)
class PositionMove:
    """A pipeline's position that moves together with the rows of a write. Raises InvalidValue.

    `before` is what the pipeline had read when it made the rows; when another run has moved it since, nothing is
    written.
    """

    pipeline: str
    before: str
    after: str

    def __post_init__(self) -> None:
        check_name(self.pipeline, "pipeline")
        check_text(self.before, "position_before", POSITION_BYTES_MAX)
        check_text(self.after, "position_after", POSITION_BYTES_MAX)


def check_run_id(id: str) -> None:
    """Raises InvalidValue for an id that no run can have."""
    if not id:
        raise InvalidValue("id", "is required")
    check_text(id, "id", RUN_ID_BYTES_MAX)


def check_run_times(start: datetime | None, end: datetime | None) -> None:
    """Raises InvalidValue unless both are there, in order, or neither."""
    if (start is None) != (end is None):
        raise InvalidValue("to_event_time", "comes together with from_event_time, or not at all")
    if start is not None and end is not None and end <= start:
        raise InvalidValue("to_event_time", "is not after from_event_time")


def cut_error(text: str) -> str:
    """The text of an error as a history keeps it: whatever it holds, at most ERROR_BYTES_MAX bytes of UTF-8."""
    data = text.replace("\0", "").encode(errors="replace")
    return data[:ERROR_BYTES_MAX].decode(errors="ignore")
