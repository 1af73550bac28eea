"""How fast rows are ingested: a write through the RPC against a bare ADBC ingest into the same table.

The write is validated, gets statistics and is visible online when the call answers; the bare ingest does nothing but
copy the same rows into a table with the same columns and indexes, of the same database. Both run in turn, each into a
new table. `python -m benchmarks.feature_store.ingestion [rounds] [rows]`
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from adbc_driver_postgresql import dbapi

from benchmarks.feature_store.store_process import StoreProcess, running_store
from benchmarks.results import Result, publish
from foresight.client import DataType, FeatureGroup, Field

ROWS = 1_000_000
LARGE_ROWS = 10_000_000
ROUNDS = 5
# Entities: each has ten rows.
ROWS_PER_KEY = 10
BATCH_ROWS = 65_536
FLOATS, RATIO_MIN = 7, 0.5
PEAK_MIB_MAX = 1_024
KEY = Field("account", DataType.INT64)
FEATURES = (
    *(Field(f"amount_{i}", DataType.FLOAT64) for i in range(FLOATS)),
    Field("payments", DataType.INT64),
    Field("country", DataType.STRING),
    Field("active", DataType.BOOL),
)


@dataclass(frozen=True, slots=True)
class Round:
    """One write and one bare ingest: seconds, and bytes at the peak of the service."""

    write_s: float
    bare_s: float
    peak_bytes: int


def rows(count: int, first: int = 0) -> pa.RecordBatch:
    """Rows `first` to `first + count` of 12 columns: key, event time, ten features."""
    random = np.random.default_rng(first)
    numbers = np.arange(first, first + count)
    countries = np.array(["DE", "FR", "US", "JP", "BR", "IN", "ZA"])
    columns: dict[str, pa.Array] = {
        "account": pa.array(random.integers(0, max(1, count // ROWS_PER_KEY), count)),
        "event_time": pa.array(1_700_000_000_000_000 + numbers * 1_000_000, pa.timestamp("us", "UTC")),
    }
    columns |= {f"amount_{i}": pa.array(random.normal(100, 30, count)) for i in range(FLOATS)}
    columns["payments"] = pa.array(random.integers(0, 500, count))
    columns["country"] = pa.array(countries[random.integers(0, len(countries), count)])
    columns["active"] = pa.array(random.random(count) < 0.9)
    return pa.record_batch(columns)


def measured_round(store: StoreProcess, number: int, table: pa.Table) -> Round:
    """Writes the table into a new group, and then, bare, into a copy of its table."""
    group = f"accounts_{number}"
    store.client.apply(FeatureGroup(group, (KEY,), FEATURES))
    store.sql("CHECKPOINT")
    store.forget_peak()
    started = time.perf_counter()
    store.client.write(group, table)
    write_s = time.perf_counter() - started
    peak = store.peak_bytes()
    bare_s = bare_ingest(store, group, table)
    return Round(write_s, bare_s, peak)


def bare_ingest(store: StoreProcess, group: str, table: pa.Table) -> float:
    """Seconds to copy the rows into an empty copy of the group's table, indexes included."""
    id = store.sql(f"SELECT id FROM feature_groups WHERE name = '{group}'")
    store.sql(f"CREATE TABLE bare_{id} (LIKE rows_{id} INCLUDING ALL)")
    physical = {KEY.name: "k0", "event_time": "event_time", **{f.name: f"f{i}" for i, f in enumerate(FEATURES)}}
    renamed = table.rename_columns([physical[name] for name in table.column_names])
    renamed = renamed.append_column("write", pa.array(np.ones(table.num_rows, np.int64)))
    connection = dbapi.connect(store.database_url.replace("?", "?options=-csearch_path%3Dfeature_store&"))
    try:
        store.sql("CHECKPOINT")
        started = time.perf_counter()
        with connection.cursor() as cursor:
            cursor.adbc_ingest(f"bare_{id}", renamed, mode="append")
        connection.commit()
        return time.perf_counter() - started
    finally:
        connection.close()
        store.sql(f"DROP TABLE bare_{id}")


def write_large(store: StoreProcess, count: int) -> tuple[float, int]:
    """Seconds and bytes at the peak for a write of `count` rows, which the client never has all at once."""
    group = "accounts_large"
    store.client.apply(FeatureGroup(group, (KEY,), FEATURES))

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, count, BATCH_ROWS):
            yield rows(min(BATCH_ROWS, count - first), first)

    schema = rows(1).schema
    store.forget_peak()
    started = time.perf_counter()
    commit = store.client.write(group, pa.RecordBatchReader.from_batches(schema, batches()))
    assert commit.rows == count
    return time.perf_counter() - started, store.peak_bytes()


def measure(rounds: int = ROUNDS, count: int = ROWS, large: int = LARGE_ROWS) -> list[Result]:
    """All figures; medians of the rounds."""
    table = pa.Table.from_batches([rows(count)])
    with running_store() as store:
        found = [measured_round(store, number, table) for number in range(rounds)]
        large_s, large_peak = write_large(store, large) if large else (0.0, 0)
    ratio = statistics.median(r.bare_s / r.write_s for r in found)
    named = f"{count:,} rows of {table.num_columns} columns"
    results = [
        Result(f"{named}: rows per second, written", count / statistics.median(r.write_s for r in found), "rows/s"),
        Result(f"{named}: rows per second, bare ADBC", count / statistics.median(r.bare_s for r in found), "rows/s"),
        Result(f"{named}: written / bare", ratio, "x", at_least=RATIO_MIN),
        Result(f"{named}: peak memory of the service", max(r.peak_bytes for r in found) / 2**20, "MiB"),
    ]
    if large:
        results += [
            Result(f"{large:,} rows: rows per second, written", large / large_s, "rows/s"),
            Result(f"{large:,} rows: peak memory of the service", large_peak / 2**20, "MiB", at_most=PEAK_MIB_MAX),
        ]
    return results


def main() -> int:
    """Measures and publishes."""
    rounds, count = (int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS), int(sys.argv[2]) if len(sys.argv) > 2 else ROWS
    results = measure(rounds, count)
    publish("feature_store_ingestion", results)
    return 0 if all(result.holds for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
