"""Feature pipelines: what became known since the last step, as rows for the feature store."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

import pandas as pd

from examples.flights.data import LATE_MINUTES

DAY_US = 86_400_000_000
SHORT_US = DAY_US
LONG_US = 7 * DAY_US
STATISTICS = ["flights_24h", "late_share_24h", "mean_delay_24h", "late_share_7d", "mean_delay_7d"]


@dataclass(slots=True)
class _Window:
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
    included; its event time is the landing.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._windows: dict[str, tuple[_Window, _Window]] = {}

    def update(self, landed: pd.DataFrame) -> pd.DataFrame:
        """Rows for landed flights (the key, `landed_at`, `arrival_delay`), which come in order of landing."""
        rows: dict[tuple[str, int], tuple[object, ...]] = {}
        # Plain integers: a year has a million of these, and arithmetic on Timestamps costs 20 times as much.
        times = landed["landed_at"].astype("int64").tolist()
        for key, at, delay in zip(landed[self.key].tolist(), times, landed["arrival_delay"].tolist(), strict=True):
            windows = self._windows.setdefault(key, (_Window(SHORT_US), _Window(LONG_US)))
            for window in windows:
                window.add(at, delay, delay >= LATE_MINUTES)
                window.forget_before(at)
            short, long = windows
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
        frame = pd.DataFrame(list(rows.values()), columns=[self.key, "event_time", *STATISTICS])
        frame["event_time"] = pd.to_datetime(frame["event_time"], unit="us", utc=True)
        return frame


class Landings:
    """The flights that land, in order; each step takes those that landed since the last."""

    def __init__(self, flights: pd.DataFrame) -> None:
        landed = flights[flights["landed_at"].notna()].sort_values(["landed_at", "flight_id"], ignore_index=True)
        self._flights = landed
        self._times = landed["landed_at"]
        self._next = 0

    def until(self, now: datetime) -> pd.DataFrame:
        """Flights that landed by `now` and were not taken before."""
        end = int(self._times.searchsorted(pd.Timestamp(now), side="right"))
        taken = self._flights.iloc[self._next : end]
        self._next = end
        return taken


class WeatherReports:
    """Hourly observations, in order; each step takes those made since the last."""

    def __init__(self, weather: pd.DataFrame) -> None:
        self._weather = weather
        self._next = 0

    def until(self, now: datetime) -> pd.DataFrame:
        """Observations made by `now` and not taken before."""
        end = int(self._weather["event_time"].searchsorted(pd.Timestamp(now), side="right"))
        taken = self._weather.iloc[self._next : end]
        self._next = end
        return taken
