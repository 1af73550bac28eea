"""How punctual flights were lately: rolling statistics over landings, by one key."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pandas as pd

from examples.flights.data import LATE_MINUTES

DAY_US = 86_400_000_000
SHORT_US = DAY_US
LONG = timedelta(days=7)
LONG_US = 7 * DAY_US
STATISTICS = ["flights_24h", "late_share_24h", "mean_delay_24h", "late_share_7d", "mean_delay_7d"]


class Landings:
    """The flights that landed, by the time of their landing."""

    def __init__(self, flights: pd.DataFrame) -> None:
        landed = flights[flights["landed_at"].notna()].sort_values(["landed_at", "flight_id"], ignore_index=True)
        self._flights = landed
        self._times = landed["landed_at"]

    def between(self, start: datetime, end: datetime) -> pd.DataFrame:
        """Flights that landed from `start`, included, to `end`, excluded, in order of landing."""
        first, after = self._times.searchsorted([pd.Timestamp(start), pd.Timestamp(end)])
        return self._flights.iloc[first:after]


@dataclass(slots=True)
class _Lately:
    """Sums over the landings of the last `length_us` microseconds."""

    length_us: int
    landings: deque[tuple[int, float, bool]] = field(default_factory=deque)
    delay: float = 0.0
    late: int = 0

    def add(self, at: int, delay: float, late: bool) -> None:
        self.landings.append((at, delay, late))
        self.delay += delay
        self.late += late

    def forget_before(self, now: int) -> None:
        while self.landings and self.landings[0][0] <= now - self.length_us:
            _, delay, late = self.landings.popleft()
            self.delay -= delay
            self.late -= late

    @property
    def flights(self) -> int:
        return len(self.landings)


class DelayStatistics:
    """Rolling delay statistics by one key: a row per key and minute in which one of its flights landed.

    The row says how punctual the key's flights were that landed in the last 24 hours and 7 days, the new one
    included; its event time is the landing. The rows of a time range depend on nothing but the landings: sums are kept
    from one range to the next, and made anew from the seven days before where another range is asked for.
    """

    def __init__(self, key: str, landings: Landings) -> None:
        self._key = key
        self._landings = landings
        self._lately: dict[str, tuple[_Lately, _Lately]] = {}
        self._until: datetime | None = None

    def between(self, start: datetime, end: datetime) -> tuple[pd.DataFrame, int]:
        """The rows of a time range, and how many landings are behind them."""
        if self._until != start:
            self._lately.clear()
            self._update(self._landings.between(start - LONG, start))
        self._until = None
        landed = self._landings.between(start, end)
        rows = self._update(landed)
        self._until = end
        return rows, len(landed)

    def _update(self, landed: pd.DataFrame) -> pd.DataFrame:
        rows: dict[tuple[str, int], tuple[object, ...]] = {}
        # Plain integers: a year has a million of these, and arithmetic on Timestamps costs 20 times as much.
        times = landed["landed_at"].astype("int64").tolist()
        for key, at, delay in zip(landed[self._key].tolist(), times, landed["arrival_delay"].tolist(), strict=True):
            both = self._lately.setdefault(key, (_Lately(SHORT_US), _Lately(LONG_US)))
            for lately in both:
                lately.add(at, delay, delay >= LATE_MINUTES)
                lately.forget_before(at)
            short, long = both
            # A later landing of the same minute replaces the row.
            rows[key, at] = (
                key,
                at,
                short.flights,
                short.late / short.flights,
                short.delay / short.flights,
                long.late / long.flights,
                long.delay / long.flights,
            )
        frame = pd.DataFrame(list(rows.values()), columns=[self._key, "event_time", *STATISTICS])
        frame["event_time"] = pd.to_datetime(frame["event_time"], unit="us", utc=True)
        return frame
