"""How fast point-in-time joins are: all flights with weather, planes and carriers, and joins larger than memory.

The flights are joined end to end, from a spine in Arrow through the RPC to a DataFrame. What they are held against is
the least that the same answer can cost with the same parts: one bare ADBC read of the same columns, and one ASOF join
of DuckDB over Arrow in memory. Both run in turn. `python -m benchmarks.feature_store.as_of [rounds] [rows]`
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from adbc_driver_postgresql import dbapi

from benchmarks.feature_store.flights import VIEW, Flights, SourceRows, load_flights
from benchmarks.feature_store.store_process import StoreProcess, running_store
from benchmarks.growth import Curve, draw
from benchmarks.results import Result, publish
from foresight.client import DataType, FeatureGroup, FeatureView, Field, ViewFeature, ViewSource

ROUNDS = 7
RATIO_MAX = 2.0
LARGE_ROWS = 10_000_000
GROWTH = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
PEAK_MIB_MAX = 4_096
BATCH_ROWS = 65_536
# Entities of the generated rows: each has about ten.
ROWS_PER_KEY = 10
# Their event times lie in about 116 days.
SPAN_US = 10_000_000_000_000
TIMEOUT_S = 1_800.0


def write_flights(store: StoreProcess, flights: Flights) -> None:
    """Puts the sources into the store."""
    store.client.apply(*(s.group for s in flights.sources), flights.view())
    for s in flights.sources:
        store.client.write(s.group.name, s.rows)
    store.sql("VACUUM ANALYZE")


def join_flights(store: StoreProcess, flights: Flights) -> pd.DataFrame:
    """The join as a user makes it."""
    joined: pd.DataFrame = store.client.read_as_of(VIEW, flights.spine)
    return joined


class BareJoin:
    """The same join by hand: the columns read by ADBC, joined by DuckDB."""

    def __init__(self, store: StoreProcess, flights: Flights) -> None:
        self._flights = flights
        self._connection = dbapi.connect(store.database_url.replace("?", "?options=-csearch_path%3Dfeature_store&"))
        self._duckdb = duckdb.connect(":memory:", config={"threads": 2})
        self._reads = {s.group.name: self._read_statement(store, s) for s in flights.sources}

    def run(self) -> pd.DataFrame:
        """Reads and joins."""
        with self._connection.cursor() as cursor:
            for s in self._flights.sources:
                cursor.execute(self._reads[s.group.name])
                self._duckdb.register(s.group.name, cursor.fetch_arrow_table())
        self._duckdb.register("spine", self._flights.spine)
        joined: pd.DataFrame = self._duckdb.sql(self._join_statement()).to_arrow_table().to_pandas()
        return joined

    def close(self) -> None:
        """Ends both connections."""
        self._connection.close()
        self._duckdb.close()

    def _read_statement(self, store: StoreProcess, s: SourceRows) -> str:
        id = store.sql(f"SELECT id FROM feature_groups WHERE name = '{s.group.name}'")
        features = ", ".join(f"f{i} AS {name}" for i, name in enumerate(s.features))
        return f"SELECT k0 AS {s.key}, event_time, {features} FROM rows_{id}"

    def _join_statement(self) -> str:
        columns, joins = ["spine.*"], []
        for s in self._flights.sources:
            name = s.group.name
            fresh = "true" if s.max_age is None else f"spine.event_time - {name}.event_time <= {_interval(s.max_age)}"
            columns += [f"CASE WHEN {fresh} THEN {name}.{feature} END AS {feature}" for feature in s.features]
            joins.append(
                f"ASOF LEFT JOIN {name} ON spine.{s.key} = {name}.{s.key} AND spine.event_time >= {name}.event_time"
            )
        return f"SELECT {', '.join(columns)} FROM spine {' '.join(joins)}"


def measure_flights(rounds: int) -> list[Result]:
    """All flights, joined both ways in turn; medians."""
    flights = load_flights()
    ours, bare = [], []
    with running_store() as store:
        write_flights(store, flights)
        by_hand = BareJoin(store, flights)
        check_equal(join_flights(store, flights), by_hand.run())
        store.forget_peak()
        for _ in range(rounds):
            bare.append(_seconds(by_hand.run))
            ours.append(_seconds(lambda: join_flights(store, flights)))
        peak = store.peak_bytes()
        by_hand.close()
    named = f"{flights.spine.num_rows:,} flights, {len(flights.sources)} sources"
    ratio = statistics.median(o / b for o, b in zip(ours, bare, strict=True))
    return [
        Result(f"{named}: joined through the RPC into a DataFrame", statistics.median(ours), "s"),
        Result(f"{named}: bare ADBC read and DuckDB ASOF join", statistics.median(bare), "s"),
        Result(f"{named}: joined / bare", ratio, "x", at_most=RATIO_MAX),
        Result(f"{named}: peak memory of the service", peak / 2**20, "MiB"),
    ]


def check_equal(joined: pd.DataFrame, bare: pd.DataFrame) -> None:
    """Both ways have to give the same, or the comparison means nothing."""
    bare = bare.set_index("flight_id").loc[joined["flight_id"]].reset_index()
    for name in joined.columns:
        if name in ("flight_id", "event_time"):
            continue
        mine, theirs = joined[name].astype(object), bare[name].astype(object)
        same = (mine == theirs) | (mine.isna() & theirs.isna())
        if not same.all():
            raise AssertionError(f"{name} differs in {(~same).sum()} rows")


@dataclass(frozen=True, slots=True)
class Growth:
    """A join of as many spine rows as feature rows."""

    rows: int
    seconds: float
    peak_bytes: int


def measure_growth(sizes: tuple[int, ...]) -> list[Growth]:
    """Joins of generated rows, streamed both ways, so that the client holds none of them."""
    found = []
    for count in sizes:
        with running_store() as store:
            group = FeatureGroup(
                "accounts",
                (Field("account", DataType.INT64),),
                (
                    Field("amount", DataType.FLOAT64),
                    Field("payments", DataType.INT64),
                    Field("country", DataType.STRING),
                ),
            )
            source = ViewSource("accounts", tuple(ViewFeature(f.name) for f in group.features))
            store.client.apply(group, FeatureView("payments", Field("late", DataType.BOOL), (source,)))
            store.client.write("accounts", _reader(count, 1, features=True), timeout_s=TIMEOUT_S)
            store.forget_peak()
            started = time.perf_counter()
            spine = _reader(count, 2, features=False)
            with store.client.stream_as_of("payments", spine, timeout_s=TIMEOUT_S) as batches:
                joined = sum(batch.num_rows for batch in batches)
            found.append(Growth(count, time.perf_counter() - started, store.peak_bytes()))
            assert joined == count
    return found


def _reader(count: int, seed: int, *, features: bool) -> pa.RecordBatchReader:
    """Rows that are made as they are sent; those of features have distinct event times."""

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, count, BATCH_ROWS):
            yield _rows(min(BATCH_ROWS, count - first), first, count, seed, features=features)

    return pa.RecordBatchReader.from_batches(_rows(1, 0, count, seed, features=features).schema, batches())


def _rows(rows: int, first: int, count: int, seed: int, *, features: bool) -> pa.RecordBatch:
    random = np.random.default_rng((seed, first))
    keys = random.integers(0, max(1, count // ROWS_PER_KEY), rows)
    # In no order, and each once: multiples of a number that shares no factor with the span.
    times = np.arange(first, first + rows) * 6_180_339_887 % SPAN_US
    columns: dict[str, Any] = {"account": pa.array(keys), "event_time": pa.array(times, pa.timestamp("us", "UTC"))}
    if features:
        columns["amount"] = pa.array(random.normal(100, 30, rows))
        columns["payments"] = pa.array(random.integers(0, 500, rows))
        columns["country"] = pa.array(np.array(["DE", "FR", "US", "JP"])[random.integers(0, 4, rows)])
    return pa.record_batch(columns)


def _interval(age: timedelta) -> str:
    return f"INTERVAL '{int(age.total_seconds())} seconds'"


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> int:
    """Measures and publishes."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    most = int(float(sys.argv[2])) if len(sys.argv) > 2 else LARGE_ROWS
    results = measure_flights(rounds)
    grown = measure_growth(tuple(size for size in GROWTH if size <= most))
    for g in grown:
        bound = PEAK_MIB_MAX if g.rows == LARGE_ROWS else None
        named = f"{g.rows:,} spine rows, {g.rows:,} feature rows"
        results += [
            Result(f"{named}: joined through the RPC", g.seconds, "s"),
            Result(f"{named}: peak memory of the service", g.peak_bytes / 2**20, "MiB", at_most=bound),
        ]
    draw(
        "feature_store_as_of",
        "rows of the spine, as many rows of features",
        [
            Curve("seconds", [(g.rows, g.seconds) for g in grown]),
            Curve("peak memory of the service, GiB", [(g.rows, g.peak_bytes / 2**30) for g in grown]),
        ],
    )
    publish("feature_store_as_of", results)
    return 0 if all(r.holds for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
