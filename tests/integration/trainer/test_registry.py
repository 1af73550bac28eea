"""Aliases, deployments and those who watch them."""

from __future__ import annotations

import asyncio

import pytest

from services.runtime.errors import LimitExceeded, NotFound, StaleEtag
from services.trainer.declarations import Declarations
from services.trainer.models import VersionRef
from services.trainer.registry import Registry
from services.trainer.watch import WATCHERS_MAX, DeploymentWatch
from tests.integration.trainer.rig import BLIND, NOW, Trainer

LATE_1, LATE_2 = VersionRef("late", 1), VersionRef("late", 2)


async def _two_versions(trainer: Trainer) -> None:
    await trainer.train("late")
    await trainer.train("late", BLIND)


async def test_an_alias_names_one_version_at_a_time(trainer: Trainer) -> None:
    await _two_versions(trainer)
    await trainer.registry.set_alias(LATE_1, "nightly")
    moved = await trainer.registry.set_alias(LATE_2, "nightly")
    assert moved.aliases == ("nightly",)
    assert (await trainer.registry.version(LATE_1)).aliases == ()
    assert (await trainer.registry.version(VersionRef("late"), "nightly")).ref == LATE_2
    with pytest.raises(NotFound):
        await trainer.registry.version(VersionRef("late"), "weekly")
    with pytest.raises(NotFound):
        await trainer.registry.set_alias(VersionRef("late", 9), "nightly")


async def test_a_deployment_moves_with_its_etag_and_takes_the_alias_champion_along(trainer: Trainer) -> None:
    await _two_versions(trainer)
    registry = trainer.registry
    created = await registry.set_deployment("delays", LATE_1)
    assert created.version.aliases == ("champion",)
    assert created.updated_at == NOW
    moved = await registry.set_deployment("delays", VersionRef("late"), created.etag)
    assert moved.version.ref == LATE_2
    assert moved.etag != created.etag
    assert (await registry.version(LATE_1)).aliases == ()
    with pytest.raises(StaleEtag):
        await registry.set_deployment("delays", LATE_1, created.etag)
    assert (await registry.deployment("delays")).etag == moved.etag


async def test_setting_a_deployment_to_what_it_is_changes_nothing(trainer: Trainer) -> None:
    await _two_versions(trainer)
    first = await trainer.registry.set_deployment("delays", LATE_1)
    assert (await trainer.registry.set_deployment("delays", LATE_1)).etag == first.etag
    assert (await trainer.registry.set_deployment("delays", LATE_1, first.etag)).etag == first.etag


async def test_an_etag_of_a_deployment_that_does_not_exist_is_stale(trainer: Trainer) -> None:
    await trainer.train("late")
    with pytest.raises(StaleEtag):
        await trainer.registry.set_deployment("delays", LATE_1, "some")
    with pytest.raises(NotFound):
        await trainer.registry.set_deployment("delays", VersionRef("nothing"))
    with pytest.raises(NotFound):
        await trainer.registry.deployment("delays")


async def test_of_many_changes_with_the_same_etag_one_wins(trainer: Trainer) -> None:
    await _two_versions(trainer)
    before = await trainer.registry.set_deployment("delays", LATE_1)
    changes = [trainer.registry.set_deployment("delays", LATE_2, before.etag) for _ in range(5)]
    results = await asyncio.gather(*changes, return_exceptions=True)
    assert sum(not isinstance(r, BaseException) for r in results) == 1
    assert all(isinstance(r, StaleEtag) for r in results if isinstance(r, BaseException))


async def test_a_watcher_sees_everything_at_once_and_every_change(trainer: Trainer) -> None:
    await _two_versions(trainer)
    watch = DeploymentWatch(trainer.registry, asyncio.Event(), reread_s=60)
    states = watch.follow()
    async with asyncio.timeout(5):
        assert await anext(states) == []
        await trainer.registry.set_deployment("delays", LATE_1)
        assert [d.version.ref for d in await anext(states)] == [LATE_1]
        await trainer.registry.set_deployment("delays", LATE_2)
        await trainer.registry.set_deployment("arrivals", LATE_1)
        final = {d.name: d.version.ref for d in await anext(states)}
    assert final == {"arrivals": LATE_1, "delays": LATE_2}
    await states.aclose()  # type: ignore[attr-defined]  # an async generator


async def test_a_change_by_another_replica_is_seen_at_the_next_reading(trainer: Trainer) -> None:
    await trainer.train("late")
    states = DeploymentWatch(trainer.registry, asyncio.Event(), reread_s=0.05).follow()
    async with asyncio.timeout(5):
        assert await anext(states) == []
        other = Registry(trainer.database, lambda: NOW, Declarations(trainer.store), trainer.store.view)
        await other.set_deployment("delays", LATE_1)
        assert [d.name for d in await anext(states)] == ["delays"]
    await states.aclose()  # type: ignore[attr-defined]  # an async generator


async def test_watchers_end_when_the_server_stops(trainer: Trainer) -> None:
    stopping = asyncio.Event()
    states = DeploymentWatch(trainer.registry, stopping, reread_s=60).follow()
    await anext(states)
    stopping.set()
    async with asyncio.timeout(5):
        with pytest.raises(StopAsyncIteration):
            await anext(states)


async def test_watchers_are_bounded(trainer: Trainer) -> None:
    watch = DeploymentWatch(trainer.registry, asyncio.Event())
    watchers = [watch.follow() for _ in range(WATCHERS_MAX)]
    for states in watchers:
        await anext(states)
    with pytest.raises(LimitExceeded):
        await anext(watch.follow())
    for states in watchers:
        await states.aclose()  # type: ignore[attr-defined]  # an async generator
    await anext(again := watch.follow())
    await again.aclose()  # type: ignore[attr-defined]  # an async generator
