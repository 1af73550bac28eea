"""Server CPU and latency of a prediction against an empty grpc.aio call, and rows a second of one large call.

CPU is that of predictor, feature store, logger and PostgreSQL together, from /proc, per answered request; the echo
server and the services take turns within each round, and what is compared is the median over the rounds.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import grpc
import numpy as np
import onnxruntime as ort

from benchmarks.predictor.load import Load
from benchmarks.predictor.services import (
    ECHO,
    ENTITIES,
    GROUP_FEATURES,
    PREDICT,
    REQUEST_FEATURES,
    Services,
    question,
)
from benchmarks.results import Result

ROUNDS = 5
SECONDS = 4.0
IN_FLIGHT = 64
INSTANCES = 1_000
PARTS = ("predictor", "feature_store", "logger", "postgres")


async def measured(services: Services) -> list[Result]:
    """The figures, medians over the rounds."""
    async with (
        grpc.aio.insecure_channel(services.address("echo")) as echo_channel,
        grpc.aio.insecure_channel(services.address("predictor")) as channel,
    ):
        echo = Load(echo_channel, ECHO, [b""])
        predict = Load(channel, PREDICT, [question([i]) for i in range(ENTITIES)])
        for load in (echo, predict):
            await load.in_flight(IN_FLIGHT, SECONDS / 2)
        echo_us, echo_p50, p50, rates = list[float](), list[float](), list[float](), list[float]()
        parts_us: dict[str, list[float]] = {name: [] for name in PARTS}
        for _ in range(ROUNDS):
            before = services.cpu_s("echo")
            outcome = await echo.in_flight(IN_FLIGHT, SECONDS)
            echo_us.append(1e6 * (services.cpu_s("echo") - before) / len(outcome.latencies_s))
            started = {name: services.cpu_s(name) for name in PARTS}
            outcome = await predict.in_flight(IN_FLIGHT, SECONDS)
            # What was answered is soon logged, which belongs to it.
            await asyncio.sleep(0.5)
            for name in PARTS:
                used = services.cpu_s(name) - started[name]
                parts_us[name].append(1e6 * used / len(outcome.latencies_s))
            rates.append(outcome.answered_per_s)
            if set(outcome.codes) != {"OK"}:
                raise RuntimeError(f"predictions failed: {outcome.codes}")
            echo_p50.append((await echo.in_flight(1, SECONDS / 4)).quantile_s(0.5))
            p50.append((await predict.in_flight(1, SECONDS / 4)).quantile_s(0.5))
        large = await _rows_per_s(channel)
    ratios = [sum(used) / empty for empty, *used in zip(echo_us, *parts_us.values(), strict=True)]
    bare = _bare_rows_per_s(services)
    return [
        Result("empty call, server CPU", statistics.median(echo_us), "us"),
        *(Result(f"prediction, CPU of {name}", statistics.median(parts_us[name]), "us") for name in PARTS),
        Result("prediction / empty call, server CPU at 64 in flight", statistics.median(ratios), "x", at_most=1.4),
        Result("predictions at 64 in flight", statistics.median(rates), "1/s"),
        Result("empty call, unloaded p50", 1e3 * statistics.median(echo_p50), "ms"),
        Result("prediction, unloaded p50", 1e3 * statistics.median(p50), "ms"),
        Result(
            "prediction / empty call, unloaded p50",
            statistics.median(a / b for a, b in zip(p50, echo_p50, strict=True)),
            "x",
            at_most=3,
        ),
        Result(f"one call of {INSTANCES:,} instances", large, "rows/s"),
        Result("bare ONNX Runtime on such rows", bare, "rows/s"),
        Result("one large call / bare ONNX Runtime", large / bare, "x", at_least=0.5),
    ]


async def _rows_per_s(channel: grpc.aio.Channel) -> float:
    """Rows a second of one caller who asks for many at once."""
    load = Load(channel, PREDICT, [question(range(INSTANCES))])
    await load.in_flight(1, SECONDS / 4)
    return INSTANCES / (await load.in_flight(1, SECONDS)).quantile_s(0.5)


def _bare_rows_per_s(services: Services) -> float:
    """Rows a second of the deployed model by itself, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    artifact = next(p for p in (services.folder / "cache" / "artifacts").rglob("*") if p.is_file())
    session = ort.InferenceSession(artifact.read_bytes(), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    feed = {
        name: random.normal(size=(INSTANCES, 1)).astype(np.float32) for name in (*GROUP_FEATURES, *REQUEST_FEATURES)
    }
    output, taken = session.get_outputs()[-1].name, []
    for _ in range(200):
        started = time.perf_counter()
        session.run([output], feed)
        taken.append(time.perf_counter() - started)
    return INSTANCES / statistics.median(taken)
