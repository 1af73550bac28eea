"""Who uses what, on a real database: held while it is declared, found in both directions, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from foresight.values import DataType, FeatureGroup, Field
from services.feature_store.groups import Reference
from services.feature_store.postgres import lineage
from services.feature_store.postgres.lineage import LineageTable, record_uses
from services.feature_store.registry.lineage import Thing, ThingKind
from services.runtime.errors import FailedPrecondition, NotFound
from tests.integration.feature_store.rig import T0, Store, source

PLACE, WIND = Field("place", DataType.STRING), Field("wind", DataType.FLOAT64)
HOUR = Field("hour", DataType.INT64)


def model(name: str, version: int = 1) -> Thing:
    return Thing(ThingKind.MODEL, name, version)


def view(name: str, version: int = 1) -> Thing:
    return Thing(ThingKind.FEATURE_VIEW, name, version)


def deployment(name: str) -> Thing:
    return Thing(ThingKind.DEPLOYMENT, name)


async def test_a_declaration_and_a_drop_never_miss_each_other(store: Store) -> None:
    """Either the view stays for its model, or the model is told that it is gone."""
    for i in range(12):
        name = f"v{i}"
        await store.view(name, request_features=(HOUR,))
        drop: Awaitable[object] = store.registry.drop_view(Reference(name, 1), "")
        declare: Awaitable[object] = store.lineage.declare(model(f"m{i}"), [view(name)])
        calls = [drop, declare] if i % 2 else [declare, drop]
        done = await asyncio.gather(*calls, return_exceptions=True)
        failed = [error for error in done if isinstance(error, BaseException)]
        assert len(failed) == 1
        assert isinstance(failed[0], NotFound | FailedPrecondition)
        if isinstance(failed[0], FailedPrecondition):
            assert (await store.lineage.of(model(f"m{i}"))).things == (model(f"m{i}"), view(name))
        else:
            with pytest.raises(NotFound):
                await store.lineage.of(model(f"m{i}"))


async def test_many_declarations_of_one_thing_leave_one_of_them(store: Store) -> None:
    for i in range(6):
        await store.view(f"v{i}", request_features=(HOUR,))
    await asyncio.gather(*(store.lineage.declare(model("m"), [view(f"v{i}"), view("v0")]) for i in range(1, 6)))
    graph = await store.lineage.of(model("m"))
    assert len(graph.things) == 3
    assert view("v0") in graph.things
    served = [store.lineage.declare(deployment(f"d{i}"), [model("m")]) for i in range(6)]
    again = [store.lineage.declare(model("m"), [view("v0")]) for _ in range(6)]
    await asyncio.gather(*served, *again)
    assert {thing.name for thing in await table(store).users_of(model("m"))} == {f"d{i}" for i in range(6)}


async def test_all_users_are_found_through_others(store: Store) -> None:
    """As a report on a dataset needs them: the models trained on it, and the deployments that serve those."""
    await store.view("judged", request_features=(HOUR,))
    dataset, other = (Thing(ThingKind.TRAINING_DATASET, f"dataset-{i}") for i in range(2))
    for thing in (dataset, other):
        async with store.database.transaction() as connection:
            await connection.exec_driver_sql(
                "INSERT INTO training_datasets (id, name, view_name, view_version, created_at, manifest, "
                "content_sha256, spine_sha256, stored, stored_bytes) "
                f"VALUES ('{thing.name}', 'january', 'judged', 1, now(), '{{}}', '', '', false, 0)"
            )
            await record_uses(connection, thing, [view("judged")])
    await store.lineage.declare(model("m", 1), [view("judged"), dataset])
    await store.lineage.declare(model("m", 2), [view("judged"), other])
    await store.lineage.declare(deployment("d"), [model("m", 1)])
    assert await table(store).all_users_of([dataset]) == [model("m", 1), deployment("d")]
    assert await table(store).all_users_of([dataset, other]) == [model("m", 1), model("m", 2), deployment("d")]
    assert await table(store).all_users_of([]) == []
    graph = await store.lineage.of(Thing(ThingKind.MODEL, "m"))
    assert graph.things == (model("m", 2), view("judged"), other)
    assert graph.labels == {other: "january"}


async def test_what_a_transaction_held_and_did_not_make_is_not_recorded(store: Store) -> None:
    await store.view("judged", request_features=(HOUR,))
    with pytest.raises(NotFound, match="v9"):
        async with store.database.transaction() as connection:
            await record_uses(connection, model("m"), [view("judged"), view("v9")])
    assert await table(store).users_of(view("judged")) == []


async def test_rows_on_a_writers_word_are_marked_also_without_a_source(store: Store) -> None:
    await store.group("weather", [PLACE], [WIND], source="table:weather")
    await store.group("planes", [PLACE], [WIND])
    weather, planes = (Thing(ThingKind.FEATURE_GROUP, name, 1) for name in ("weather", "planes"))
    await store.write("weather", [{"place": "a", "event_time": T0, "wind": 1.0}])
    await store.write("planes", [{"place": "a", "event_time": T0, "wind": 1.0}])
    [use] = (await store.lineage.of(weather)).uses
    assert (use.used.name, use.known_at_asserted) == ("table:weather", False)
    assert (await store.lineage.of(planes)).uses == ()
    for group in ("weather", "planes"):
        await store.write(group, [{"place": "b", "event_time": T0, "wind": 1.0, "known_at": T0}])
    [use] = (await store.lineage.of(weather)).uses
    assert (use.used.name, use.known_at_asserted) == ("table:weather", True)
    graph = await store.lineage.of(planes)
    assert [(use.used.name, use.known_at_asserted) for use in graph.uses] == [("", True)]
    assert graph.labels == {graph.uses[0].used: "a writer that named no source"}


async def test_a_source_is_known_by_the_groups_that_name_it(store: Store) -> None:
    """And no longer when they are gone."""
    for name in ("weather", "planes"):
        await store.registry.register_group(FeatureGroup(name, (PLACE,), (WIND,), source="airport"))
    await store.view("judged", source("weather", "wind"))
    airport = Thing(ThingKind.SOURCE, "airport")
    graph = await store.lineage.of(airport)
    assert {thing.name for thing in graph.things} == {"airport", "weather", "planes", "judged"}
    near = await store.lineage.of(airport, 1)
    assert {thing.name for thing in near.things} == {"airport", "weather", "planes"}
    await store.registry.drop_view(Reference("judged", 1), "")
    for name in ("weather", "planes"):
        await store.registry.drop_group(Reference(name, 1), "")
    with pytest.raises(NotFound):
        await store.lineage.of(airport)


async def test_an_answer_is_bounded(store: Store) -> None:
    """More users than an answer holds: it says so, and is not larger."""
    await store.view("judged", request_features=(HOUR,))
    async with store.database.transaction() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO uses (user_kind, user_name, user_version, used_kind, used_name, used_version) "
            "SELECT 5, 'm', n, 3, 'judged', 1 FROM generate_series(1, 10050) AS n"
        )
    graph = await store.lineage.of(view("judged"))
    assert (len(graph.things), len(graph.uses), graph.truncated) == (10_000, 9_999, True)
    with pytest.raises(FailedPrecondition, match="and many more"):
        await store.registry.drop_view(Reference("judged", 1), "")


async def test_an_answer_that_is_too_large_in_both_directions_together_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.view("judged", request_features=(HOUR,))
    await store.view("other", request_features=(HOUR,))
    await store.lineage.declare(model("m"), [view("judged"), view("other")])
    for i in range(2):
        await store.lineage.declare(deployment(f"d{i}"), [model("m")])
    for most, truncated in ((5, False), (4, True)):
        monkeypatch.setattr(lineage, "THINGS_MAX", most)
        graph = await store.lineage.of(model("m"))
        assert (len(graph.things), graph.truncated) == (most, truncated)


async def test_users_of_more_things_than_an_answer_holds_are_found(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when an erasure concerns very many datasets."""
    monkeypatch.setattr(lineage, "THINGS_MAX", 4)
    await store.view("judged", request_features=(HOUR,))
    models = [model("m", n) for n in range(1, 7)]
    for one in models:
        await store.lineage.declare(one, [view("judged")])
    await store.lineage.declare(model("stacked"), [*models])
    await store.lineage.declare(deployment("d"), [model("stacked")])
    assert await table(store).all_users_of(models) == [model("stacked"), deployment("d")]


def table(store: Store) -> LineageTable:
    """Where uses are kept."""
    return LineageTable(store.database)
