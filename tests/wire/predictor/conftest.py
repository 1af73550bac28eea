"""A rig for each test: upstreams on Unix sockets, with a flights model deployed and rows to serve."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.wire.predictor.rig import Replica, Rig, running_rig, until


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running_rig() as running:
        await running.deploy_flights()
        running.feed()
        yield running


@pytest_asyncio.fixture
async def replica(rig: Rig) -> AsyncIterator[Replica]:
    """A predictor that serves `late_flights`."""
    async with rig.predictor() as running:
        await until(lambda: running.deployments.ready)
        yield running
