"""Work whose caller has gone before a thread was free for it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc

from tests.wire.predictor.rig import Replica, Rig, ask, until

ROWS = 100


def scored(replica: Replica) -> float:
    """Runs of the model so far."""
    name, labels = "foresight_predictor_stage_duration_seconds_count", {"stage": "score"}
    return replica.metrics.registry.get_sample_value(name, labels) or 0.0


async def test_what_nobody_waits_for_any_more_is_not_scored(rig: Rig, replica: Replica) -> None:
    """Threads are few: work of callers who ran out of time must not keep them from those who still wait."""
    go_on = threading.Event()
    # The loop shuts it down.
    threads = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    threads.submit(go_on.wait, 20)
    try:
        calls = [replica.stub.Predict(ask(ROWS), timeout=0.3) for _ in range(5)]
        for call in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(call, grpc.aio.AioRpcError)
        await until(lambda: replica.predictor.admitted_rows == 0)
    finally:
        go_on.set()
    await replica.stub.Predict(ask(ROWS))
    assert scored(replica) == 1
    await until(lambda: replica.predictor.idle)
