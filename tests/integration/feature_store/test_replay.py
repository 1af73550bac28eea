"""Online answers, their meaning at a time, and their replay from offline rows."""

from __future__ import annotations

import asyncio
import contextlib
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry

from foresight.values import Column, DataType, FeatureStatus, Field, InvalidValue, micros_from_instant
from services.feature_store.commits import WriteOrigin
from services.feature_store.groups import Reference
from services.feature_store.metrics import FeatureStoreMetrics
from services.feature_store.online.applier import Applier
from services.feature_store.online.leases import FileLease
from services.feature_store.online.vectors import FeatureVectors
from services.feature_store.tables.row_source import TableRows
from services.feature_store.writes.incoming_rows import IncomingRows
from services.runtime.errors import LimitExceeded, NotFound, OutOfRange, Unavailable
from tests.conftest import MakeDatabase
from tests.integration.feature_store.rig import NOW, Store, as_sent, at, keys, running_store, source

FEATURES = (
    Field("number", DataType.FLOAT64),
    Field("count", DataType.INT64),
    Field("flag", DataType.BOOL),
    Field("words", DataType.STRING),
    Field("moment", DataType.TIMESTAMP),
    Field("vector", DataType.FLOAT_VECTOR, 2),
)


def statuses(vectors: FeatureVectors, feature: int = 0) -> list[str]:
    """Names of a feature's statuses."""
    return [FeatureStatus(status).name for status in vectors.features[feature].statuses]


async def test_statuses_by_the_online_rule(store: Store) -> None:
    """Present, NULL, not found, a tombstone, expired, future; values are zeros unless present."""
    await store.group("weather", [Field("place", DataType.STRING)], FEATURES)
    await store.view("judged", source("weather", "number", "words", max_age=timedelta(minutes=10)))
    await store.write(
        "weather",
        [
            {"place": "fresh", "event_time": at(20), "number": 1.5, "words": "x"},
            {"place": "edge", "event_time": at(10), "number": 2.5, "words": "x"},
            {"place": "null", "event_time": at(20), "words": "x"},
            {"place": "gone", "event_time": at(20), "deleted": True},
            {"place": "old", "event_time": at(9.99), "number": 1.0},
            {"place": "later", "event_time": at(20.01), "number": 1.0},
        ],
    )
    asked = keys(place=["fresh", "edge", "null", "gone", "old", "later", "absent", None])
    vectors = await store.vectors.latest(Reference("judged"), asked, at(20))
    assert statuses(vectors) == [
        *("PRESENT", "PRESENT", "NULL", "NOT_FOUND", "EXPIRED", "FUTURE", "NOT_FOUND", "NOT_FOUND")
    ]
    assert vectors.features[0].values.tolist() == [1.5, 2.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert vectors.features[1].values.tolist() == ["x", "x", "x", "", "", "", "", ""]
    assert vectors.rows[0].commits.tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
    assert vectors.rows[0].event_time_us[4:6].tolist() == [
        micros_from_instant(at(9.99)),
        micros_from_instant(at(20.01)),
    ]
    assert vectors.applied_commit == 1


async def test_a_strict_group_is_not_seen_at_its_own_time(store: Store) -> None:
    """Offline and online alike."""
    await store.group("weather", [Field("place", DataType.STRING)], FEATURES, strict_event_time=True)
    await store.view("judged", source("weather", "number"))
    await store.write("weather", [{"place": "a", "event_time": at(5), "number": 1.0}])
    for minutes, status in ((5, "FUTURE"), (5.01, "PRESENT")):
        vectors = await store.vectors.latest(Reference("judged", 1), keys(place=["a"]), at(minutes))
        assert statuses(vectors) == [status]


async def test_a_late_batch_never_overwrites_a_newer_row(store: Store) -> None:
    """But a correction of the same time does."""
    await store.group("weather", [Field("place", DataType.STRING)], FEATURES)
    await store.view("judged", source("weather", "number"))
    for minutes, number in ((10, 1.0), (9, 2.0), (10, 3.0)):
        await store.write("weather", [{"place": "a", "event_time": at(minutes), "number": number}])
    vectors = await store.vectors.latest(Reference("judged"), keys(place=["a"]), at(20))
    assert vectors.features[0].values.tolist() == [3.0]


async def test_replay_equals_every_online_answer_ever_given(store: Store) -> None:
    """Random writes to two groups of one view; each answer is replayed after all of them are in."""
    chance = random.Random(11)
    place, level, up = Field("place", DataType.STRING), Field("level", DataType.INT64), Field("up", DataType.BOOL)
    await store.group("weather", [place, level], FEATURES)
    await store.group("plans", [place, up], FEATURES, strict_event_time=True)
    first = source("weather", "number", "vector", "words", max_age=timedelta(minutes=6))
    second = source("plans", "count", "flag", "moment", "number", keys={"place": "home"}, prefix="plan_")
    view = await store.view("judged", first, second)
    reference = Reference("judged", view.version)
    places, levels = ["1", "12", ""], [23, 3]
    everyone = [(p, n, h, u) for p in [*places, None] for n in levels for h in places for u in (True, False, None)]
    asked = {
        name: Column.build(name, type, [entity[i] for entity in everyone])
        for i, (name, type) in enumerate(
            {"place": place.type, "level": level.type, "home": place.type, "up": up.type}.items()
        )
    }
    answers: list[tuple[Any, FeatureVectors]] = []
    for _ in range(14):
        group = chance.choice(["weather", "plans"])
        rows: dict[Any, dict[str, Any]] = {}
        for _ in range(chance.randint(1, 8)):
            key: dict[str, Any] = {"place": chance.choice(places)}
            key |= {"level": chance.choice(levels)} if group == "weather" else {"up": chance.random() < 0.5}
            time = at(chance.randint(0, 12))
            rows[(*key.values(), time)] = key | {
                "event_time": time,
                "deleted": chance.random() < 0.15,
                "number": chance.choice([None, -0.0, 0.1]),
                "count": chance.choice([None, 2**62 + 1]),
                "flag": chance.choice([None, True, False]),
                "words": chance.choice([None, "", "é"]),
                "moment": chance.choice([None, at(0.5)]),
                "vector": chance.choice([None, [0.1, 1e-30]]),
            }
        await store.write(group, list(rows.values()))
        moment = at(chance.randint(0, 13))
        answers.append((moment, await store.vectors.latest(reference, asked, moment)))
    assert len({answer.applied_commit for _, answer in answers}) == 14
    for moment, answer in answers:
        replayed = await store.vectors.replay(reference, asked, moment, answer.applied_commit)
        assert as_sent(replayed) == as_sent(answer)
    seen = {status for _, answer in answers for feature in answer.features for status in feature.statuses}
    # Of its own absence the store says nothing.
    assert seen == set(FeatureStatus) - {FeatureStatus.UNAVAILABLE}


async def test_a_replay_needs_a_version_and_an_existing_commit(store: Store) -> None:
    """It says what is wrong; reads of unknown things and of wrong keys too."""
    await store.group("weather", [Field("place", DataType.STRING)], FEATURES)
    await store.view("judged", source("weather", "number"))
    asked = keys(place=["a"])
    with pytest.raises(OutOfRange):
        await store.vectors.replay(Reference("judged", 1), asked, at(1), 1)
    assert statuses(await store.vectors.replay(Reference("judged", 1), asked, at(1), 0)) == ["NOT_FOUND"]
    with pytest.raises(InvalidValue, match="version"):
        await store.vectors.replay(Reference("judged"), asked, at(1), 0)
    with pytest.raises(NotFound):
        await store.vectors.latest(Reference("judged", 2), asked, at(1))
    for wrong in ({}, keys(place=[1]), keys(place=[]), keys(place=["a"], other=["b"]), keys(other=["a"])):
        with pytest.raises(InvalidValue, match="entity_keys"):
            await store.vectors.latest(Reference("judged"), wrong, at(1))
    with pytest.raises(LimitExceeded):
        await store.vectors.latest(Reference("judged"), keys(place=["a"] * 1_025), at(1))


async def test_a_commit_is_applied_after_a_crash_between_database_and_online_store(
    postgres_url: MakeDatabase, folder: Path
) -> None:
    """What was published while nobody applied is there when the store says that it caught up."""
    settings = postgres_url("feature_store")
    async with running_store(settings, folder) as before:
        await before.group("weather", [Field("place", DataType.STRING)], FEATURES)
        await before.view("judged", source("weather", "number"))
        await before.write("weather", [{"place": "a", "event_time": at(1), "number": 1.0}])
    async with running_store(settings, folder, applying=False) as crashing:
        write = asyncio.create_task(
            crashing.write("weather", [{"place": "a", "event_time": at(2), "number": 2.0}], "crash")
        )
        async with asyncio.timeout(10):
            while await crashing.commits.last() < 2:
                await asyncio.sleep(0.01)
        write.cancel()
        await asyncio.wait([write])
        stale = await crashing.vectors.latest(Reference("judged"), keys(place=["a"]), at(5))
        assert (stale.applied_commit, stale.features[0].values.tolist()) == (1, [1.0])
        with pytest.raises(Unavailable, match="commit 2 is published"):
            await crashing.applier.applied(2, 0.01)
    async with running_store(settings, folder) as after:
        async with asyncio.timeout(10):
            while not after.applier.caught_up:
                await asyncio.sleep(0.01)
        vectors = await after.vectors.latest(Reference("judged"), keys(place=["a"]), at(5))
        assert (vectors.applied_commit, vectors.features[0].values.tolist()) == (2, [2.0])
        again = await after.write("weather", [{"place": "a", "event_time": at(2), "number": 2.0}], "crash")
        assert (again.number, again.duplicate) == (2, True)


async def test_a_lost_online_store_is_rebuilt_from_the_database(postgres_url: MakeDatabase, folder: Path) -> None:
    """It is derived data; an empty folder catches up from the first commit."""
    settings = postgres_url("feature_store")
    async with running_store(settings, folder / "one") as before:
        await before.group("weather", [Field("place", DataType.STRING)], FEATURES)
        await before.view("judged", source("weather", "number", "vector", "words"))
        for minutes in range(5):
            rows = [
                {"place": str(i), "event_time": at(minutes + i), "number": float(i), "vector": [1.0, minutes]}
                for i in range(minutes + 1)
            ]
            await before.write("weather", rows)
        asked = keys(place=[str(i) for i in range(6)])
        expected = await before.vectors.latest(Reference("judged"), asked, at(9))
    async with running_store(settings, folder / "two") as after:
        await after.applier.applied(5, 10)
        assert as_sent(await after.vectors.latest(Reference("judged"), asked, at(9))) == as_sent(expected)


async def test_a_second_store_follows_and_takes_over(postgres_url: MakeDatabase, folder: Path) -> None:
    """One lease: a write through either is applied, and the follower leads once the leader is gone."""
    settings = postgres_url("feature_store")
    asked = keys(place=["a"])
    async with contextlib.AsyncExitStack() as first:
        leader = await first.enter_async_context(running_store(settings, folder))
        await leader.group("weather", [Field("place", DataType.STRING)], FEATURES)
        await leader.view("judged", source("weather", "number"))
        await leader.write("weather", [{"place": "a", "event_time": at(1), "number": 1.0}])
        # An environment of LMDB may be opened once per process, so both share it here.
        lease = FileLease(folder / "lock")
        follower = Applier(leader.catch_up, leader.online, lease, METRICS)
        task = asyncio.create_task(follower.run())
        await follower.applied(1, 10)
        await leader.write("weather", [{"place": "a", "event_time": at(2), "number": 2.0}])
        await follower.applied(2, 10)
        assert follower.caught_up
        await leader.stop_applying()
        stored = await leader.registry.group(Reference("weather"))
        rows = IncomingRows(stored, TableRows(ROW), NOW, leader.workspace, digested=False)
        await leader.commits.write(stored, rows, WriteOrigin())
        await follower.applied(3, 10)
        vectors = await leader.vectors.latest(Reference("judged"), asked, at(5))
        assert vectors.features[0].values.tolist() == [3.0]
        task.cancel()
        await asyncio.wait([task])


METRICS = FeatureStoreMetrics(CollectorRegistry())
ROW = pa.table({"place": ["a"], "event_time": pa.array([at(3)], pa.timestamp("us", "UTC")), "number": [3.0]})
