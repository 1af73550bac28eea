"""A hundred models in one predictor: memory and time of each, what a swap takes, and what an explanation costs.

A swap is timed by its caller: from SetDeployment to the first answer of the new version, asked one after the other.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence

import grpc
import psutil
from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks.predictor.load import Load
from benchmarks.predictor.services import DEPLOYMENT, PREDICT, Services, client_of, question
from benchmarks.results import Result
from foresight.client import Client
from foresight.predictor.v1 import prediction_pb2

MODELS = 100
SWAPS = 50
SWAP_MAX_S = 1.0
SECONDS = 4.0
MIB = 2**20


def measured(services: Services) -> list[Result]:
    """The figures; the benchmark's own deployment serves its own version again afterwards."""
    with client_of(services, "trainer") as trainer:
        dataset = trainer.model("late").train_dataset_ids[0]
        versions = [_train(trainer, f"many_{i}", dataset, i) for i in range(MODELS)]
        several = [_train(trainer, "late", dataset, MODELS + i) for i in range(2)]
        results = _many(services, trainer, versions)
        results += _swaps(services, trainer, several)
        results += asyncio.run(_explanations(services))
        trainer.deploy(DEPLOYMENT, "late", 1, wait_s=0)
    return results


def _train(trainer: Client, model: str, dataset: str, seed: int) -> int:
    """A version unlike the others: as many trees, other ones."""
    estimator = HistGradientBoostingClassifier(max_iter=50, learning_rate=0.05 + seed / 1_000)
    return trainer.train(model, estimator, train=[dataset]).version


def _many(services: Services, trainer: Client, versions: Sequence[int]) -> list[Result]:
    before = _memory(services)
    started = time.perf_counter()
    for i, version in enumerate(versions):
        trainer.deploy(f"many_{i}", f"many_{i}", version, wait_s=0)
    with _channel(services) as channel:
        predict = _predict(channel)
        for i in range(len(versions)):
            _first_answer(predict, _asking(f"many_{i}"))
    took = time.perf_counter() - started
    rate = asyncio.run(_rate(services, [_asking(f"many_{i}", i) for i in range(len(versions))]))
    after = _memory(services)
    return [
        Result(f"{MODELS} models, deployed to all of them answering", took, "s"),
        Result("memory of a model, in use", (after - before) / len(versions) / MIB, "MiB"),
        Result(f"predictions at 64 in flight over {MODELS} models", rate, "1/s"),
    ]


def _swaps(services: Services, trainer: Client, versions: Sequence[int]) -> list[Result]:
    taken, memory = [], []
    with _channel(services) as channel:
        predict, asking = _predict(channel), question([0])
        for i in range(SWAPS):
            version = versions[i % len(versions)]
            started = time.perf_counter()
            trainer.deploy(DEPLOYMENT, "late", version, wait_s=0)
            while _version(predict(asking, timeout=5)) != version:
                pass
            taken.append(time.perf_counter() - started)
            memory.append(_memory(services))
    grown = statistics.median(memory[-5:]) - statistics.median(memory[5:10])
    return [
        Result("swap of a model, SetDeployment to first answer, median", 1e3 * statistics.median(taken), "ms"),
        Result("swap of a model, longest", max(taken), "s", at_most=SWAP_MAX_S),
        Result(f"memory that {SWAPS - 10} swaps leave behind", grown / MIB, "MiB"),
    ]


async def _explanations(services: Services) -> list[Result]:
    """Time of an explanation, and of predictions while another caller has explanations made without a pause."""
    async with grpc.aio.insecure_channel(services.address("predictor")) as channel:
        plain = Load(channel, PREDICT, [question([i]) for i in range(100)])
        one, sixteen = (_explaining([question(range(n))]) for n in (1, 16))
        alone = await Load(channel, PREDICT, one).in_flight(1, SECONDS / 2)
        many = await Load(channel, PREDICT, sixteen).in_flight(1, SECONDS / 2)
        undisturbed = await plain.in_flight(1, SECONDS / 2)
        disturbed, _ = await asyncio.gather(
            plain.in_flight(1, SECONDS / 2), Load(channel, PREDICT, sixteen).in_flight(1, SECONDS / 2)
        )
    return [
        Result("prediction with explanation, one row, p50", 1e3 * alone.quantile_s(0.5), "ms"),
        Result("prediction with explanation, 16 rows, p50", 1e3 * many.quantile_s(0.5), "ms"),
        Result("prediction, unloaded p99", 1e3 * undisturbed.quantile_s(0.99), "ms"),
        Result("prediction beside explanations without a pause, p99", 1e3 * disturbed.quantile_s(0.99), "ms"),
    ]


def _explaining(questions: Sequence[bytes]) -> list[bytes]:
    requests = [prediction_pb2.PredictRequest.FromString(asked) for asked in questions]
    for request in requests:
        request.explain = True
    return [request.SerializeToString() for request in requests]


def _asking(deployment: str, entity: int = 0) -> bytes:
    request = prediction_pb2.PredictRequest.FromString(question([entity]))
    request.deployment = deployment
    return request.SerializeToString()


async def _rate(services: Services, questions: Sequence[bytes]) -> float:
    async with grpc.aio.insecure_channel(services.address("predictor")) as channel:
        load = Load(channel, PREDICT, list(questions))
        await load.in_flight(64, SECONDS / 2)
        return (await load.in_flight(64, SECONDS)).answered_per_s


def _channel(services: Services) -> grpc.Channel:
    return grpc.insecure_channel(services.address("predictor"), [("grpc.default_authority", "localhost")])


def _predict(channel: grpc.Channel) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(PREDICT)


def _first_answer(predict: grpc.UnaryUnaryMultiCallable[bytes, bytes], asking: bytes) -> None:
    give_up = time.monotonic() + 60
    while True:
        try:
            predict(asking, timeout=5)
            return
        except grpc.RpcError:
            if time.monotonic() > give_up:
                raise
        time.sleep(0.005)


def _version(answer: bytes) -> int:
    return prediction_pb2.PredictResponse.FromString(answer).model.version


def _memory(services: Services) -> int:
    """Resident bytes of the predictor."""
    return int(psutil.Process(services.processes["predictor"].pid).memory_info().rss)
