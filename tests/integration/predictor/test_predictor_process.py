"""The predictor as a process of its own, from its documented command and settings: killed, restarted, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foresight.predictor.v1 import prediction_pb2, prediction_pb2_grpc
from inference import grpc_service_pb2, grpc_service_pb2_grpc
from services.runtime.channel import open_channel
from tests.wire.predictor.inference_requests import infer, keys_of
from tests.wire.predictor.rig import TRANSFORMS, Rig, ask, running_rig, until
from tests.wire.predictor.test_predict_stream import answers_of
from tests.wire.predictor.test_predictor_refusals import details

SERVICE = "foresight.predictor.v1.PredictionService"
ROOT = Path(__file__).resolve().parents[3]


def environment(rig: Rig, **changes: str) -> dict[str, str]:
    settings = {
        "LISTEN": rig.address("predictor"),
        "SPOOL_FOLDER": str(rig.folder / "spool"),
        "CACHE_FOLDER": str(rig.folder / "cache"),
        "FEATURE_STORE": rig.address("features"),
        "TRAINER": rig.address("trainer"),
        "LOGGER": rig.address("logger"),
        "TRANSFORM_MODULES": f'["{TRANSFORMS}"]',
    } | changes
    # A checkout beside the installed one is found by PYTHONPATH.
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return inherited | {f"FORESIGHT_PREDICTOR_{k}": v for k, v in settings.items()}


class Process:
    """One life of the predictor; `log` holds its standard error."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 20)


@contextlib.asynccontextmanager
async def predictor(rig: Rig, **changes: str) -> AsyncIterator[Process]:
    log = rig.folder / "predictor.log"
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.predictor",
            env=environment(rig, **changes),
            cwd=ROOT,
            stderr=file,
            stdout=file,
        )
    try:
        yield Process(process, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def serving(channel: grpc.aio.Channel, service: str = SERVICE) -> None:
    """Waits until health says SERVING."""
    health = health_pb2_grpc.HealthStub(channel)
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def loaded_rig() -> AsyncIterator[Rig]:
    async with running_rig() as rig:
        await rig.deploy_flights()
        rig.feed()
        # The process has the real clock, the fed rows are of a fixed day: the view's features may be older.
        rig.features.max_age_micros.clear()
        yield rig


async def ask_until(
    stub: prediction_pb2_grpc.PredictionServiceAsyncStub, stop: asyncio.Event, answered: set[str]
) -> None:
    while not stop.is_set():
        try:
            response = await stub.Predict(ask(), timeout=2)
            answered.update(response.prediction_ids)
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.01)


async def test_every_answer_is_logged_once_across_kills() -> None:
    """kill -9 three times under load, the logger away in between: the client's count is the ledger's."""
    answered: set[str] = set()
    async with loaded_rig() as rig, open_channel(rig.address("predictor")) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        stop = asyncio.Event()
        callers = [asyncio.create_task(ask_until(stub, stop, answered)) for _ in range(4)]
        for life in range(3):
            rig.logger.away = life == 1
            async with predictor(rig) as process:
                before = len(answered)
                await until(lambda before=before: len(answered) > before + 50, 30)  # type: ignore[misc]
                await process.end(signal.SIGKILL)
        rig.logger.away = False
        async with predictor(rig) as process:
            before = len(answered)
            await until(lambda: len(answered) > before + 20, 30)
            stop.set()
            await asyncio.gather(*callers)
            assert await process.end(signal.SIGTERM) == 0
        assert answered <= rig.logger.records.keys()
        assert not rig.logger.quarantined
        assert len(rig.logger.numbers) == 4
        for numbers in rig.logger.numbers.values():
            assert sorted(numbers) == list(range(1, len(numbers) + 1))


async def test_what_the_logger_could_not_take_is_shipped_by_the_next_life() -> None:
    """Stopped in order while the logger is away; GetSpool accounts for both lives."""
    async with loaded_rig() as rig, open_channel(rig.address("predictor")) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        rig.logger.away = True
        async with predictor(rig) as process:
            await serving(channel)
            await stub.Predict(ask(5))
            assert await process.end(signal.SIGTERM) == 0
        async with predictor(rig) as process:
            await serving(channel)
            await stub.Predict(ask(2))
            spool = await stub.GetSpool(prediction_pb2.GetSpoolRequest())
            assert [(i.replica, i.highest_sequence, i.pending) for i in spool.incarnations] == [
                ("predictor-0", 5, 5),
                ("predictor-0", 2, 2),
            ]
            rig.logger.away = False
            await until(lambda: len(rig.logger.records) == 7, 10)
            spool = await stub.GetSpool(prediction_pb2.GetSpoolRequest())
            assert [i.pending for i in spool.incarnations] == [0]
            assert await process.end(signal.SIGTERM) == 0
        assert rig.logger.duplicates == 0


async def test_what_a_replica_left_that_there_is_no_longer_is_shipped_by_another() -> None:
    """GetSpool accounts for it until the logger has it."""
    async with loaded_rig() as rig, open_channel(rig.address("predictor")) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        rig.logger.away = True
        async with predictor(rig, REPLICA="predictor-1") as process:
            await serving(channel)
            await stub.Predict(ask(5))
            await process.end(signal.SIGKILL)
        async with predictor(rig, FORMER_REPLICAS='["predictor-1"]') as process:
            await serving(channel)
            spool = await stub.GetSpool(prediction_pb2.GetSpoolRequest())
            assert [(i.replica, i.highest_sequence, i.pending) for i in spool.incarnations] == [
                ("predictor-0", 0, 0),
                ("predictor-1", 5, 5),
            ]
            rig.logger.away = False
            await until(lambda: len(rig.logger.records) == 5, 20)
            assert {record.replica for record, _ in rig.logger.records.values()} == {"predictor-1"}
            async with asyncio.timeout(20):
                while len((await stub.GetSpool(prediction_pb2.GetSpoolRequest())).incarnations) > 1:
                    await asyncio.sleep(0.01)
            assert await process.end(signal.SIGTERM) == 0


async def test_a_stream_is_answered_what_was_read_of_it_before_the_process_ends() -> None:
    """Then it ends with UNAVAILABLE, and what was predicted is what was answered."""
    async with loaded_rig() as rig, open_channel(rig.address("predictor")) as channel:
        async with predictor(rig, DRAIN_PAUSE_S="0") as process:
            await serving(channel)
            rig.features.hold = asyncio.Event()
            stream = prediction_pb2_grpc.PredictionServiceStub(channel).PredictStream()
            for _ in range(5):
                await stream.write(prediction_pb2.PredictStreamRequest(request=ask()))
            await until(lambda: rig.features.waiting == 1)
            process.process.send_signal(signal.SIGTERM)
            await until(lambda: "server_stopping" in process.log.read_text())
            rig.features.hold.set()
            answers, error = await answers_of(stream)
            assert error is not None
            assert (error.code(), details(error)[0]) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
            assert await asyncio.wait_for(process.process.wait(), 20) == 0
        assert 1 <= len(answers) <= 5
        assert {id for answer in answers for id in answer.response.prediction_ids} == rig.logger.records.keys()


async def test_a_second_process_of_the_replica_is_refused_clearly() -> None:
    """The first goes on; the second says why and ends."""
    async with loaded_rig() as rig, open_channel(rig.address("predictor")) as channel, predictor(rig) as first:
        await serving(channel)
        async with predictor(rig, LISTEN=rig.address("second")) as second:
            assert await asyncio.wait_for(second.process.wait(), 30) == 1
        assert "another process has the spool of the replica predictor-0" in second.log.read_text()
        await prediction_pb2_grpc.PredictionServiceStub(channel).Predict(ask())
        assert first.process.returncode is None


async def test_the_inference_service_answers_and_has_its_own_health() -> None:
    """Its release is that of the package."""
    async with loaded_rig() as rig, open_channel(rig.address("predictor")) as channel, predictor(rig):
        await serving(channel, "inference.GRPCInferenceService")
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await stub.ServerReady(grpc_service_pb2.ServerReadyRequest())).ready
        metadata = await stub.ServerMetadata(grpc_service_pb2.ServerMetadataRequest())
        assert metadata.version == importlib.metadata.version("foresight")
        assert (await stub.ModelInfer(infer(keys_of(), raw=True))).raw_output_contents


async def test_faulty_settings_are_told_together() -> None:
    """By name, and the process ends with 2."""
    async with loaded_rig() as rig, predictor(rig, LISTEN="0.0.0.0:80", REPLICA="../x", LOGGER="") as process:
        assert await asyncio.wait_for(process.process.wait(), 30) == 2
        text = process.log.read_text()
        for name in ("LISTEN", "REPLICA", "LOGGER"):
            assert f"setting FORESIGHT_PREDICTOR_{name}:" in text


async def test_metrics_are_served() -> None:
    """On the loopback, with the spool's gauges."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with (
        loaded_rig() as rig,
        open_channel(rig.address("predictor")) as channel,
        predictor(rig, METRICS_PORT=str(port)),
    ):
        await serving(channel)
        await prediction_pb2_grpc.PredictionServiceStub(channel).Predict(ask())
        page = await asyncio.to_thread(_fetch, f"http://127.0.0.1:{port}/metrics")
    assert 'foresight_predictor_predictions_total{deployment="late_flights",outcome="answered"} 1.0' in page
    assert "foresight_predictor_models_loaded 1.0" in page
    assert "foresight_predictor_spool_pending" in page
    version = 'model="late",version="1"'
    assert f'foresight_predictor_version_predictions_total{{deployment="late_flights",{version}}} 1.0' in page
    assert f"foresight_predictor_version_inference_duration_seconds_count{{{version}}} 1.0" in page


def _fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read(), "utf-8")
