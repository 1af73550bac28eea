"""What a look-up costs, in the feature store and in the predictor that asks: CPU and latency by the number of keys.

One call after the other, as the predictor's client makes them, for random keys of a group with GROUP_FEATURES numbers.
python -m benchmarks.predictor.lookups
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

from benchmarks.feature_store.online import cpu_s
from benchmarks.feature_store.store_process import StoreProcess, running_store
from benchmarks.predictor.services import ENTITIES, GROUP_FEATURES, KEY
from benchmarks.results import Result, publish
from foresight.client import DataType, FeatureGroup, FeatureView, Field, ViewFeature, ViewSource
from foresight.values import Column
from services.predictor.feature_store_client import FeatureStoreClient
from services.predictor.versions import VersionRef
from services.runtime.channel import open_channel

KEYS = (1, 10, 64, 1_000)
ROUNDS = 5
SECONDS = 1.0
TIMEOUT_S = 5.0


def define(store: StoreProcess) -> VersionRef:
    """Registers the group and a view of all of it, and writes a row per place."""
    features = tuple(Field(name, DataType.FLOAT64) for name in GROUP_FEATURES)
    group = FeatureGroup("places", (Field(KEY, DataType.STRING),), features)
    source = ViewSource("places", tuple(ViewFeature(name) for name in GROUP_FEATURES))
    store.client.apply(group, FeatureView("late", Field("late", DataType.BOOL), (source,)))
    numbers = np.random.default_rng(0)
    rows = pd.DataFrame({name: numbers.normal(size=ENTITIES) for name in GROUP_FEATURES})
    rows.insert(0, KEY, [f"place {i}" for i in range(ENTITIES)])
    rows["event_time"] = datetime.now(UTC) - timedelta(hours=1)
    store.client.write("places", rows)
    return VersionRef("late", 1)


async def measured(store: StoreProcess, view: VersionRef) -> list[Result]:
    """Medians over the rounds, in which the numbers of keys take turns."""
    chance = random.Random(1)
    asked = {
        n: [Column.build(KEY, DataType.STRING, [f"place {i}" for i in chance.sample(range(ENTITIES), n)])] for n in KEYS
    }
    figures: dict[tuple[int, str], list[float]] = {}
    async with open_channel(store.client._connection.address) as channel:
        client = FeatureStoreClient(channel)
        for turn in range(ROUNDS + 1):
            for n, keys in asked.items():
                taken, seconds = [], SECONDS if turn else SECONDS / 4
                at = time.time_ns() // 1_000
                before, own = cpu_s(store.pid), time.process_time()
                until = time.perf_counter() + seconds
                while (started := time.perf_counter()) < until:
                    vectors = await client.vectors(view, keys, [at] * n, TIMEOUT_S)
                    taken.append(time.perf_counter() - started)
                assert vectors.features[-1].statuses == b"\1" * n
                if turn:
                    used = cpu_s(store.pid) - before
                    figures.setdefault((n, "CPU of feature_store"), []).append(used / len(taken))
                    used = time.process_time() - own
                    figures.setdefault((n, "CPU of the caller"), []).append(used / len(taken))
                    figures.setdefault((n, "p50"), []).append(statistics.median(taken))
    return [
        Result(f"look-up of {n:,} keys, {what}", 1e6 * statistics.median(found), "us")
        for (n, what), found in figures.items()
    ]


def main() -> int:
    """Measures on a store of its own."""
    with running_store() as store:
        results = asyncio.run(measured(store, define(store)))
    publish("predictor_lookups", results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
