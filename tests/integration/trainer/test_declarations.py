"""What the trainer tells the feature store about models and deployments, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from services.runtime.errors import FailedPrecondition, NotFound, Unavailable
from services.trainer import declarations
from services.trainer.declarations import declare_again
from services.trainer.feature_store import Thing, ThingKind
from services.trainer.models import DatasetSelection, Judgement, VersionRef
from tests.integration.trainer.rig import BLIND, NOW, Trainer, flights

LATE_1, LATE_2 = (Thing(ThingKind.MODEL, "late", version) for version in (1, 2))
DELAYS = Thing(ThingKind.DEPLOYMENT, "delays")
VIEW = Thing(ThingKind.FEATURE_VIEW, "delays", 1)
JAN, FEB = (Thing(ThingKind.TRAINING_DATASET, name) for name in ("jan", "feb"))


async def test_a_version_is_declared_with_its_view_and_datasets(trainer: Trainer) -> None:
    await trainer.train("late")
    assert trainer.store.uses == {LATE_1: {VIEW, JAN}}
    await trainer.registry.set_deployment("delays", VersionRef("late", 1))
    assert trainer.store.uses[DELAYS] == {LATE_1}


async def test_nothing_comes_into_being_while_the_feature_store_is_away(trainer: Trainer) -> None:
    await trainer.train("late")
    await trainer.registry.set_deployment("delays", VersionRef("late", 1))
    trainer.store.away = True
    with pytest.raises(Unavailable):
        await trainer.train("late", BLIND)
    assert [v.ref.version for v in await trainer.registry.versions("late")] == [1]
    with pytest.raises(Unavailable):
        await trainer.registry.set_deployment("arrivals", VersionRef("late", 1))
    assert [d.name for d in await trainer.registry.deployments()] == ["delays"]
    # What changes nothing needs nobody.
    await trainer.registry.set_deployment("delays", VersionRef("late", 1))
    trainer.store.away = False
    assert (await trainer.train("late", BLIND)).ref.version == 2


async def test_a_dataset_that_was_deleted_meanwhile_stops_the_registration(trainer: Trainer) -> None:
    trainer.store.lost.add("jan")
    with pytest.raises(NotFound, match="jan"):
        await trainer.train("late")
    assert await trainer.registry.versions() == []


async def test_a_promotion_declares_the_challenger(trainer: Trainer) -> None:
    await trainer.train("late", BLIND)
    await trainer.train("late")
    deployment = await trainer.registry.set_deployment("delays", VersionRef("late", 1))
    judgement = Judgement("delays", VersionRef("late", 2), DatasetSelection("jan", "test"), "log_loss", 0.0, NOW)
    trainer.store.away = True
    with pytest.raises(Unavailable):
        await trainer.flywheel.judge(judgement)
    assert (await trainer.registry.deployment("delays")).etag == deployment.etag
    assert await trainer.registry.decision(judgement) is None
    trainer.store.away = False
    assert (await trainer.flywheel.judge(judgement)).promoted
    assert trainer.store.uses[DELAYS] == {LATE_2}


async def test_everything_is_declared_again_once_the_feature_store_answers(trainer: Trainer) -> None:
    """As after a restore: without what it has lost for good."""
    trainer.store.add("feb", flights(2))
    await trainer.train("late")
    await trainer.train("late", BLIND, "feb")
    await trainer.registry.set_deployment("delays", VersionRef("late", 2))
    trainer.store.uses.clear()
    trainer.store.away = True
    calls = 0

    def counted() -> Coroutine[Any, Any, int]:
        nonlocal calls
        calls += 1
        if calls == 2:
            trainer.store.away = False
            trainer.store.lost.add("jan")
        return trainer.registry.declare_again()

    async with asyncio.timeout(10):
        await declare_again(counted)
    assert calls == 2
    assert trainer.store.uses == {LATE_1: {VIEW}, LATE_2: {VIEW, FEB}, DELAYS: {LATE_2}}


async def test_declaring_again_outlives_an_outage_of_a_night(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declarations, "BACKOFF_S_MAX", 0.0)
    calls = 0

    async def declare() -> int:
        nonlocal calls
        calls += 1
        if calls <= 1_100:
            raise Unavailable("the feature store does not answer")
        return 0

    await declare_again(declare)
    assert calls == 1_101


async def test_a_model_of_which_nothing_is_left_cannot_be_deployed(trainer: Trainer) -> None:
    await trainer.train("late")
    trainer.store.lost |= {"jan", "delays"}
    with pytest.raises(FailedPrecondition, match="nothing of what late version 1"):
        await trainer.registry.set_deployment("delays", VersionRef("late", 1))
    assert await trainer.registry.declare_again() == 0
