"""Foresight's feature store beside Feast: the same training set, and the same online look-up, in one run.

Historical features: all flights with weather, planes and the statistics of carriers, from a spine to a DataFrame,
against Feast's DuckDB store over Parquet files and its PostgreSQL store. Feast joins every row of an entity within the
time to live before it takes the latest one, so what it costs depends on how many rows that are: besides the statistics
as they are (a row per landing), coarser ones (the last row of each hour, and of each day) are measured too.

Online features: KEYS entities over GROUPS groups, against Feast's SDK in its own process and against its feature
server, over SQLite and over Redis. `python -m benchmarks.feature_store.feast [rounds]`
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from adbc_driver_postgresql import dbapi

from benchmarks.feature_store import online
from benchmarks.feature_store.as_of import join_flights, write_flights
from benchmarks.feature_store.flights import Flights, SourceRows, load_flights
from benchmarks.feature_store.store_process import StoreProcess, running_store
from benchmarks.peers.debian import REDIS, libraries, unpacked
from benchmarks.peers.environments import run_peer
from benchmarks.results import Result, publish

ROUNDS = 5
TIMES_FASTER_MIN = 10.0
TIMES_LESS_CPU_MIN = 20.0
FEAST_TIMEOUT_S = 240.0
# Feast needs a time to live: without one it joins all rows of an entity.
NO_MAX_AGE_HOURS = 24 * 400
COARSER = {"hour": "h", "day": "D"}


def measure_historical(rounds: int) -> list[Result]:
    """Ours and Feast's two stores on the rows as they are, and Feast's faster one on coarser ones."""
    flights = load_flights()
    results: list[Result] = []
    with running_store() as store, tempfile.TemporaryDirectory(prefix="feast-bench-") as folder:
        write_flights(store, flights)
        join_flights(store, flights)
        ours = statistics.median(_seconds(lambda: join_flights(store, flights)) for _ in range(rounds))
        results.append(Result("training set of all flights: Foresight", ours, "s"))
        exported = _export(flights, Path(folder))
        stores = {"DuckDB": ["duckdb"], "PostgreSQL": ["postgres", *_load(store, flights)]}
        seconds = {}
        for name, arguments in stores.items():
            found = _historical(exported, arguments)
            seconds[name] = statistics.median(found["seconds"])
            given_up = " (given up)" if found["rows"] == 0 else ""
            results.append(Result(f"training set of all flights: Feast, {name} store{given_up}", seconds[name], "s"))
            if found["rows"]:
                peak = found["peak_bytes"] / 2**20
                results.append(Result(f"training set of all flights: Feast, {name} store, peak memory", peak, "MiB"))
        ratio = min(seconds.values()) / ours
        results.append(
            Result("training set of all flights: Feast's fastest / Foresight", ratio, "x", at_least=TIMES_FASTER_MIN)
        )
    for name, rule in COARSER.items():
        results += _measure_coarser(flights, name, rule, rounds)
    return results


def _measure_coarser(flights: Flights, name: str, rule: str, rounds: int) -> list[Result]:
    coarse = Flights(flights.spine, tuple(_last_of_each(s, rule) for s in flights.sources))
    named = f"carrier statistics once per {name}"
    with running_store() as store, tempfile.TemporaryDirectory(prefix="feast-bench-") as folder:
        write_flights(store, coarse)
        join_flights(store, coarse)
        ours = statistics.median(_seconds(lambda: join_flights(store, coarse)) for _ in range(rounds))
        theirs = statistics.median(_historical(_export(coarse, Path(folder)), ["duckdb"])["seconds"])
    return [
        Result(f"{named}: Foresight", ours, "s"),
        Result(f"{named}: Feast, DuckDB store", theirs, "s"),
        Result(f"{named}: Feast / Foresight", theirs / ours, "x"),
    ]


def _last_of_each(source: SourceRows, rule: str) -> SourceRows:
    if source.group.name != "carrier_delays":
        return source
    frame = source.rows.to_pandas()
    last = frame.groupby([source.key, frame["event_time"].dt.floor(rule)], sort=False).tail(1)
    table = pa.Table.from_pandas(last, schema=source.rows.schema, preserve_index=False)
    return replace(source, rows=table.replace_schema_metadata(None))


def _export(flights: Flights, folder: Path) -> Path:
    """The tables as Feast reads them."""
    pq.write_table(_renamed(flights.spine), folder / "spine.parquet")
    views: dict[str, Any] = {}
    for s in flights.sources:
        rows = _renamed(s.rows)
        pq.write_table(rows.append_column("created", rows["event_timestamp"]), folder / f"{s.group.name}.parquet")
        hours = NO_MAX_AGE_HOURS if s.max_age is None else s.max_age.total_seconds() / 3600
        views[s.group.name] = {"key": s.key, "features": s.features, "ttl_hours": hours}
    (folder / "views.json").write_text(json.dumps(views))
    return folder


def _renamed(table: pa.Table) -> pa.Table:
    """Feast's name of the event time, and texts without NULL, which it cannot join."""
    if "tailnum" in table.column_names:
        at = table.column_names.index("tailnum")
        table = table.set_column(at, "tailnum", pc.fill_null(table["tailnum"], ""))
    return table.rename_columns(["event_timestamp" if name == "event_time" else name for name in table.column_names])


def _load(store: StoreProcess, flights: Flights) -> list[str]:
    """Tables for Feast in the same PostgreSQL server; answers how it connects."""
    url = urlsplit(store.database_url)
    with dbapi.connect(store.database_url) as connection:
        for s in flights.sources:
            rows = _renamed(s.rows)
            with connection.cursor() as cursor:
                rows = rows.append_column("created", rows["event_timestamp"])
                cursor.adbc_ingest(f"feast_{s.group.name}", rows, mode="create", db_schema_name="public")
        connection.commit()
    store.sql("ANALYZE")
    return [parse_qs(url.query)["host"][0], url.path.lstrip("/"), url.username or "", url.password or ""]


def _historical(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """What Feast needed; no rows and FEAST_TIMEOUT_S when it was not done by then."""
    try:
        return run_peer("feast", "feast_offline", str(folder), *arguments, timeout_s=FEAST_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"seconds": [FEAST_TIMEOUT_S], "rows": 0}


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure_online() -> list[Result]:
    """Server against server, and library against library; the lower of Feast's two stores counts."""
    with running_store() as store:
        view = online.define(store)
        online.fill(store, online.ENTITIES)
        asked = online.ask(store, view, online.ENTITIES)
    inside_us = online.read_in_process()
    named = f"{online.KEYS} keys, {online.GROUPS} groups of {online.FEATURES} features"
    results = [
        Result(f"{named}: Foresight's server, p50", asked.p50_ms, "ms"),
        Result(f"{named}: Foresight's server, p99", asked.p99_ms, "ms"),
        Result(f"{named}: Foresight's server, CPU per call", asked.cpu_ms, "ms"),
        Result(f"{named}: Foresight in process, CPU per call", inside_us / 1e3, "ms"),
    ]
    cpu: dict[str, list[float]] = {"server": [], "in_process": []}
    with _redis() as address:
        for name, arguments in {"SQLite": ["sqlite"], "Redis": ["redis", address]}.items():
            found = run_peer("feast", "feast_online", *arguments, timeout_s=FEAST_TIMEOUT_S)
            for way, title in {"server": "feature server", "in_process": "SDK in process"}.items():
                cpu[way].append(found[way]["cpu_ms"])
                milliseconds = found[way]["milliseconds"]
                results += [
                    Result(f"{named}: Feast's {title}, {name}, p50", statistics.median(milliseconds), "ms"),
                    Result(
                        f"{named}: Feast's {title}, {name}, p99", statistics.quantiles(milliseconds, n=100)[-1], "ms"
                    ),
                    Result(f"{named}: Feast's {title}, {name}, CPU per call", cpu[way][-1], "ms"),
                ]
    server, inside = (min(cpu[way]) for way in ("server", "in_process"))
    return [
        *results,
        _less_cpu("Feast's server / Foresight's server", server / asked.cpu_ms),
        _less_cpu("Feast / Foresight, both in process", inside / (inside_us / 1e3)),
        Result("CPU per entity: Feast in process / Foresight's server", inside / asked.cpu_ms, "x"),
    ]


def _less_cpu(named: str, ratio: float) -> Result:
    return Result(f"CPU per entity: {named}", ratio, "x", at_least=TIMES_LESS_CPU_MIN)


@contextlib.contextmanager
def _redis() -> Iterator[str]:
    """A Redis server of Debian on the loopback address, without persistence."""
    folder = unpacked("redis", *REDIS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The server's program is that of the checking tool under another name.
    program = folder / "usr" / "bin" / "redis-check-rdb"
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(command, executable=program, env=libraries(folder), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if time.monotonic() > deadline:
                raise RuntimeError("Redis did not start")
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def measure(rounds: int = ROUNDS) -> list[Result]:
    """All figures."""
    return measure_historical(rounds) + measure_online()


def main() -> int:
    """Measures and publishes."""
    results = measure(int(sys.argv[1])) if len(sys.argv) > 1 else measure()
    publish("feature_store_feast", results)
    return 0 if all(result.holds for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
