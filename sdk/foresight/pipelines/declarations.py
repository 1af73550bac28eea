"""Pipelines as a user's module declares them.

A declaration says which group is fed, from what and when; nothing happens until it is run. The decorated function
stays an ordinary one: called, it computes and writes nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import ModuleType
from typing import Any, TypeAlias

from foresight.pipelines.sources import Message, Source, source_of
from foresight.pipelines.windows import Schedule
from foresight.values import InvalidValue, check_name
from foresight.values.instants import micros_from_instant

# What `Client.write` takes, or None for no rows.
Rows: TypeAlias = Any

BATCH_ROWS_MAX = 100_000
BATCH_S_MAX = 600.0


class OnError(StrEnum):
    """What a stream does when its function fails on a message."""

    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline over windows of event time; `pipeline` makes one of a function."""

    name: str
    group: str
    function: Callable[..., Rows]
    schedule: Schedule | None = None
    delay: timedelta = timedelta(0)
    start: datetime | None = None

    def __post_init__(self) -> None:
        _check_names(self.name, self.group)
        if self.delay < timedelta(0):
            raise InvalidValue("delay", "is negative")
        if self.start is not None:
            micros_from_instant(self.start, "start")

    def __call__(self, *args: Any, **kwargs: Any) -> Rows:
        return self.function(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Stream:
    """A pipeline over messages; `stream` makes one of a function."""

    name: str
    group: str
    function: Callable[..., Rows]
    source: Source
    batch_rows: int = 500
    batch_s: float = 1.0
    on_error: OnError = OnError.FAIL
    skip_max: int = 100

    def __post_init__(self) -> None:
        _check_names(self.name, self.group)
        if not 1 <= self.batch_rows <= BATCH_ROWS_MAX:
            raise InvalidValue("batch_rows", f"is not within 1 and {BATCH_ROWS_MAX:,}")
        if not 0 <= self.batch_s <= BATCH_S_MAX:
            raise InvalidValue("batch_s", f"is not within 0 and {BATCH_S_MAX:g} s")
        if self.skip_max < 0:
            raise InvalidValue("skip_max", "is negative")

    def __call__(self, messages: Sequence[Message]) -> Rows:
        return self.function(messages)


def pipeline(
    *,
    group: str,
    schedule: str | timedelta | None = None,
    timezone: str = "UTC",
    delay: timedelta = timedelta(0),
    start: datetime | None = None,
    name: str = "",
) -> Callable[[Callable[..., Rows]], Pipeline]:
    """Declares a pipeline that computes the rows of a group, one window of event time after the other.

    ::

        @pipeline(group="weather", schedule="0 * * * *", delay=timedelta(minutes=5))
        def weather(window: Window) -> pd.DataFrame:
            return observations(window.start, window.end)

    The function gets a `Window` and returns rows with event times in it: what `Client.write` takes, such as a
    DataFrame, or in bounded memory an iterator of DataFrames or the path of a Parquet file; or None. With a parameter
    `run` it gets the `Run` too, which has the client and counts what was read. It should give the same rows for the
    same window.

    `schedule`: a cron expression, in `timezone`, or an interval; a window goes from one of its ticks to the next and
    is run `delay` after its end, when its data have arrived. Without a schedule it is run by hand only.
    `start`: where the first window begins; default: with the last whole period. `name`: default: the function's.
    Raises InvalidValue.
    """

    def declare(function: Callable[..., Rows]) -> Pipeline:
        return Pipeline(
            name=name or function.__name__,
            group=group,
            function=function,
            schedule=None if schedule is None else Schedule.of(schedule, timezone),
            delay=delay,
            start=start,
        )

    return declare


def stream(
    *,
    group: str,
    source: Any,
    batch_rows: int = 500,
    batch_s: float = 1.0,
    on_error: OnError | str = OnError.FAIL,
    skip_max: int = 100,
    name: str = "",
) -> Callable[[Callable[[list[Message]], Rows]], Stream]:
    """Declares a pipeline that makes rows of a group out of messages, in small batches.

    ::

        @stream(group="carrier_delays", source=NatsSource(subject="landings", stream="FLIGHTS"))
        def delays(messages: list[Message]) -> list[dict[str, Any]]:
            return [json.loads(message.data) for message in messages]

    `source`: a `Source` such as `NatsSource`, an async iterator, or a function that returns one (see
    `foresight.pipelines.sources`). A batch is full with `batch_rows` messages or `batch_s` seconds after its first
    one; it becomes one commit, together with the position of its last message, which is acknowledged after that.
    Each message counts once, also after a crash.

    `on_error="skip"`: a message on which the function fails (found by halving the batch) is left out and counted, at
    most `skip_max` of a run; one more, or any with "fail", fails the run. Raises InvalidValue.
    """
    try:
        policy = OnError(on_error)
    except ValueError:
        raise InvalidValue("on_error", f"is {on_error!r}, not 'fail' or 'skip'") from None

    def declare(function: Callable[[list[Message]], Rows]) -> Stream:
        return Stream(
            name=name or function.__name__,
            group=group,
            function=function,
            source=source_of(source),
            batch_rows=batch_rows,
            batch_s=batch_s,
            on_error=policy,
            skip_max=skip_max,
        )

    return declare


def declared(modules: Iterable[ModuleType]) -> list[Pipeline | Stream]:
    """The pipelines at the top level of modules, each once. Raises InvalidValue when two have one name."""
    found: dict[str, Pipeline | Stream] = {}
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, Pipeline | Stream) and found.setdefault(value.name, value) is not value:
                raise InvalidValue("name", f"two pipelines are called {value.name}")
    return list(found.values())


def takes_run(function: Callable[..., Rows]) -> bool:
    """Whether a pipeline's function wants the run too."""
    return "run" in inspect.signature(function).parameters


def _check_names(name: str, group: str) -> None:
    check_name(name, "name")
    check_name(group, "group")
