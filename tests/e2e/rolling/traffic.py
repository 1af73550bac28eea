"""Callers who ask at a steady rate through mutual TLS while processes behind them come and go.

They ask as applications do: one HTTP/2 connection each, a deadline per call. What may be repeated is what a client
repeats by gRPC's ordinary policy: UNAVAILABLE, when a connection is lost, and CANCELLED, by which a predictor with too
much to do drops what nobody has looked at. Every repetition that reached the gateway is in its access log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from deploy.local import LocalStack
from examples.first_steps.service import ASKED_AT
from foresight.client.connection import Target, options_for
from foresight.client.rows import encode_rows
from foresight.predictor.v1 import prediction_pb2, prediction_pb2_grpc
from foresight.wire import encode_instant

CALLERS = 4
DEADLINE_S = 30.0
RETRY = {
    "methodConfig": [
        {
            "name": [{"service": "foresight.predictor.v1.PredictionService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ]
}


class Traffic:
    """Open-loop load: `rate` calls a second, whether or not the earlier ones were answered."""

    def __init__(self, stack: LocalStack, rate: float) -> None:
        self._stubs = [prediction_pb2_grpc.PredictionServiceStub(channel) for channel in _channels(stack)]
        self._rate = rate
        self._stopping = asyncio.Event()
        self.ids: list[str] = []
        self.asked = 0
        self.failures: Counter[tuple[str, str]] = Counter()

    async def run(self) -> None:
        """Asks until `stop`, and returns when every call has ended."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.TaskGroup() as calls:
            while not self._stopping.is_set():
                due = int((loop.time() - started) * self._rate)
                for _ in range(due - self.asked):
                    calls.create_task(self._ask(self.asked))
                    self.asked += 1
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1 / self._rate):
                        await self._stopping.wait()

    def stop(self) -> None:
        """Asks nothing more."""
        self._stopping.set()

    async def answered(self, count: int) -> None:
        """Returns when so many more calls have been answered, or one failed."""
        wanted = len(self.ids) + count
        while len(self.ids) < wanted and not self.failures:
            await asyncio.sleep(0.02)

    async def _ask(self, number: int) -> None:
        row = {
            "restaurant": "bistro" if number % 3 else "aroma",
            "distance_km": number % 90 / 10,
            "rain": number % 2 == 0,
        }
        request = prediction_pb2.PredictRequest(
            deployment="late_orders", columns=encode_rows(row), event_time=encode_instant(ASKED_AT)
        )
        # Half of the calls name their request, and so stay with one process as long as it is there.
        headers = (("x-foresight-request-id", f"r{number}"),) if number % 2 else ()
        if headers:
            request.request_id = f"r{number}"
        try:
            answer = await self._stubs[number % len(self._stubs)].Predict(
                request, timeout=DEADLINE_S, metadata=headers or None
            )
        except grpc.aio.AioRpcError as error:
            self.failures[error.code().name, str(error.details())] += 1
        else:
            self.ids += answer.prediction_ids


@contextlib.asynccontextmanager
async def traffic(stack: LocalStack, rate: float) -> AsyncIterator[Traffic]:
    """Traffic for as long as the block, all answered or failed at its end."""
    running = Traffic(stack, rate)
    task = asyncio.create_task(running.run())
    try:
        yield running
    finally:
        running.stop()
        await task


def attempts(stack: LocalStack) -> Counter[str]:
    """How the attempts to predict ended, as the gateway saw them."""
    lines = (stack.state / "logs" / "gateway-access.log").read_text().splitlines()
    logged = (json.loads(line) for line in lines)
    return Counter(line["code"] for line in logged if str(line["method"]).endswith("/Predict"))


def _channels(stack: LocalStack) -> list[grpc.aio.Channel]:
    target = Target.local(Path(stack.state), "application")
    key, chain, ca = (path.read_bytes() for path in (target.key, target.certificate, target.ca))
    credentials = grpc.ssl_channel_credentials(ca, key, chain)
    options = [*options_for(target.address), ("grpc.service_config", json.dumps(RETRY))]
    options.append(("grpc.use_local_subchannel_pool", 1))
    return [grpc.aio.secure_channel(target.address, credentials, options) for _ in range(CALLERS)]
