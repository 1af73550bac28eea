"""How fast online vectors are: a call for 64 keys over three groups, and how that grows with the number of keys.

The call goes through the RPC to a feature store of its own; its CPU is that of the service as the system accounts it.
The growth is measured through the RPC and in process, with stores of 10 thousand to 10 million keys that are filled
as the applier does. `python -m benchmarks.feature_store.online [most keys]`
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.feature_store.store_process import StoreProcess, running_store
from benchmarks.results import FOLDER, Result, publish
from foresight.client import Column, DataType, FeatureGroup, FeatureView, Field, ViewFeature, ViewSource
from foresight.feature_store.v1 import online_pb2, online_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.wire import encode_column, encode_instant
from services.feature_store.groups import StoredGroup
from services.feature_store.online.lmdb_store import LmdbOnlineStore
from services.feature_store.online.store import CommittedRows, KeyQuery
from services.feature_store.online.vectors import assemble
from services.feature_store.registry.view_plan import plan_view
from services.feature_store.tables.row_source import TableRows

ENTITIES, KEYS, GROUPS, FEATURES = 10_000, 64, 3, 5
CALLS = 2_000
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
BATCH_ROWS = 250_000
GROWTH_MAX = 1.5
TURNS = 8
LOOKUPS = 2_000
PLACE = Field("place", DataType.INT64)
NAMES = tuple(f"f{i}" for i in range(FEATURES))
# Of all rows; a vector asked for later than this has every feature.
EVENT_TIME = datetime(2026, 1, 1, tzinfo=UTC)
ASKED_AT = datetime(2026, 1, 2, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Asked:
    """Calls one after the other: milliseconds of each, and CPU milliseconds per call of the process that answers."""

    milliseconds: list[float]
    cpu_ms: float

    @property
    def p50_ms(self) -> float:
        """The middle one."""
        return statistics.median(self.milliseconds)

    @property
    def p99_ms(self) -> float:
        """One in a hundred takes longer."""
        return statistics.quantiles(self.milliseconds, n=100)[-1]


def define(store: StoreProcess, name: str = "places", groups: int = GROUPS) -> types_pb2.VersionRef:
    """Registers groups of FEATURES numbers per place, and the view over all of them; answers the view."""
    features = tuple(Field(feature, DataType.FLOAT64) for feature in NAMES)
    made = [FeatureGroup(f"{name}_{i}", (PLACE,), features) for i in range(groups)]
    sources = tuple(
        ViewSource(group.name, tuple(ViewFeature(feature) for feature in NAMES), prefix=f"g{i}_")
        for i, group in enumerate(made)
    )
    store.client.apply(*made, FeatureView(name, Field("label", DataType.BOOL), sources))
    return types_pb2.VersionRef(name=name, version=1)


def rows(first: int, count: int) -> pa.Table:
    """Places `first` to `first + count`, all at EVENT_TIME."""
    numbers = np.random.default_rng(first)
    moments = pa.array(np.full(count, int(EVENT_TIME.timestamp()) * 1_000_000), pa.timestamp("us", "UTC"))
    columns = {"place": pa.array(np.arange(first, first + count)), "event_time": moments}
    return pa.table(columns | {name: pa.array(numbers.random(count)) for name in NAMES})


def fill(store: StoreProcess, entities: int, name: str = "places", groups: int = GROUPS, start: int = 0) -> None:
    """Writes a row per place to each group."""
    for group in range(groups):
        for first in range(start, entities, BATCH_ROWS):
            store.client.write(f"{name}_{group}", rows(first, min(BATCH_ROWS, entities - first)))


def ask(store: StoreProcess, view: types_pb2.VersionRef, entities: int, calls: int = CALLS) -> Asked:
    """Asks for KEYS random places of so many, call by call."""
    chance = random.Random(1)
    stub = online_pb2_grpc.OnlineFeatureServiceStub(store.client._connection.channel)

    def call(warm: bool) -> float:
        keys = Column.build("place", DataType.INT64, [chance.randrange(entities) for _ in range(KEYS)])
        request = online_pb2.GetFeatureVectorsRequest(
            view=view, entity_keys=[encode_column(keys)], event_time=encode_instant(ASKED_AT)
        )
        started = time.perf_counter()
        answer = stub.GetFeatureVectors(request)
        seconds = time.perf_counter() - started
        if warm:
            assert len(answer.vectors.features) % FEATURES == 0
            assert all(set(feature.statuses) == {1} for feature in answer.vectors.features)
        return 1e3 * seconds

    for _ in range(max(1, calls // 10)):
        call(warm=True)
    before = cpu_s(store.pid)
    milliseconds = [call(warm=False) for _ in range(calls)]
    return Asked(milliseconds, 1e3 * (cpu_s(store.pid) - before) / calls)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def growth_over_rpc(sizes: Sequence[int]) -> tuple[dict[int, Asked], int]:
    """For each size what a call for one group of so many keys takes, and the peak of the service's own memory.

    All groups lie in one store and are asked in turn, so that whatever else the machine does meets all of them.
    """
    parts: dict[int, list[Asked]] = {size: [] for size in sizes}
    with running_store() as store:
        views = {size: define(store, f"grown_{size}", groups=1) for size in sizes}
        peak = 0
        for size in sizes:
            fill(store, size, f"grown_{size}", groups=1)
            peak = max(peak, store.peak_heap_bytes())
        for _ in range(TURNS):
            for size, view in views.items():
                parts[size].append(ask(store, view, size, calls=CALLS // TURNS))
    return {size: together(found) for size, found in parts.items()}, peak


def together(parts: Sequence[Asked]) -> Asked:
    """All calls of several turns."""
    milliseconds = [taken for part in parts for taken in part.milliseconds]
    return Asked(milliseconds, statistics.median(part.cpu_ms for part in parts))


@dataclass(frozen=True, slots=True)
class Grown:
    """A group of some size: microseconds of a look-up of one key and of KEYS keys, and rows taken per second."""

    one_us: float
    many_us: float
    rows_per_s: float


def growth_in_process(sizes: Sequence[int]) -> dict[int, Grown]:
    """For each size what look-ups of random keys take in a group of so many; medians of turns, as over the RPC."""
    features = tuple(Field(name, DataType.FLOAT64) for name in NAMES)
    groups = {
        size: StoredGroup(id, FeatureGroup(f"places_{id}", (PLACE,), features, version=1))
        for id, size in enumerate(sizes, 1)
    }
    with tempfile.TemporaryDirectory(prefix="fs-bench-") as folder, asyncio.Runner() as runner:
        store = LmdbOnlineStore(Path(folder) / "online")
        rates = {size: runner.run(_filled(store, group, size)) for size, group in groups.items()}
        taken: dict[tuple[int, int], list[float]] = {}
        for turn in range(TURNS):
            for size, group in groups.items():
                for keys in (1, KEYS):
                    chance = np.random.default_rng(turn)
                    found = runner.run(_looked_up(store, group, size, keys, chance))
                    taken.setdefault((size, keys), []).append(found)
        store.close()
    middle = {asked: statistics.median(times) for asked, times in taken.items()}
    return {size: Grown(middle[size, 1], middle[size, KEYS], rates[size]) for size in sizes}


async def _filled(store: LmdbOnlineStore, group: StoredGroup, size: int) -> float:
    """Fills a group as the applier does; rows per second."""
    started = time.perf_counter()
    for first in range(0, size, BATCH_ROWS):
        some = rows(first, min(BATCH_ROWS, size - first))
        some = some.append_column("commit", pa.array(np.full(some.num_rows, 1, np.int64)))
        some = some.append_column("deleted", pa.array(np.zeros(some.num_rows, np.bool_)))
        await store.apply(1, [CommittedRows(group, TableRows(some))])
    return size / (time.perf_counter() - started)


async def _looked_up(
    store: LmdbOnlineStore, group: StoredGroup, size: int, keys: int, chance: np.random.Generator
) -> float:
    """Microseconds of a look-up of random keys, the median of a turn."""
    calls = LOOKUPS if keys == 1 else LOOKUPS // 4
    columns = [Column("place", PLACE.type, chance.integers(0, size, keys)) for _ in range(2 * calls)]
    taken = []
    for number, column in enumerate(columns):
        queries = [KeyQuery(group, (column,))]
        started = time.perf_counter()
        lookup = await store.lookup(queries)
        if number >= calls:
            taken.append(1e6 * (time.perf_counter() - started))
        assert lookup.found[0].whole
    return statistics.median(taken)


def read_in_process(calls: int = CALLS) -> float:
    """CPU microseconds of an answer without the RPC: KEYS random keys are found in GROUPS groups, and judged."""
    features = tuple(Field(name, DataType.FLOAT64) for name in NAMES)
    groups = [
        StoredGroup(id, FeatureGroup(f"places_{id}", (PLACE,), features, version=1)) for id in range(1, GROUPS + 1)
    ]
    sources = tuple(
        ViewSource(stored.group.name, tuple(ViewFeature(name) for name in NAMES), prefix=f"g{i}_", group_version=1)
        for i, stored in enumerate(groups)
    )
    view = FeatureView("places", Field("label", DataType.BOOL), sources, entity_keys=(PLACE,), version=1)
    plan = plan_view(view, groups)
    chance = np.random.default_rng(1)
    columns = [Column("place", PLACE.type, chance.integers(0, ENTITIES, KEYS)) for _ in range(calls)]
    asked_at = int(ASKED_AT.timestamp()) * 1_000_000

    async def run(store: LmdbOnlineStore) -> float:
        for group in groups:
            await _filled(store, group, ENTITIES)
        before = time.process_time()
        for column in columns:
            queries = [KeyQuery(source.group, (column,)) for source in plan.sources]
            vectors = assemble(plan, await store.lookup(queries), asked_at)
            assert len(vectors.features) == GROUPS * FEATURES
        return 1e6 * (time.process_time() - before) / calls

    with tempfile.TemporaryDirectory(prefix="fs-bench-") as folder:
        store = LmdbOnlineStore(Path(folder) / "online")
        try:
            return asyncio.run(run(store))
        finally:
            store.close()


def call_results() -> list[Result]:
    """A call for KEYS keys over GROUPS groups."""
    with running_store() as store:
        view = define(store)
        fill(store, ENTITIES)
        asked = ask(store, view, ENTITIES)
        peak = store.peak_bytes()
    named = f"{KEYS} keys, {GROUPS} groups of {FEATURES} features"
    return [
        Result(f"{named}: p50 through the RPC", asked.p50_ms, "ms"),
        Result(f"{named}: p99 through the RPC", asked.p99_ms, "ms"),
        Result(f"{named}: CPU of the service per call", 1e3 * asked.cpu_ms, "µs"),
        Result(f"{named}: CPU of the service per entity", 1e3 * asked.cpu_ms / KEYS, "µs"),
        Result(f"{named}: CPU per call in process", read_in_process(), "µs"),
        Result(f"{named}: peak memory of the service", peak / 2**20, "MiB"),
    ]


def growth_results(sizes: Sequence[int]) -> list[Result]:
    """Look-up times by the number of keys, and how much longer they take in the largest store."""
    inside = growth_in_process(sizes)
    own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    outside, peak = growth_over_rpc(sizes)
    results: list[Result] = []
    for size in sizes:
        grown, asked = inside[size], outside[size]
        results += [
            Result(f"{size:,} keys: look-up of one, in process", grown.one_us, "µs"),
            Result(f"{size:,} keys: look-up of {KEYS}, in process", grown.many_us, "µs"),
            Result(f"{size:,} keys: taken per second, in process", grown.rows_per_s, "rows/s"),
            Result(f"{size:,} keys: p50 of {KEYS} through the RPC", asked.p50_ms, "ms"),
            Result(f"{size:,} keys: CPU of the service per call", 1e3 * asked.cpu_ms, "µs"),
        ]
    least, most = min(sizes), max(sizes)

    def ratio(named: str, value: Callable[[int], float], at_most: float | None = GROWTH_MAX) -> Result:
        return Result(f"{most:,} keys / {least:,}: {named}", value(most) / value(least), "x", at_most=at_most)

    results += [
        ratio("look-up of one, in process", lambda size: inside[size].one_us),
        # Bare, a key costs less than a microsecond in a small store; in a large one it waits for memory as well.
        ratio(f"look-up of {KEYS}, in process", lambda size: inside[size].many_us, at_most=None),
        ratio(f"p50 of {KEYS} through the RPC", lambda size: outside[size].p50_ms),
        Result("peak of the service's own memory", peak / 2**20, "MiB"),
        Result("peak memory of the in-process store, its file among it", own_peak, "MiB"),
    ]
    draw(inside, outside)
    return results


def draw(inside: dict[int, Grown], outside: dict[int, Asked]) -> None:
    """The growth as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(list(inside), [grown.many_us for grown in inside.values()], "o-", label=f"{KEYS} keys, in process")
    axes.plot(list(inside), [grown.one_us for grown in inside.values()], "o-", label="1 key, in process")
    axes.plot(list(outside), [1e3 * a.p50_ms for a in outside.values()], "o-", label=f"{KEYS} keys, through the RPC")
    axes.set(xscale="log", yscale="log", xlabel="keys in the store", ylabel="look-up, µs (median)")
    axes.set_title("Look-up time by the number of keys")
    axes.legend()
    figure.tight_layout()
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / "feature_store_online_growth.png", dpi=120)
    pyplot.close(figure)


def measure(largest: int = SIZES[-1]) -> list[Result]:
    """All figures."""
    return call_results() + growth_results([size for size in SIZES if size <= largest])


def main() -> int:
    """Measures and publishes."""
    results = measure(int(sys.argv[1])) if len(sys.argv) > 1 else measure()
    publish("feature_store_online", results)
    return 0 if all(result.holds for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
