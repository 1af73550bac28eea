"""Server CPU and throughput of predictions over one PredictStream against as many calls of Predict.

The two take turns within each round, with the same requests and as many unanswered; CPU is that of predictor, feature
store, logger and PostgreSQL together per answered request, and what is compared is the median over the rounds.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import grpc

from benchmarks.predictor.cpu import IN_FLIGHT, PARTS, ROUNDS, SECONDS
from benchmarks.predictor.load import Load, Outcome
from benchmarks.predictor.services import ENTITIES, PREDICT, Services, question
from benchmarks.results import Result
from foresight.predictor.v1 import prediction_pb2

STREAM = "/foresight.predictor.v1.PredictionService/PredictStream"


async def measured(services: Services) -> list[Result]:
    """The figures, medians over the rounds."""
    questions = [question([i]) for i in range(ENTITIES)]
    unary_us, stream_us, unary_rates, stream_rates = list[float](), list[float](), list[float](), list[float]()
    async with grpc.aio.insecure_channel(services.address("predictor")) as channel:
        unary, stream = Load(channel, PREDICT, questions), StreamLoad(channel, questions)
        for load in (unary, stream):
            await load.in_flight(IN_FLIGHT, SECONDS / 2)
        for _ in range(ROUNDS):
            for load, used_us, rates in ((unary, unary_us, unary_rates), (stream, stream_us, stream_rates)):
                before = services.cpu_s(*PARTS)
                outcome = await load.in_flight(IN_FLIGHT, SECONDS)
                # What was answered is soon logged, which belongs to it.
                await asyncio.sleep(0.5)
                used_us.append(1e6 * (services.cpu_s(*PARTS) - before) / len(outcome.latencies_s))
                rates.append(outcome.answered_per_s)
                if set(outcome.codes) != {"OK"}:
                    raise RuntimeError(f"predictions failed: {outcome.codes}")
    per_cpu = statistics.median(a / b for a, b in zip(unary_us, stream_us, strict=True))
    return [
        Result(f"Predict, server CPU at {IN_FLIGHT} in flight", statistics.median(unary_us), "us"),
        Result(f"PredictStream, server CPU at {IN_FLIGHT} unanswered", statistics.median(stream_us), "us"),
        Result("PredictStream / Predict, predictions per server CPU", per_cpu, "x", at_least=1.5),
        Result(f"Predict at {IN_FLIGHT} in flight, beside the load", statistics.median(unary_rates), "1/s"),
        Result(f"PredictStream at {IN_FLIGHT} unanswered, beside the load", statistics.median(stream_rates), "1/s"),
    ]


class StreamLoad:
    """Requests of one stream, over a connection that others share."""

    def __init__(self, channel: grpc.aio.Channel, questions: list[bytes]) -> None:
        self._call: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(STREAM)
        # A message whose first field is the request.
        self._requests = [
            prediction_pb2.PredictStreamRequest(
                request=prediction_pb2.PredictRequest.FromString(request)
            ).SerializeToString()
            for request in questions
        ]

    async def in_flight(self, requests: int, seconds: float) -> Outcome:
        """Keeps so many requests of one stream unanswered."""
        outcome, started = Outcome(), time.perf_counter()
        free, sent_at = asyncio.Semaphore(requests), list[float]()
        call = self._call()

        async def send() -> None:
            while time.perf_counter() - started < seconds:
                await free.acquire()
                sent_at.append(time.perf_counter())
                await call.write(self._requests[len(sent_at) % len(self._requests)])
            await call.done_writing()

        sending = asyncio.create_task(send())
        async for data in call:
            free.release()
            now = time.perf_counter()
            answer = prediction_pb2.PredictStreamResponse.FromString(data)
            answered = answer.HasField("response")
            outcome.codes["OK" if answered else str(answer.error.code)] += 1
            outcome.latencies_s.append(now - sent_at[len(outcome.latencies_s)])
        await sending
        outcome.seconds = time.perf_counter() - started
        return outcome
