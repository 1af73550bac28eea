"""Registering, changing and dropping on a real database, many at once among them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import pytest

from foresight.values import Column, DataType, Expectation, FeatureGroup, Field, InvalidValue, NotNull
from services.feature_store.groups import Reference
from services.feature_store.online.store import KeyQuery
from services.feature_store.postgres.registrations import Registrations
from services.feature_store.reads.histories import ALL_TIMES
from services.feature_store.reads.queries import GroupQuery, SpineQuery
from services.feature_store.registry.about import GroupAbout, ViewAbout
from services.feature_store.registry.lineage import Thing, ThingKind
from services.feature_store.registry.search import FoundKind, Query
from services.runtime.errors import AlreadyExists, FailedPrecondition, NotFound, StaleEtag, Unavailable
from services.runtime.settings import DatabaseSettings
from tests.integration.feature_store.rig import T0, LogInMemory, Store, at, keys, running_store, source

T = TypeVar("T")
PLACE, WIND = Field("place", DataType.STRING), Field("wind", DataType.FLOAT64)
WEATHER = FeatureGroup("weather", (PLACE,), (WIND,))
HOUR = Field("hour", DataType.INT64)
LAST = Reference("weather")
# One of each type, awkward where text has to be quoted.
ADDED: dict[str, Column] = {
    "snow": Column.build("snow", DataType.INT64, [-(2**63)]),
    "gust": Column.build("gust", DataType.FLOAT64, [-0.1]),
    "open": Column.build("open", DataType.BOOL, [True]),
    "sky": Column.build("sky", DataType.STRING, ['it\'s \\ "clear" é $1 %s :x']),
    "seen": Column.build("seen", DataType.TIMESTAMP, [datetime(9, 1, 2, 3, 4, 5, 6, UTC)]),
    "shape": Column.build("shape", DataType.FLOAT_VECTOR, [[0.1, -3.4e38]], 2),
}
FIELDS = [replace(column.field, name=name) for name, column in ADDED.items()]


@pytest.fixture
async def following(store: Store) -> AsyncIterator[Store]:
    """The store, seeing what other processes change."""
    task = asyncio.create_task(store.registry.run())
    yield store
    task.cancel()
    await asyncio.wait([task])


async def outcomes(calls: Sequence[Awaitable[T]]) -> tuple[list[T], list[BaseException]]:
    """What calls made at once answered and raised."""
    done = await asyncio.gather(*calls, return_exceptions=True)
    return [d for d in done if not isinstance(d, BaseException)], [d for d in done if isinstance(d, BaseException)]


def about(group: FeatureGroup, **changed: Any) -> GroupAbout:
    """What is said about a group, with changes."""
    named = {name: getattr(group, name) for name in GroupAbout.__slots__} | changed
    return GroupAbout(**named)


async def test_the_same_registration_changes_nothing(store: Store) -> None:
    """Not even the etag; other words change it in place, and other content makes a version."""
    first, created = await store.registry.register_group(replace(WEATHER, owner="meteo", tags={"b": "1", "a": "2"}))
    assert (first.version, created) == (1, True)
    again = await store.registry.register_group(replace(WEATHER, owner="meteo", tags={"a": "2", "b": "1"}))
    assert again == (first, False)
    said, created = await store.registry.register_group(replace(WEATHER, description="hourly"))
    assert (said.version, created, said.owner, said.description) == (1, False, "", "hourly")
    assert said.etag != first.etag
    assert said.created_at == first.created_at
    next_one, created = await store.registry.register_group(replace(WEATHER, features=(WIND, HOUR)))
    assert (next_one.version, created, next_one.deprecation) == (2, True, "")
    view = await store.view("judged", source("weather", "wind"))
    assert (await store.view("judged", source("weather", "wind"))) == view
    renamed = await store.view("judged", source("weather", "wind"), owner="ops")
    assert (renamed.version, renamed.owner, renamed.sources[0].group_version) == (1, "ops", 2)
    assert (await store.registry.view(Reference("judged"))) == renamed


async def test_many_registrations_of_one_name_get_versions_without_a_gap(store: Store) -> None:
    """Equal content one version, however many ask at once; different content one each."""
    same, errors = await outcomes([store.registry.register_group(WEATHER) for _ in range(12)])
    assert not errors
    assert [group.version for group, _ in same] == [1] * 12
    assert sum(created for _, created in same) == 1
    names = [f"f{i}" for i in range(12)]
    made, errors = await outcomes(
        [store.registry.register_group(replace(WEATHER, features=(WIND, Field(n, DataType.INT64)))) for n in names]
    )
    assert not errors
    assert sorted(group.version for group, _ in made) == list(range(2, 14))
    views, errors = await outcomes([store.view("judged", source("weather", "wind")) for _ in range(8)])
    assert not errors
    assert {view.version for view in views} == {1}


async def test_one_of_many_changes_of_one_state_wins(store: Store) -> None:
    """Whoever comes later with the same etag is told that it is stale, and which one holds."""
    group, _ = await store.registry.register_group(WEATHER)
    calls: list[Awaitable[Any]] = []
    for i in range(4):
        calls += [
            store.registry.update_group(LAST, about(group, owner=f"o{i}"), group.etag),
            store.registry.register_group(replace(WEATHER, description=f"d{i}", etag=group.etag)),
            store.registry.register_group(
                replace(WEATHER, features=(Field(f"x{i}", DataType.INT64),), etag=group.etag)
            ),
            store.registry.add_features(
                LAST, [Field(f"f{i}", DataType.INT64)], {f"f{i}": Column.build("f", DataType.INT64, [i])}, group.etag
            ),
        ]
    won, lost = await outcomes(calls)
    assert len(won) == 1
    assert all(isinstance(error, StaleEtag) for error in lost)
    present = (await store.registry.group(LAST)).group
    assert {error.metadata["etag"] for error in lost if isinstance(error, StaleEtag)} == {present.etag}
    with pytest.raises(StaleEtag):
        await store.registry.drop_group(Reference("weather", 1), "another")
    with pytest.raises(StaleEtag):
        await store.registry.register_group(replace(WEATHER, name="never_seen", etag="anything"))


async def test_added_features_read_their_defaults_everywhere(store: Store) -> None:
    """In rows from before, offline, online and replayed; in rows of writers that do not know them; NULL stays NULL."""
    await store.registry.register_group(WEATHER)
    await store.write("weather", [{"place": "old", "event_time": T0, "wind": 1.0}])
    widened = await store.registry.add_features(LAST, FIELDS, ADDED, "")
    assert widened.version == 1
    assert [f.name for f in widened.features] == ["wind", *ADDED]
    await store.write("weather", [{"place": "unaware", "event_time": T0, "wind": 2.0}])
    nulls = dict.fromkeys(ADDED)
    await store.write("weather", [{"place": "null", "event_time": T0, "wind": 3.0, **nulls}])
    expected = {name: column.to_list()[0] for name, column in ADDED.items()}
    rows = {row["place"]: {name: row[name] for name in ADDED} for row in await store.read("weather")}
    assert rows == {"old": expected, "unaware": expected, "null": nulls}
    view = await store.view("judged", source("weather", "wind", *ADDED))
    reference, asked = Reference("judged", view.version), keys(place=["old", "unaware", "null"])
    online = await store.vectors.latest(reference, asked, at(1))
    replayed = await store.vectors.replay(reference, asked, at(1), online.applied_commit)
    for vectors in (online, replayed):
        for feature in vectors.features[1:]:
            raw = ADDED[feature.field.name].values[0]
            wanted = raw.tolist() if isinstance(raw, np.ndarray | np.generic) else raw
            assert feature.values[:2].tolist() == [wanted, wanted]
            assert feature.statuses == b"\x01\x01\x02"


async def test_a_view_from_before_the_addition_reads_on(following: Store) -> None:
    """Its plan is remembered, and rows have more features now."""
    store = following
    await store.registry.register_group(WEATHER)
    await store.write("weather", [{"place": "a", "event_time": T0, "wind": 1.0}])
    view = Reference((await store.view("judged", source("weather", "wind"))).name, 1)
    assert (await store.vectors.latest(view, keys(place=["a"]), T0)).features[0].values.tolist() == [1.0]
    await store.registry.add_features(LAST, FIELDS, ADDED, "")
    await store.write("weather", [{"place": "a", "event_time": at(1), "wind": 2.0, "sky": "grey"}])
    assert (await store.vectors.latest(view, keys(place=["a"]), at(2))).features[0].values.tolist() == [2.0]


async def test_a_write_id_of_rows_from_before_the_addition_is_still_known(store: Store) -> None:
    await store.registry.register_group(WEATHER)
    rows = [{"place": "a", "event_time": T0, "wind": 1.0}]
    first = await store.write("weather", rows, "once")
    await store.registry.add_features(LAST, FIELDS, ADDED, "")
    again = await store.write("weather", rows, "once")
    assert (again.number, again.duplicate) == (first.number, True)


async def test_another_process_sees_additions_at_once_and_drops_soon(
    following: Store, settings: DatabaseSettings
) -> None:
    """Its writes and views know new features; what it remembers for reading is forgotten within seconds."""
    store = following
    await store.registry.register_group(WEATHER)
    view = Reference("judged", (await store.view("judged", source("weather", "wind"))).version)
    async with running_store(settings, store.folder / "other", log=LogInMemory(), applying=False) as other:
        await store.registry.plan(view)
        await other.registry.add_features(Reference("weather", 1), FIELDS, ADDED, "")
        present = (await store.registry.group(Reference("weather", 1))).group
        assert [f.name for f in present.features] == ["wind", *ADDED]
        await store.view("knows", source("weather", "sky", group_version=1))
        await other.registry.drop_view(view, "")
        async with asyncio.timeout(10):
            while await known(store, view):
                await asyncio.sleep(0.05)


async def known(store: Store, view: Reference) -> bool:
    """Whether the process still reads a view."""
    try:
        await store.registry.plan(view)
    except NotFound:
        return False
    return True


async def test_log_groups_take_no_features_by_hand(store: Store) -> None:
    await store.view("asked", request_features=(HOUR,))
    derived = FeatureGroup("log_outcomes_asked_v1", (PLACE,), (WIND,), strict_event_time=True, derived=True)
    stored = await store.registry.derived_group(derived)
    with pytest.raises(FailedPrecondition, match="reingestion"):
        await store.registry.add_features(Reference(derived.name), FIELDS, ADDED, "")
    with pytest.raises(FailedPrecondition, match="log of asked version 1"):
        await store.registry.drop_group(Reference(derived.name, 1), "")
    await store.registry.drop_view(Reference("asked", 1), "")
    assert await store.registry.drop_group(Reference(derived.name, stored.group.version), "") == 0


async def test_what_is_said_can_be_updated_and_must_fit(store: Store) -> None:
    group, _ = await store.registry.register_group(WEATHER)
    updated = await store.registry.update_group(
        LAST, about(group, deprecation="use weather_2", source="noaa"), group.etag
    )
    assert (updated.deprecation, updated.source, updated.features) == ("use weather_2", "noaa", group.features)
    same = await store.registry.update_group(LAST, about(updated), "")
    assert same.etag == updated.etag
    # A file that does not mention it is applied again.
    kept, _ = await store.registry.register_group(WEATHER)
    assert (kept.deprecation, kept.source) == ("use weather_2", "")
    with pytest.raises(InvalidValue, match="rain"):
        await store.registry.update_group(LAST, about(group, expectations=(Expectation(NotNull(), "rain"),)), "")
    await store.view("judged", source("weather", "wind"))
    view = await store.registry.update_view(Reference("judged"), ViewAbout("d", "o", {"k": "v"}, "gone"), "")
    assert (view.description, view.owner, dict(view.tags), view.deprecation) == ("d", "o", {"k": "v"}, "gone")
    for missing in (Reference("nothing"), Reference("weather", 2)):
        with pytest.raises(NotFound):
            await store.registry.update_group(missing, about(group), "")


async def test_search_knows_words_tags_owners_and_deprecation(store: Store) -> None:
    registry = store.registry
    await registry.register_group(replace(WEATHER, owner="meteo", tags={"team": "north", "tier": "1"}))
    await registry.register_group(FeatureGroup("planes", (PLACE,), (Field("seats", DataType.INT64, 0, "as Built"),)))
    old, _ = await registry.register_group(FeatureGroup("weather_old", (PLACE,), (WIND,), deprecation="use weather"))
    await store.view("windy", source("weather", "wind"), tags={"team": "south"})

    async def found(text: str = "", **options: Any) -> list[str]:
        results = await registry.search(Query(text, **options))
        return [f.feature or f.thing.name for f in results if f.kind is not FoundKind.FEATURE or f.feature]

    assert await found("built as") == ["planes", "seats"]
    assert await found("wind") == ["wind", "windy", "weather"]
    assert await found("weather", include_deprecated=True) == ["weather", "weather_old"]
    assert await found("100%") == []
    assert await found(tags={"team": ""}) == ["weather", "wind", "windy"]
    assert await found(tags={"team": "north", "tier": "1"}) == ["weather", "wind"]
    assert await found(tags={"team": "nobody"}) == []
    assert await found(owner="meteo") == ["weather", "wind"]
    assert await found("team=south") == ["windy"]
    assert old.deprecation


async def test_what_is_used_cannot_be_dropped(store: Store) -> None:
    """By a view in any version; once nobody uses it, it goes with its rows, and its version is not given out again."""
    await store.registry.register_group(WEATHER)
    await store.write("weather", [{"place": p, "event_time": T0, "wind": 1.0} for p in "ab"])
    last = await store.commits.last()
    await store.view("judged", source("weather", "wind"))
    await store.view("judged", source("weather", "wind", prefix="w_"))
    weather = Reference("weather", 1)
    rows = KeyQuery(await store.registry.group(weather), (Column.build("place", DataType.STRING, ["a", "b"]),))
    assert None not in (await store.online.lookup([rows])).found[0]
    with pytest.raises(FailedPrecondition, match="judged version 1, feature view judged version 2"):
        await store.registry.drop_group(weather, "")
    model, judged = Thing(ThingKind.MODEL, "m", 1), Thing(ThingKind.FEATURE_VIEW, "judged", 2)
    await store.lineage.declare(model, [judged])
    with pytest.raises(FailedPrecondition, match="model m version 1"):
        await store.registry.drop_view(Reference("judged", 2), "")
    await store.lineage.declare(model, [])
    for version in (1, 2):
        await store.registry.drop_view(Reference("judged", version), "")
    assert await store.registry.drop_group(weather, "") == 2
    for call in (store.registry.drop_group(weather, ""), store.registry.group(weather), store.registry.group(LAST)):
        with pytest.raises(NotFound):
            await call
    assert (await store.registry.groups(), await store.registry.views()) == ([], [])
    assert await store.registry.search(Query()) == []
    # Commits keep their numbers, without rows; the drop is one of its own, and the online store follows.
    commits = await store.commits.after(0, 10)
    assert [(c.number, c.rows) for c in commits] == [(n, 0) for n in range(1, last + 2)]
    await store.applier.applied(last + 1, 10)
    assert (await store.online.lookup([rows])).found == [[None, None]]
    again, created = await store.registry.register_group(WEATHER)
    assert (again.version, created) == (2, True)
    await store.write("weather", [{"place": "a", "event_time": T0, "wind": 5.0}])
    assert [row["wind"] for row in await store.read("weather")] == [5.0]


async def test_an_applier_that_starts_later_passes_dropped_groups_over(
    store: Store, settings: DatabaseSettings
) -> None:
    await store.registry.register_group(WEATHER)
    await store.write("weather", [{"place": "a", "event_time": T0, "wind": 1.0}])
    await store.registry.drop_group(Reference("weather", 1), "")
    await store.group("planes", [PLACE], [HOUR])
    await store.write("planes", [{"place": "a", "event_time": T0, "hour": 1}])
    last = await store.commits.last()
    async with running_store(settings, store.folder / "fresh", log=LogInMemory()) as fresh:
        await fresh.applier.applied(last, 10)
        assert await fresh.online.applied_commit() == last


@pytest.mark.parametrize("turn", range(4))
async def test_a_drop_and_a_view_never_miss_each_other(store: Store, turn: int) -> None:
    """However they come: either the view is refused, or the drop."""
    for i in range(6):
        name = f"g{turn}_{i}"
        await store.group(name, [PLACE], [WIND])
        drop = store.registry.drop_group(Reference(name, 1), "")
        view = store.view(f"v_{name}", source(name, "wind"))
        calls: list[Awaitable[object]] = [drop, view] if turn % 2 else [view, drop]
        done, failed = await outcomes(calls)
        assert len(done) == 1
        assert isinstance(failed[0], FailedPrecondition | NotFound)
        there = {group.name for group in await store.registry.groups()}
        for made in await store.registry.views():
            assert {s.group for s in made.sources} <= there


async def test_a_drop_waits_for_writers_and_later_ones_are_told(store: Store) -> None:
    """Nothing is half there: a write came before the drop, or is refused."""
    for i in range(5):
        name = f"g{i}"
        await store.group(name, [PLACE], [WIND])
        rows = ([{"place": f"p{j}", "event_time": T0, "wind": 1.0}] for j in itertools.count())
        writes = [store.write(name, next(rows)) for _ in range(4)]
        calls: list[Awaitable[object]] = [*writes[:2], store.registry.drop_group(Reference(name, 1), ""), *writes[2:]]
        _, failed = await outcomes(calls)
        assert all(isinstance(error, NotFound | Unavailable) for error in failed), failed
        with pytest.raises(NotFound):
            await store.registry.group(Reference(name))


async def test_a_long_read_is_not_waited_for(store: Store) -> None:
    """Everybody else would wait behind the change; whoever wants it is told to come again."""
    group, _ = await store.registry.register_group(WEATHER)
    async with store.database.transaction() as reading:
        stored = await store.registry.group(LAST)
        await reading.exec_driver_sql(f"SELECT * FROM rows_{stored.id}")
        hasty = Registrations(store.database, patience_s=0.05)
        with pytest.raises(Unavailable, match="long read or write"):
            await hasty.add_features(LAST, FIELDS, ADDED, "")
        with pytest.raises(Unavailable, match="long read or write"):
            await hasty.drop_group(Reference("weather", 1), "")
    assert (await store.registry.add_features(LAST, FIELDS, ADDED, group.etag)).etag != group.etag


async def test_a_read_that_had_to_wait_is_told_that_the_group_was_dropped(store: Store) -> None:
    """Not that something is wrong with the store: it knew the group when it came."""
    await store.group("weather", (PLACE,), (WIND,))
    await store.write("weather", [{PLACE.name: "JFK", "event_time": T0, WIND.name: 1.0}])
    stored = await store.registry.group(Reference("weather"))
    everything = GroupQuery(Reference("weather"))
    spine = SpineQuery(everything)
    await store.registry.drop_group(Reference("weather", 1), "")
    with pytest.raises(NotFound, match="weather version 1"):
        await store.rows.history_within(stored, [WIND.name], 1, ALL_TIMES, rows_max=10, bytes_max=1_000)
    with pytest.raises(NotFound, match="weather version 1"):
        await store.rows.size_bytes(stored)
    for opened in (
        store.rows.stream(stored, everything, 1),
        store.rows.history_stream(stored, [WIND.name], 1, ALL_TIMES),
        store.rows.spine(stored, spine, [(PLACE.name, PLACE.name)], 1),
    ):
        with pytest.raises(NotFound, match="weather version 1"):
            async with opened:
                pass


async def test_adding_again_is_harmless_and_another_default_is_not(store: Store) -> None:
    await store.registry.register_group(WEATHER)
    calls = [store.registry.add_features(LAST, FIELDS, ADDED, "") for _ in range(6)]
    done, errors = await outcomes(calls)
    assert not errors
    assert len({group.etag for group in done}) == 1
    with pytest.raises(AlreadyExists):
        await store.registry.add_features(
            LAST, [Field("snow", DataType.INT64)], {"snow": Column.build("snow", DataType.INT64, [1])}, ""
        )
