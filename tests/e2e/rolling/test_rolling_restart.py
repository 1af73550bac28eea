"""Predictors, feature stores and the gateway restart one after the other while callers ask: no call fails.

The long run of the same is `tests/chaos/test_rolling_restart.py`.
"""

from __future__ import annotations

import pytest

from deploy.local import LocalStack
from tests.e2e.rolling.restarting import restarted_under_load

RATE = 60
# The other feature store is left out: it takes the longest, and shows what the first one shows.
NAMES = ("feature_store-0", "predictor-0", "predictor-1", "gateway")


@pytest.mark.timeout(180)
async def test_no_call_fails_while_processes_are_replaced(stack: LocalStack) -> None:
    """Each answer is accounted for once."""
    await restarted_under_load(stack, RATE, 0, NAMES)
