"""All flights of 2013 and what is known of them, as groups, a view and tables: what joins are measured on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa

from examples.flights.data import WEATHER_COLUMNS, load_year
from examples.flights.delays import STATISTICS, DelayStatistics, Landings
from foresight.client import DataType, FeatureGroup, FeatureView, Field, ViewFeature, ViewSource

VIEW = "flights"
# Asked so long before the scheduled departure.
ASKED_BEFORE = timedelta(hours=6)
YEAR = datetime(2013, 1, 1, tzinfo=UTC), datetime(2014, 1, 3, tzinfo=UTC)
_PLANE = (
    Field("year_built", DataType.FLOAT64),
    Field("seats", DataType.INT64),
    Field("engines", DataType.INT64),
    Field("jet", DataType.BOOL),
)
_TYPES = {"flights_24h": DataType.INT64}


@dataclass(frozen=True, slots=True, eq=False)
class SourceRows:
    """A source of the view: its group, its rows (key, `event_time`, features), and how old a row may be."""

    group: FeatureGroup
    rows: pa.Table
    max_age: timedelta | None

    @property
    def key(self) -> str:
        """The group's one key."""
        return self.group.entity_keys[0].name

    @property
    def features(self) -> list[str]:
        """Names of the features."""
        return [field.name for field in self.group.features]


@dataclass(frozen=True, slots=True, eq=False)
class Flights:
    """`spine` has a row per flight: `flight_id`, the keys `origin`, `tailnum` and `carrier`, and `event_time`."""

    spine: pa.Table
    sources: tuple[SourceRows, ...]

    def view(self) -> FeatureView:
        """All features of all sources; those of carriers are prefixed."""
        return FeatureView(
            VIEW,
            Field("late", DataType.BOOL),
            tuple(
                ViewSource(s.group.name, tuple(ViewFeature(name) for name in s.features), max_age=s.max_age)
                for s in self.sources
            ),
        )


def load_flights() -> Flights:
    """Reads the year and works out the statistics of carriers; takes some seconds."""
    year = load_year()
    carriers, _ = DelayStatistics("carrier", Landings(year.flights)).between(*YEAR)
    spine = year.flights[["flight_id", "origin", "tailnum", "carrier"]].assign(
        event_time=year.flights["scheduled_departure"] - ASKED_BEFORE
    )
    weather = tuple(Field(name, DataType.FLOAT64) for name in WEATHER_COLUMNS)
    delays = tuple(Field(name, _TYPES.get(name, DataType.FLOAT64)) for name in STATISTICS)
    return Flights(
        _table(spine),
        (
            _source("weather", "origin", weather, year.weather, timedelta(hours=3)),
            _source("planes", "tailnum", _PLANE, year.planes, None),
            _source("carrier_delays", "carrier", delays, carriers, timedelta(days=3)),
        ),
    )


def _source(
    name: str, key: str, features: tuple[Field, ...], rows: pd.DataFrame, max_age: timedelta | None
) -> SourceRows:
    group = FeatureGroup(name, (Field(key, DataType.STRING),), features)
    return SourceRows(group, _table(rows[[key, "event_time", *(f.name for f in features)]]), max_age)


def _table(frame: pd.DataFrame) -> pa.Table:
    frame = frame.assign(event_time=frame["event_time"].astype("datetime64[us, UTC]"))
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
