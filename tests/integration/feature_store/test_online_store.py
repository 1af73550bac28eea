"""The online store beside the offline rows: statuses at their edges, rebuilds, replicas, added features, leases."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from foresight.values import Column, DataType, FeatureStatus, Field
from services.feature_store.__main__ import MIGRATIONS
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.online.catch_up import CatchUp
from services.feature_store.online.lmdb_store import LmdbOnlineStore
from services.feature_store.online.store import FoundRow, KeyQuery
from services.feature_store.postgres.published_rows import PublishedRowReader
from services.feature_store.postgres.session_lease import SessionLease
from services.feature_store.tables.scratch import ScratchFolder
from services.runtime.database import Database, open_database
from services.runtime.errors import FailedPrecondition, PermissionDenied, Unavailable
from services.runtime.identity import LOCAL
from tests.conftest import MakeDatabase
from tests.integration.feature_store.rig import Store, as_sent, at, keys, running_store, source

PLACE, NUMBER = Field("place", DataType.STRING), Field("number", DataType.FLOAT64)
US = timedelta(microseconds=1)


async def latest_offline(store: Store, group: str) -> dict[Any, FoundRow]:
    """The latest row per place among all commits, tombstones too, by brute force."""
    stored = await store.registry.group(Reference(group))
    latest: dict[Any, dict[str, Any]] = {}
    for row in await store.read(group):
        known = latest.get(row["place"])
        if known is None or (row["event_time"], row["commit"]) > (known["event_time"], known["commit"]):
            latest[row["place"]] = row
    features = [f.name for f in stored.group.features]
    return {
        place: FoundRow(
            Column.build("t", DataType.TIMESTAMP, [row["event_time"]]).values.tolist()[0],
            row["commit"],
            row["deleted"],
            tuple(row[name] for name in features),
        )
        for place, row in latest.items()
    }


async def latest_online(store: Store, group: str, places: Sequence[Any]) -> dict[Any, FoundRow]:
    """What the online store has for places."""
    stored = await store.registry.group(Reference(group))
    found: dict[Any, FoundRow] = {}
    for start in range(0, len(places), 5_000):
        some = places[start : start + 5_000]
        query = KeyQuery(stored, (Column.build("place", DataType.STRING, some),))
        (rows,) = (await store.online.lookup([query])).found
        found |= {place: row for place, row in zip(some, rows, strict=True) if row is not None}
    return found


async def assert_same(store: Store, group: str) -> int:
    """Offline and online agree on every place; answers how many there are."""
    offline = await latest_offline(store, group)
    assert await latest_online(store, group, list(offline)) == offline
    return len(offline)


@pytest.mark.parametrize(
    ("event_time", "strict", "asked", "status"),
    [
        (at(10), False, at(20), "PRESENT"),
        (at(10) - US, False, at(20), "EXPIRED"),
        (at(20), False, at(20), "PRESENT"),
        (at(20), True, at(20), "FUTURE"),
        (at(20) - US, True, at(20), "PRESENT"),
        (at(20) + US, False, at(20), "FUTURE"),
        (at(10), True, at(20), "PRESENT"),
        (at(10) - US, True, at(20), "EXPIRED"),
    ],
)
async def test_edges_of_a_status_by_the_microsecond(
    store: Store, event_time: Any, strict: bool, asked: Any, status: str
) -> None:
    """An age equal to max_age is fresh; a strict group is not seen at its own time. Offline says the same."""
    await store.group("weather", [PLACE], [NUMBER], strict_event_time=strict)
    await store.view("judged", source("weather", "number", max_age=timedelta(minutes=10)))
    await store.write("weather", [{"place": "a", "event_time": event_time, "number": 1.0}])
    vectors = await store.vectors.latest(Reference("judged", 1), keys(place=["a"]), asked)
    assert FeatureStatus(vectors.features[0].statuses[0]).name == status
    assert as_sent(await store.vectors.replay(Reference("judged", 1), keys(place=["a"]), asked, 1)) == as_sent(vectors)
    spine = pa.table({"place": ["a"], "event_time": pa.array([asked], pa.timestamp("us", "UTC"))})
    joined = await store.read_as_of("judged", spine)
    assert joined["number"].to_pylist() == [1.0 if status == "PRESENT" else None]


async def test_a_tombstone_is_not_found_whatever_its_time(store: Store) -> None:
    """Also one that is later than the time of asking; a NULL is a value, and a missing row is none."""
    await store.group("weather", [PLACE], [NUMBER])
    await store.view("judged", source("weather", "number"))
    await store.write(
        "weather",
        [
            {"place": "gone", "event_time": at(5), "number": 1.0},
            {"place": "null", "event_time": at(5), "number": None},
        ],
    )
    await store.write("weather", [{"place": "gone", "event_time": at(30), "deleted": True}])
    vectors = await store.vectors.latest(Reference("judged", 1), keys(place=["gone", "null", "absent"]), at(20))
    assert [FeatureStatus(s).name for s in vectors.features[0].statuses] == ["NOT_FOUND", "NULL", "NOT_FOUND"]


async def test_rows_from_before_a_feature_read_its_default(store: Store) -> None:
    """In the store, after a rebuild of it, and for a row that leaves the feature out; a NULL that is written stays."""
    await store.group("weather", [PLACE], [NUMBER])
    await store.view("before", source("weather", "number"))
    await store.write("weather", [{"place": p, "event_time": at(1), "number": 1.0} for p in ("old", "corrected")])
    etag = (await store.registry.group(Reference("weather"))).group.etag
    added = [Field("text", DataType.STRING), Field("vector", DataType.FLOAT_VECTOR, 2)]
    defaults = {
        "text": Column.build("text", DataType.STRING, ["unknown"]),
        "vector": Column.build("vector", DataType.FLOAT_VECTOR, [[0.5, 1.0]], 2),
    }
    await store.registry.add_features(Reference("weather", 1), added, defaults, etag)
    await store.view("after", source("weather", "text", "number", "vector"))
    await store.write("weather", [{"place": "corrected", "event_time": at(1), "number": 2.0, "text": "said"}])
    await store.write("weather", [{"place": "null", "event_time": at(1), "text": None, "vector": [2.0, 3.0]}])
    asked = keys(place=["old", "corrected", "null"])
    expected = [["unknown", "said", ""], [1.0, 2.0, 0.0], [[0.5, 1.0], [0.5, 1.0], [2.0, 3.0]]]
    for _ in range(2):
        vectors = await store.vectors.latest(Reference("after"), asked, at(5))
        assert [feature.values.tolist() for feature in vectors.features] == expected
        assert FeatureStatus(vectors.features[0].statuses[2]).name == "NULL"
        assert as_sent(await store.vectors.replay(Reference("after", 1), asked, at(5), 3)) == as_sent(vectors)
        before = await store.vectors.latest(Reference("before"), asked, at(5))
        assert before.features[0].values.tolist() == [1.0, 2.0, 0.0]
        assert await assert_same(store, "weather") == 3
        await store.rebuild.rebuild(LOCAL)


async def test_a_rebuild_makes_the_same_store_while_rows_are_written(store: Store) -> None:
    """Nothing that was answered during it is missing after it, and late rows stay out, those under tombstones too."""
    await store.group("weather", [PLACE], [NUMBER])
    await store.group("empty", [PLACE], [NUMBER])
    chance = random.Random(3)
    places = [f"p{i}" for i in range(300)]

    def some(n: int) -> list[dict[str, Any]]:
        return [
            {"place": place, "event_time": at(chance.randrange(50)), "number": chance.random()}
            | ({"deleted": True} if chance.random() < 0.2 else {"deleted": False})
            for place in chance.sample(places, n)
        ]

    for _ in range(5):
        await store.write("weather", some(200))
    done = asyncio.Event()

    async def keep_writing() -> None:
        while not done.is_set():
            await store.write("weather", some(3))

    writing = asyncio.create_task(keep_writing())
    rebuilt = [await store.rebuild.rebuild(LOCAL) for _ in range(3)]
    done.set()
    await writing
    assert await assert_same(store, "weather") == rebuilt[-1].keys
    assert [r.applied_commit for r in rebuilt] == sorted(r.applied_commit for r in rebuilt)
    last = await store.commits.last()
    assert await store.online.applied_commit() == last


async def test_a_rebuild_heals_a_store_that_lost_rows(store: Store) -> None:
    """The applier alone would never bring them back, as their commits were applied."""
    await store.group("weather", [PLACE], [NUMBER])
    await store.write("weather", [{"place": p, "event_time": at(1), "number": 1.0} for p in "abc"])
    stored = await store.registry.group(Reference("weather"))
    await store.online.remove(stored, (Column.build("place", DataType.STRING, ["a", "b"]),))
    assert len(await latest_online(store, "weather", ["a", "b", "c"])) == 1
    assert (await store.rebuild.rebuild(LOCAL)).keys == 3
    assert await assert_same(store, "weather") == 3


async def test_a_rebuild_passes_over_a_group_that_is_dropped_under_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        await store.group(name, [PLACE], [NUMBER])
        await store.write(name, [{"place": "a", "event_time": at(1), "number": 1.0}])
    find = store.catch_up.group

    async def find_and_drop(group_id: int) -> StoredGroup | None:
        stored = await find(group_id)
        if stored is not None and stored.group.name == "first":
            await store.registry.drop_group(Reference("first", 1), "")
        return stored

    monkeypatch.setattr(store.catch_up, "group", find_and_drop)
    assert (await store.rebuild.rebuild(LOCAL)).keys == 1


async def test_a_rebuild_is_for_operators_and_one_at_a_time(store: Store) -> None:
    """A refused one leaves the other alone."""
    await store.group("weather", [PLACE], [NUMBER])
    await store.write("weather", [{"place": "a", "event_time": at(1), "number": 1.0}])
    with pytest.raises(PermissionDenied):
        await store.rebuild.rebuild("spiffe://foresight/application/demo")
    both = [store.rebuild.rebuild(LOCAL), store.rebuild.rebuild("spiffe://foresight/operator/ada")]
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert sum(isinstance(outcome, FailedPrecondition) for outcome in outcomes) == 1
    assert (await store.rebuild.rebuild(LOCAL)).keys == 1


async def test_a_rebuild_that_is_cancelled_changes_nothing(store: Store) -> None:
    """At whatever point."""
    await store.group("weather", [PLACE], [NUMBER])
    await store.write("weather", [{"place": str(i), "event_time": at(1), "number": 1.0} for i in range(500)])
    chance = random.Random(5)
    for _ in range(6):
        rebuilding = asyncio.create_task(store.rebuild.rebuild(LOCAL))
        await asyncio.wait([rebuilding], timeout=chance.random() * 0.03)
        rebuilding.cancel()
        await asyncio.wait([rebuilding])
        assert await assert_same(store, "weather") == 500
    assert (await store.rebuild.rebuild(LOCAL)).keys == 500
    generations = [path for path in (store.folder / "online").iterdir() if path.is_dir()]
    assert len(generations) == 1


async def test_a_commit_that_does_not_fit_into_memory_is_applied_whole(store: Store, folder: Path) -> None:
    """By a store that was not there when it was written, from a file that is gone afterwards."""
    await store.group(
        "weather", [PLACE], [NUMBER, Field("vector", DataType.FLOAT_VECTOR, 2), Field("n", DataType.INT64)]
    )
    rows = [
        {"place": str(i), "event_time": at(1), "number": 2.0, "vector": [1.0, float(i)], "n": i} for i in range(500)
    ]
    await store.write("weather", rows)
    scratch = ScratchFolder(folder / "scratch")
    catch_up = CatchUp(store.commits, PublishedRowReader(store.database, scratch, memory_rows=100), store.registry)
    other = LmdbOnlineStore(folder / "other")
    await catch_up.all(other)
    stored = await store.registry.group(Reference("weather"))
    query = KeyQuery(stored, (Column.build("place", DataType.STRING, [row["place"] for row in rows]),))
    lookups = [await online.lookup([query]) for online in (store.online, other)]
    assert lookups[0] == lookups[1]
    assert None not in lookups[1].found[0]
    assert [path for path in (folder / "scratch").rglob("*") if path.is_file()] == []
    other.close()
    scratch.close()


async def test_replicas_with_stores_of_their_own_have_the_same_rows(postgres_url: MakeDatabase, folder: Path) -> None:
    """Each applies the commits of all; one that comes later catches up from the commit log before it is ready."""
    settings = postgres_url("feature_store")
    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(running_store(settings, folder / str(i))) for i in range(2)]
        await stores[0].group("weather", [PLACE], [NUMBER])
        for i in range(12):
            await stores[i % 2].write("weather", [{"place": f"p{i % 5}", "event_time": at(i % 4), "number": float(i)}])
        later = await stack.enter_async_context(running_store(settings, folder / "later"))
        for store in (*stores, later):
            await store.applier.applied(12, 10)
            assert await assert_same(store, "weather") == 5
        async with asyncio.timeout(10):
            while not later.applier.caught_up:
                await asyncio.sleep(0.01)


async def test_a_lease_of_a_session_is_held_by_one_and_ends_with_it(postgres_url: MakeDatabase) -> None:
    """Another name is another lease; a session that ends takes it along, and its former holder notices."""
    settings = postgres_url("feature_store")
    async with (
        open_database(settings, "feature_store", MIGRATIONS) as one,
        open_database(settings, "feature_store", MIGRATIONS) as two,
    ):
        mine, theirs, other = SessionLease(one, "a"), SessionLease(two, "a"), SessionLease(two, "b")
        assert await mine.take()
        assert await mine.take()
        assert not await theirs.take()
        assert await other.take()
        await mine.release()
        assert await theirs.take()
        assert not await mine.take()
        async with two.statements() as connection:
            kill = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            await connection.exec_driver_sql(kill)
        async with asyncio.timeout(10):
            while not await mine.take():
                await asyncio.sleep(0.02)
            while await theirs.take():
                await asyncio.sleep(0.05)
        await mine.release()
        await theirs.release()
        await other.release()


async def test_a_lease_without_a_database_is_unavailable(postgres_url: MakeDatabase) -> None:
    """Not a bug."""
    settings = postgres_url("feature_store")
    async with open_database(settings, "feature_store", MIGRATIONS) as database:
        await database.close()
        missing = settings.model_copy(update={"url": settings.url.replace("/feature_store", "/none_of_that_name")})
        gone = Database(missing, "feature_store")
        with pytest.raises(Unavailable):
            await SessionLease(gone, "a").take()
        await gone.close()
