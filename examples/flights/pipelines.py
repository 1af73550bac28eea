"""The feature pipelines: what became known in a window of time, as rows of the feature groups.

The replay has a clock of its own, so that these have no schedule: it gives them their windows, one after the other.
Their positions, which are committed with the rows, their runs and their repetition are those of any pipeline.
"""

from __future__ import annotations

from datetime import datetime

import pandas as pd

from examples.flights.data import PLANES_KNOWN, Year
from examples.flights.delays import DelayStatistics, Landings
from foresight.pipelines import Pipeline, Run, Window, pipeline

FIRST = PLANES_KNOWN.to_pydatetime()
DELAY_KEYS = ("carrier", "origin", "dest")


def feature_pipelines(year: Year, history_until: datetime) -> list[Pipeline]:
    """The pipelines that follow the year: delays by carrier, origin and destination, and the weather.

    The rows of windows that end by `history_until` are loaded as history: known when they happened, not now.
    """
    landings = Landings(year.flights)

    def known(rows: pd.DataFrame, window: Window) -> pd.DataFrame:
        return rows.assign(known_at=rows["event_time"]) if window.end <= history_until else rows

    def delays(key: str) -> Pipeline:
        statistics = DelayStatistics(key, landings)

        @pipeline(group=f"{key}_delays", name=f"{key}_delays", start=FIRST)
        def delays_by_key(window: Window, run: Run) -> pd.DataFrame:
            rows, landed = statistics.between(window.start, window.end)
            run.count_in(landed)
            return known(rows, window)

        return delays_by_key

    @pipeline(group="weather", start=FIRST)
    def weather(window: Window) -> pd.DataFrame:
        return known(_within(year.weather, window), window)

    return [*(delays(key) for key in DELAY_KEYS), weather]


def planes_pipeline(year: Year) -> Pipeline:
    """The pipeline of the planes, which are all known before the first flight."""

    @pipeline(group="planes", start=FIRST)
    def planes(window: Window) -> pd.DataFrame:
        rows = _within(year.planes, window)
        return rows.assign(known_at=rows["event_time"])

    return planes


def _within(table: pd.DataFrame, window: Window) -> pd.DataFrame:
    """The rows of a table, ordered by event time, that lie in a window."""
    first, after = table["event_time"].searchsorted([pd.Timestamp(window.start), pd.Timestamp(window.end)])
    return table.iloc[first:after]
