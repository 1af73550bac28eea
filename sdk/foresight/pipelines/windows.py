"""Windows of event time, and the schedules that cut time into them.

A schedule is a rising sequence of instants, its ticks. A window goes from one tick to the next, so that windows tile
time: no gap, no overlap, however late they are run. Which window follows depends on where the last one ended and on
nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from foresight.values import InvalidValue
from foresight.values.instants import EPOCH, micros_from_instant

INTERVAL_MIN = timedelta(seconds=1)
_MICROSECOND = timedelta(microseconds=1)
# Five fields; the library's letters H and R mean "somewhere", which would not be the same for everybody.
_CRON = re.compile(r"[0-9A-Z*/,\-#]+( [0-9A-Z*/,\-#]+){4}\Z", re.IGNORECASE)
_ANYWHERE = re.compile(r"\b[HR]\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Window:
    """Event times from `start`, included, to `end`, excluded. Both have a time zone; they are kept in UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            micros_from_instant(getattr(self, name), name)
            object.__setattr__(self, name, getattr(self, name).astimezone(UTC))
        if self.end <= self.start:
            raise InvalidValue("end", "is not after the start of the window")

    @property
    def length(self) -> timedelta:
        """How much time it covers."""
        return self.end - self.start

    def __str__(self) -> str:
        return f"{format_instant(self.start)}/{format_instant(self.end)}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a pipeline runs: a cron expression of five fields in a time zone, or an interval.

    An interval's ticks are its multiples since 1970-01-01T00:00:00Z. In cron, a local time that the clock skips counts
    at the end of the skipped hour, one that it repeats counts twice. Raises InvalidValue.
    """

    cron: str = ""
    every: timedelta | None = None
    timezone: str = "UTC"
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "_zone", ZoneInfo(self.timezone))
        except (KeyError, OSError, ValueError):
            raise InvalidValue("timezone", f"{self.timezone!r} is no IANA time zone") from None
        if (self.every is None) == (not self.cron):
            raise InvalidValue("schedule", "is a cron expression or an interval")
        if self.every is not None:
            if self.every < INTERVAL_MIN:
                raise InvalidValue("schedule", f"is shorter than {INTERVAL_MIN.total_seconds():g} s")
        else:
            _check_cron(self.cron)

    @classmethod
    def of(cls, schedule: str | timedelta, timezone: str = "UTC") -> Schedule:
        """The schedule of a cron expression or an interval."""
        if isinstance(schedule, timedelta):
            return cls(every=schedule, timezone=timezone)
        if not isinstance(schedule, str):
            raise InvalidValue("schedule", f"is a {type(schedule).__name__}, not a cron expression or a timedelta")
        return cls(cron=" ".join(schedule.split()), timezone=timezone)

    def after(self, instant: datetime) -> datetime:
        """The first tick later than an instant, in UTC."""
        if self.every is not None:
            return EPOCH + ((instant - EPOCH) // self.every + 1) * self.every
        from croniter import croniter

        found: datetime = croniter(self.cron, instant.astimezone(self._zone)).get_next(datetime)
        return found.astimezone(UTC)

    def at_or_before(self, instant: datetime) -> datetime:
        """The last tick that is not later than an instant, in UTC."""
        if self.every is not None:
            return EPOCH + ((instant - EPOCH) // self.every) * self.every
        from croniter import croniter

        # It looks for ticks before whole seconds.
        later = (instant + timedelta(seconds=1)).replace(microsecond=0).astimezone(self._zone)
        found: datetime = croniter(self.cron, later).get_prev(datetime)
        return found.astimezone(UTC)

    def windows(self, start: datetime, until: datetime) -> Iterator[Window]:
        """The windows that follow one another from `start`, as far as they end by `until`."""
        while (end := self.after(start)) <= until:
            yield Window(start, end)
            start = end

    def __str__(self) -> str:
        text = f"every {self.every}" if self.every is not None else self.cron
        return text if self.timezone == "UTC" else f"{text} {self.timezone}"


def cut(start: datetime, end: datetime, step: timedelta | Schedule | None) -> Iterator[Window]:
    """The windows that tile a time range: of a length, between ticks, or one for all; the last may be shorter."""
    while start < end:
        following = step.after(start) if isinstance(step, Schedule) else start + (step or end - start)
        yield Window(start, min(following, end))
        start = following


def format_instant(instant: datetime) -> str:
    """An instant as positions have it: ISO 8601 in UTC, to the digit that it needs."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_position(position: str) -> datetime | None:
    """The instant of a position; None for the empty one. Raises InvalidValue for what no windows left behind."""
    if not position:
        return None
    try:
        instant = datetime.fromisoformat(position)
        micros_from_instant(instant, "position")
    except ValueError:
        raise InvalidValue("position", f"{position!r} is no instant: the pipeline was a stream before") from None
    return instant.astimezone(UTC)


def _check_cron(cron: str) -> None:
    from croniter import croniter

    if not _CRON.match(cron) or _ANYWHERE.search(cron):
        raise InvalidValue("schedule", f"{cron!r} is no cron expression of five fields")
    try:
        croniter(cron, EPOCH).get_next(datetime)
    except ValueError as error:
        raise InvalidValue("schedule", f"{cron!r} is no cron expression: {error}") from None
