"""Load on a unary method: so many calls in flight, or so many calls a second whatever becomes of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc


@dataclass(slots=True)
class Outcome:
    """What became of calls: latencies of those that were answered in time, and how many ended with which code."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)

    @property
    def answered_per_s(self) -> float:
        """Answers in time per second."""
        return len(self.latencies_s) / self.seconds

    def quantile_s(self, share: float) -> float:
        """The latency that this share of the answers did not exceed."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Load:
    """Calls of one method with the same few requests, over one connection as a gateway has."""

    def __init__(self, channel: grpc.aio.Channel, method: str, requests: Sequence[bytes]) -> None:
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        self._requests = requests
        self._sent = 0

    async def in_flight(self, calls: int, seconds: float) -> Outcome:
        """Keeps so many calls in flight."""
        outcome, started = Outcome(), time.perf_counter()

        async def caller() -> None:
            while time.perf_counter() - started < seconds:
                await self._one(outcome, None)

        await asyncio.gather(*(caller() for _ in range(calls)))
        outcome.seconds = time.perf_counter() - started
        return outcome

    async def offered(self, per_s: float, seconds: float, deadline_s: float) -> Outcome:
        """Starts calls at an even pace, however many are under way, each with a deadline."""
        outcome, started = Outcome(), time.perf_counter()
        calls: set[asyncio.Task[None]] = set()
        count = 0
        while (elapsed := time.perf_counter() - started) < seconds:
            while count < elapsed * per_s:
                task = asyncio.create_task(self._one(outcome, deadline_s))
                calls.add(task)
                task.add_done_callback(calls.discard)
                count += 1
            await asyncio.sleep(0.001)
        outcome.seconds = time.perf_counter() - started
        await asyncio.gather(*calls)
        return outcome

    async def _one(self, outcome: Outcome, deadline_s: float | None) -> None:
        self._sent += 1
        request, started = self._requests[self._sent % len(self._requests)], time.perf_counter()
        try:
            await self._call(request, timeout=deadline_s)
        except grpc.aio.AioRpcError as error:
            outcome.codes[error.code().name] += 1
            return
        outcome.codes["OK"] += 1
        outcome.latencies_s.append(time.perf_counter() - started)
