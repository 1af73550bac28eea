"""A feature store that has just fallen silent: nobody waits for it longer than his own time allows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from tests.wire.predictor.careful import ask_carefully, deploy_careful, shown
from tests.wire.predictor.rig import Replica, Rig, ask, until
from tests.wire.predictor.test_degradation import GONE, back, silent


@pytest_asyncio.fixture
async def careful(rig: Rig) -> AsyncIterator[Replica]:
    await deploy_careful(rig)
    async with rig.predictor() as running:
        await until(lambda: running.deployments.ready)
        await running.stub.Predict(ask_carefully("AA"))
        yield running


async def test_whoever_comes_behind_a_batch_that_waits_is_answered_in_time(rig: Rig, careful: Replica) -> None:
    """The batch ahead may wait for two seconds; those behind have less, and policies that answer without the store."""
    await silent(rig)
    ahead = asyncio.ensure_future(careful.stub.Predict(ask_carefully("AA")))
    await until(lambda: rig.features.waiting == 1)
    behind = [careful.stub.Predict(ask_carefully("AA"), timeout=1.8) for _ in range(5)]
    found = await asyncio.gather(*behind)
    await back(rig)
    await ahead
    assert [shown(answer) for answer in found] == [GONE] * 5


async def test_one_look_up_that_gets_no_answer_holds_nobody_else_up(rig: Rig) -> None:
    """Also in a view that needs the feature store, which answers others."""
    async with rig.predictor(late_s=0.05) as replica:
        await until(lambda: replica.deployments.ready)
        await silent(rig)
        held = rig.features.hold
        assert held is not None
        ahead = asyncio.ensure_future(replica.stub.Predict(ask()))
        await until(lambda: rig.features.waiting == 1)
        rig.features.hold = None
        await asyncio.gather(*(replica.stub.Predict(ask()) for _ in range(5)))
        assert not ahead.done()
        held.set()
        await ahead
        await until(lambda: replica.predictor.idle)
