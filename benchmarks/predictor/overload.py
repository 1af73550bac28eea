"""What is left of the throughput when twice as much is asked for: calls at an even pace, each with a deadline.

The load that the services can bear is found first, as the most that they answer in time at rising paces.
"""

from __future__ import annotations

import statistics

import grpc

from benchmarks.predictor.load import Load, Outcome
from benchmarks.predictor.services import ENTITIES, PREDICT, Services, question
from benchmarks.results import Result

DEADLINE_S = 0.5
SECONDS = 4.0
ROUNDS = 3
# Shares of what is answered with 64 calls in flight.
PACES = (0.6, 0.75, 0.9, 1.0)
OVERLOAD = 2.0


async def measured(services: Services) -> list[Result]:
    """The peak, and the goodput at twice that."""
    async with grpc.aio.insecure_channel(services.address("predictor")) as channel:
        load = Load(channel, PREDICT, [question([i]) for i in range(ENTITIES)])
        await load.in_flight(64, SECONDS / 2)
        closed = (await load.in_flight(64, SECONDS)).answered_per_s
        shares, peaks = list[float](), list[float]()
        last = Outcome()
        for _ in range(ROUNDS):
            at_paces = [await load.offered(share * closed, SECONDS, DEADLINE_S) for share in PACES]
            peak = max(outcome.answered_per_s for outcome in at_paces)
            last = await load.offered(OVERLOAD * peak, SECONDS, DEADLINE_S)
            peaks.append(peak)
            shares.append(last.answered_per_s / peak)
    print({f"{OVERLOAD:g} x the peak, by code": dict(last.codes)})
    return [
        Result(f"most predictions answered within {DEADLINE_S:g} s", statistics.median(peaks), "1/s"),
        Result("goodput at twice that load / peak", statistics.median(shares), "x", at_least=0.9),
        Result("p99 of what is answered at twice the load", 1e3 * last.quantile_s(0.99), "ms"),
    ]
