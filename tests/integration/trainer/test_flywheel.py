"""Challengers are promoted when they are better, and only then; a question is answered once."""

from __future__ import annotations

import dataclasses

import pytest

from services.runtime.errors import FailedPrecondition, NotFound, StaleEtag
from services.runtime.ids import new_id
from services.trainer.models import DatasetSelection, Decision, Judgement, VersionRef
from tests.integration.trainer.rig import BLIND, NOW, Trainer, flights
from tests.unit.trainer.specifications import RIDGE

LATE_1, LATE_2 = VersionRef("late", 1), VersionRef("late", 2)
QUESTION = Judgement("delays", LATE_2, DatasetSelection("feb"), "log_loss", 0.0, NOW)


async def _prepare(trainer: Trainer, *, better: bool) -> None:
    """Version 1 serves; version 2 is better than it, or worse."""
    trainer.store.add("feb", flights(2))
    for estimator in ("blind", "trees") if better else ("trees", "blind"):
        if estimator == "blind":
            await trainer.train("late", BLIND)
        else:
            await trainer.train("late")
    await trainer.registry.set_deployment("delays", LATE_1)


async def test_a_better_challenger_is_promoted(trainer: Trainer) -> None:
    await _prepare(trainer, better=True)
    decision = await trainer.flywheel.judge(QUESTION, [LATE_1])
    assert decision.promoted
    assert decision.champion == LATE_1
    assert [m.model for m in decision.models] == [LATE_1, LATE_2, LATE_1]
    assert decision.models[1].metrics["log_loss"] < decision.models[0].metrics["log_loss"]
    assert decision.rows == 400 - flights(2)["late"].null_count
    deployment = await trainer.registry.deployment("delays")
    assert deployment.version.ref == LATE_2
    assert deployment.version.aliases == ("challenger", "champion")
    assert trainer.metrics.registry.get_sample_value("foresight_trainer_promotions_total") == 1


async def test_a_worse_challenger_is_not_promoted(trainer: Trainer) -> None:
    await _prepare(trainer, better=False)
    before = await trainer.registry.deployment("delays")
    decision = await trainer.flywheel.judge(QUESTION)
    assert not decision.promoted
    after = await trainer.registry.deployment("delays")
    assert (after.etag, after.version.ref) == (before.etag, LATE_1)
    assert (await trainer.registry.version(LATE_2)).aliases == ("challenger",)


async def test_a_margin_that_is_not_reached_keeps_the_champion(trainer: Trainer) -> None:
    await _prepare(trainer, better=True)
    assert not (await trainer.flywheel.judge(dataclasses.replace(QUESTION, margin=10.0))).promoted


async def test_the_same_question_has_the_same_answer(trainer: Trainer) -> None:
    await _prepare(trainer, better=True)
    first = await trainer.flywheel.judge(QUESTION)
    again = await trainer.flywheel.judge(QUESTION)
    assert again == first
    assert await trainer.registry.decisions("delays") == [first]
    assert await trainer.registry.decisions("others") == []
    with pytest.raises(FailedPrecondition, match="another margin"):
        await trainer.flywheel.judge(dataclasses.replace(QUESTION, margin=0.5))


async def test_a_decision_on_a_deployment_that_changed_meanwhile_is_stale(trainer: Trainer) -> None:
    await _prepare(trainer, better=True)
    before = await trainer.registry.deployment("delays")
    await trainer.registry.set_deployment("delays", LATE_2)
    decision = Decision(new_id(), QUESTION, LATE_1, True, (), 1, NOW)
    with pytest.raises(StaleEtag):
        await trainer.registry.decide(decision, before.etag)
    assert await trainer.registry.decisions() == []


async def test_a_challenger_of_another_view_is_refused(trainer: Trainer) -> None:
    await _prepare(trainer, better=True)
    trainer.store.add("other", flights(3), VersionRef("delays", 2))
    other = await trainer.train("other", BLIND, dataset="other")
    with pytest.raises(FailedPrecondition, match="challenger is of delays version 2"):
        await trainer.flywheel.judge(dataclasses.replace(QUESTION, challenger=other.ref))


async def test_no_rows_undefined_metrics_and_unknown_things_are_refused(trainer: Trainer) -> None:
    await _prepare(trainer, better=True)
    trainer.store.add("none", flights(2).slice(0, 0))
    with pytest.raises(FailedPrecondition, match="no rows"):
        await trainer.flywheel.judge(dataclasses.replace(QUESTION, dataset=DatasetSelection("none")))
    with pytest.raises(FailedPrecondition, match="rmse is not defined"):
        await trainer.flywheel.judge(dataclasses.replace(QUESTION, metric="rmse"))
    with pytest.raises(NotFound):
        await trainer.flywheel.judge(dataclasses.replace(QUESTION, deployment="nowhere"))
    with pytest.raises(NotFound):
        await trainer.flywheel.judge(QUESTION, [VersionRef("late", 99)])
    assert (await trainer.registry.deployment("delays")).version.ref == LATE_1


async def test_a_regressor_cannot_be_trained_on_a_yes_or_no_label(trainer: Trainer) -> None:
    with pytest.raises(FailedPrecondition, match="regressor"):
        await trainer.train("late", RIDGE)
