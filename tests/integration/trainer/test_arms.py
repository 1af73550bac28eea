"""Deployments with several arms: what may stand side by side, what is kept and declared, and what a promotion makes."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from foresight.scoring import ModelTask
from foresight.values import Column, DataType, Field, InvalidValue
from services.runtime.errors import FailedPrecondition, LimitExceeded, NotFound, StaleEtag
from services.trainer import registry as registry_module
from services.trainer.arms import ARMS_MAX, WantedArm, check_alike
from services.trainer.feature_store import Thing, ThingKind
from services.trainer.models import Arm, DatasetSelection, Judgement, VersionRef
from services.trainer.watch import DeploymentWatch
from tests.integration.trainer.rig import BLIND, NOW, VIEW, Trainer, flights

LATE_1, LATE_2 = VersionRef("late", 1), VersionRef("late", 2)
CANARY = (WantedArm("champion", LATE_1, 90), WantedArm("challenger", LATE_2, 10))
OTHER_VIEW = VersionRef("other", 1)


async def _two_versions(trainer: Trainer) -> None:
    await trainer.train("late", BLIND)
    await trainer.train("late")


async def test_arms_are_kept_in_order_and_the_first_stands_for_the_deployment(trainer: Trainer) -> None:
    await _two_versions(trainer)
    arms = (WantedArm("challenger", VersionRef("late"), 10), *CANARY[:1], WantedArm("next", LATE_2, 0, shadow=True))
    made = await trainer.registry.set_deployment("delays", arms)
    assert [(a.name, a.version.ref, a.weight, a.shadow) for a in made.arms] == [
        ("challenger", LATE_2, 10, False),
        ("champion", LATE_1, 90, False),
        ("next", LATE_2, 0, True),
    ]
    assert made.version.ref == LATE_2
    assert made.version.aliases == ("champion",)
    assert made.salt == "delays"
    (listed,) = await trainer.registry.deployments()
    assert [a.name for a in listed.arms] == ["challenger", "champion", "next"]


async def test_a_version_alone_is_one_arm(trainer: Trainer) -> None:
    await _two_versions(trainer)
    await trainer.registry.set_deployment("delays", CANARY, salt="spring")
    made = await trainer.registry.set_deployment("delays", LATE_2)
    assert [(a.name, a.version.ref, a.weight, a.shadow) for a in made.arms] == [("primary", LATE_2, 1, False)]
    assert made.salt == "spring"


async def test_the_etag_moves_with_every_change_of_arms_and_with_nothing_else(trainer: Trainer) -> None:
    await _two_versions(trainer)
    registry = trainer.registry
    etags = [(await registry.set_deployment("delays", CANARY)).etag]
    assert (await registry.set_deployment("delays", CANARY, etags[0])).etag == etags[0]
    for arms, salt in (
        ((CANARY[0], dataclasses.replace(CANARY[1], weight=20)), ""),
        ((CANARY[0], dataclasses.replace(CANARY[1], weight=20, name="other")), ""),
        (CANARY[:1], ""),
        (CANARY, ""),
        (tuple(reversed(CANARY)), ""),
        (tuple(reversed(CANARY)), "spring"),
    ):
        etags.append((await registry.set_deployment("delays", arms, salt=salt)).etag)
    assert len(set(etags)) == len(etags)
    with pytest.raises(StaleEtag):
        await registry.set_deployment("delays", CANARY, etags[0])


async def test_a_watcher_sees_a_change_of_weights(trainer: Trainer) -> None:
    await _two_versions(trainer)
    states = DeploymentWatch(trainer.registry, asyncio.Event(), reread_s=60).follow()
    async with asyncio.timeout(5):
        await anext(states)
        await trainer.registry.set_deployment("delays", CANARY)
        await anext(states)
        await trainer.registry.set_deployment("delays", (CANARY[0], dataclasses.replace(CANARY[1], weight=20)))
        (seen,) = await anext(states)
    assert [a.weight for a in seen.arms] == [90, 20]
    await states.aclose()  # type: ignore[attr-defined]  # an async generator


async def test_every_version_of_a_deployment_is_declared(trainer: Trainer) -> None:
    await _two_versions(trainer)
    used = {Thing(ThingKind.MODEL, "late", 1), Thing(ThingKind.MODEL, "late", 2)}
    await trainer.registry.set_deployment("delays", CANARY)
    delays = Thing(ThingKind.DEPLOYMENT, "delays")
    assert trainer.store.uses[delays] == used
    trainer.store.uses.clear()
    await trainer.registry.declare_again()
    assert trainer.store.uses[delays] == used


async def test_a_version_that_does_not_exist_is_no_arm(trainer: Trainer) -> None:
    await trainer.train("late")
    with pytest.raises(NotFound):
        await trainer.registry.set_deployment("delays", (CANARY[0], WantedArm("next", VersionRef("late", 9), 1)))
    assert await trainer.registry.deployments() == []


@pytest.mark.parametrize(
    ("signature", "what"),
    [
        ({"task": ModelTask.MULTICLASS_CLASSIFICATION}, "a task"),
        ({"label": Field("lost", DataType.BOOL)}, "a label"),
        ({"label": Field("late", DataType.INT64)}, "a label"),
        ({"classes": Column.build("late", DataType.BOOL, [True, False])}, "classes"),
        ({"inputs": ()}, ""),
    ],
)
async def test_versions_that_answer_otherwise_are_refused(
    trainer: Trainer, signature: dict[str, Any], what: str
) -> None:
    version = await trainer.train("late")
    other = dataclasses.replace(version, signature=dataclasses.replace(version.signature, **signature))
    checking = check_alike([Arm("champion", version, 1), Arm("next", other, 1)], trainer.store.view)
    if not what:
        await checking
        return
    with pytest.raises(FailedPrecondition, match=f"{what} other than late version 1") as refused:
        await checking
    assert refused.value.metadata["arm"] == "next"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"entity_keys": (Field("tail", DataType.STRING),)}, "entity keys"),
        ({"entity_keys": (Field("origin", DataType.INT64),)}, "entity keys"),
        ({"request_features": VIEW.request_features[:1]}, "request features"),
        ({"request_features": tuple(reversed(VIEW.request_features))}, ""),
    ],
)
async def test_views_that_are_asked_otherwise_are_refused(trainer: Trainer, changes: dict[str, Any], what: str) -> None:
    trainer.store.registered[OTHER_VIEW] = dataclasses.replace(VIEW, name="other", **changes)
    trainer.store.add("other", flights(1), OTHER_VIEW)
    await trainer.train("late")
    await trainer.train("late", BLIND, "other")
    if not what:
        assert len((await trainer.registry.set_deployment("delays", CANARY)).arms) == 2
        return
    with pytest.raises(FailedPrecondition, match=what):
        await trainer.registry.set_deployment("delays", CANARY)


async def test_a_promoted_challenger_answers_alone(trainer: Trainer) -> None:
    await _two_versions(trainer)
    trainer.store.add("feb", flights(2))
    before = await trainer.registry.set_deployment("delays", (*CANARY, WantedArm("next", LATE_1, 0, shadow=True)))
    worse = Judgement("delays", LATE_2, DatasetSelection("feb"), "log_loss", 10.0, NOW)
    assert not (await trainer.flywheel.judge(worse)).promoted
    assert (await trainer.registry.deployment("delays")).etag == before.etag
    better = Judgement("delays", LATE_2, DatasetSelection("feb"), "roc_auc", 0.0, NOW)
    decision = await trainer.flywheel.judge(better)
    assert (decision.promoted, decision.champion) == (True, LATE_1)
    after = await trainer.registry.deployment("delays")
    assert [(a.name, a.version.ref) for a in after.arms] == [("primary", LATE_2)]
    assert after.salt == before.salt
    assert trainer.store.uses[Thing(ThingKind.DEPLOYMENT, "delays")] == {Thing(ThingKind.MODEL, "late", 2)}


async def test_arms_that_never_go_together_are_refused(trainer: Trainer) -> None:
    await trainer.train("late")
    arm = WantedArm("a", LATE_1, 1)
    shadows = [WantedArm(f"s{i}", LATE_1, 0, shadow=True) for i in range(5)]
    for arms in (
        [],
        [WantedArm(f"a{i}", LATE_1, 1) for i in range(ARMS_MAX + 1)],
        [arm, arm],
        [arm, *shadows],
        [shadows[0], arm],
        [WantedArm("none", LATE_1, 0), arm],
    ):
        with pytest.raises(InvalidValue):
            await trainer.registry.set_deployment("delays", arms)
    assert await trainer.registry.deployments() == []


async def test_arms_are_bounded_over_all_deployments(trainer: Trainer) -> None:
    await trainer.train("late")
    arms = [WantedArm(f"a{i}", LATE_1, 1) for i in range(ARMS_MAX)]
    deployments = registry_module.ARMS_IN_ALL_MAX // ARMS_MAX
    for i in range(deployments):
        await trainer.registry.set_deployment(f"d{i}", arms)
    with pytest.raises(LimitExceeded):
        await trainer.registry.set_deployment("one_more", LATE_1)
    await trainer.registry.set_deployment("d0", LATE_1)
    assert len((await trainer.registry.set_deployment("one_more", LATE_1)).arms) == 1
