"""For a minute, at 300 calls a second through mutual TLS, processes restart one after the other: no call fails."""

from __future__ import annotations

import pytest

from tests.e2e.rolling.restarting import restarted_under_load, several_processes

RATE = 300
SECONDS = 60
NAMES = ("feature_store-0", "feature_store-1", "predictor-0", "predictor-1", "gateway")


@pytest.mark.timeout(600)
async def test_no_call_fails_for_a_minute_of_restarts() -> None:
    """Each answer is accounted for once."""
    with several_processes() as stack:
        await restarted_under_load(stack, RATE, SECONDS, NAMES)
