"""The same rows in any order, in any commits: the same joins, datasets, latest rows and online answers."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from foresight.values import DataType, Field
from services.feature_store.datasets.manifests import DatasetRequest
from services.feature_store.groups import Reference
from tests.integration.feature_store.rig import UTC_MICROS, Store, at, keys, source

PLACES = [f"p{i}" for i in range(6)]
MINUTES = range(8)
ORDERS = 5


@pytest.mark.parametrize("seed", [3, 4])
async def test_answers_do_not_depend_on_the_order_of_ingestion(store: Store, seed: int) -> None:
    """Tombstones and NULLs among the rows; every pair of key and event time comes once."""
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = [
        {
            "place": place,
            "event_time": at(minute),
            "wind": chance.choice((None, chance.random())),
            "deleted": chance.random() < 0.15,
        }
        for place in PLACES
        for minute in MINUTES
        if chance.random() < 0.7
    ]
    spine = pa.table(
        {
            "place": [chance.choice([*PLACES, "absent", None]) for _ in range(60)],
            "event_time": pa.array([at(chance.randrange(20) / 2) for _ in range(60)], UTC_MICROS),
            "late": [True] * 60,
        }
    )
    answers = [await answered(store, f"g{order}", rows, spine, chance) for order in range(ORDERS)]
    assert all(answer == answers[0] for answer in answers)
    assert any(value is not None for value in answers[0]["joined"])


async def answered(
    store: Store, name: str, rows: list[dict[str, Any]], spine: pa.Table, chance: random.Random
) -> dict[str, Any]:
    """What a group says that got the rows in an order and in commits of its own."""
    await store.group(name, [Field("place", DataType.STRING)], [Field("wind", DataType.FLOAT64)])
    await store.view(f"{name}_view", source(name, "wind", max_age=timedelta(minutes=3)))
    left = rows.copy()
    chance.shuffle(left)
    while left:
        size = chance.randrange(1, 12)
        await store.write(name, left[:size])
        left = left[size:]
    joined = await store.read_as_of(f"{name}_view", spine.drop_columns(["late"]))
    dataset = await store.create(DatasetRequest(name, Reference(f"{name}_view")), spine)
    online = {
        minute: await store.vectors.latest(Reference(f"{name}_view"), keys(place=PLACES), at(minute))
        for minute in (3, 7, 9, 30)
    }
    return {
        "joined": joined["wind"].to_pylist(),
        "dataset": dataset.content_sha256,
        "latest": [(r["place"], r["event_time"], r["wind"]) for r in await store.read(name, latest_only=True)],
        "online": {m: (v.features[0].values.tolist(), list(v.features[0].statuses)) for m, v in online.items()},
    }
