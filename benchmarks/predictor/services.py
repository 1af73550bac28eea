"""What a prediction needs, each part a process of its own: PostgreSQL, the four services, and an empty echo server.

The feature store is not told of the logger, so that nothing is reingested while predictions are measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import grpc
import numpy as np
import pandas as pd
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sklearn.ensemble import HistGradientBoostingClassifier

from deploy.local.postgres import STOP_SIGNAL, EmbeddedPostgres
from foresight.client import (
    Client,
    Connection,
    DataType,
    FeatureGroup,
    FeatureView,
    Field,
    Retry,
    ViewFeature,
    ViewSource,
)
from foresight.predictor.v1 import prediction_pb2
from foresight.values import Column
from foresight.wire import encode_column

READY_S = 60.0
SERVICES = ("feature_store", "trainer", "logger", "predictor")
DEPLOYMENT = "late"
ENTITIES = 2_000
GROUP_FEATURES = tuple(f"f{i}" for i in range(12))
REQUEST_FEATURES = tuple(f"r{i}" for i in range(4))
KEY = "place"
PREDICT = "/foresight.predictor.v1.PredictionService/Predict"
ECHO = "/benchmarks.Echo/Call"


@dataclass(frozen=True)
class Services:
    """The running processes, by name, and where they listen; `artifacts` is the trainer's folder of models."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def address(self, name: str) -> str:
        """Where a service listens."""
        return f"unix:{self.folder}/{name}.s"

    def cpu_s(self, *names: str) -> float:
        """CPU seconds that the processes and their children have used so far, those that have ended among them."""
        total = 0.0
        for name in names:
            process = psutil.Process(self.processes[name].pid)
            total += process.cpu_times().children_user + process.cpu_times().children_system
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = one.cpu_times()
                    total += times.user + times.system
        return total


@contextlib.contextmanager
def running_services(*, echo: bool = True) -> Iterator[Services]:
    """Starts everything with a model deployed over ENTITIES entities, and removes it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fs-bench-"))
    (folder / "run").mkdir(mode=0o700)
    services = Services(folder)
    embedded = EmbeddedPostgres(folder / "data", folder / "run", folder / "password")
    embedded.initialise()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        log = stack.enter_context((folder / "log").open("wb"))

        def start(name: str, command: Sequence[str], **options: object) -> None:
            process = subprocess.Popen(command, stdout=log, stderr=log, **options)  # type: ignore[call-overload]
            services.processes[name] = process
            stack.callback(_stop, process, STOP_SIGNAL if name == "postgres" else 15)

        start("postgres", embedded.command(), **embedded.identity())
        asyncio.run(_create_databases(embedded, (folder / "password").read_text()))
        for name in SERVICES:
            environment = os.environ | _settings(services, embedded, name)
            start(name, [sys.executable, "-m", f"services.{name}"], env=environment)
        if echo:
            start("echo", [sys.executable, "-m", "benchmarks.predictor.echo", services.address("echo")])
        for name in SERVICES:
            _wait_until_serving(services, name)
        _deploy(services)
        yield services


def question(entities: Sequence[int]) -> bytes:
    """The bytes of a prediction request for entities."""
    columns = [Column.build(KEY, DataType.STRING, [f"place {i}" for i in entities])]
    columns += [
        Column.build(name, DataType.FLOAT64, list(values))
        for name, values in zip(REQUEST_FEATURES, zip(*map(request_features, entities), strict=True), strict=True)
    ]
    request = prediction_pb2.PredictRequest(deployment=DEPLOYMENT, columns=[encode_column(c) for c in columns])
    return request.SerializeToString()


def places() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features of ENTITIES places, and what was asked of each a minute later, with what became of it in `late`."""
    random = np.random.default_rng(0)
    before = datetime.now(UTC) - timedelta(hours=1)
    rows = pd.DataFrame({n: random.normal(size=ENTITIES) for n in GROUP_FEATURES})
    rows.insert(0, KEY, [f"place {i}" for i in range(ENTITIES)])
    rows["event_time"] = before
    spine = pd.DataFrame({n: random.normal(size=ENTITIES) for n in REQUEST_FEATURES})
    spine.insert(0, KEY, rows[KEY])
    spine["event_time"] = before + timedelta(minutes=1)
    spine["late"] = rows["f0"] + spine["r0"] > 0
    return rows, spine


def untrained() -> HistGradientBoostingClassifier:
    """The model before it has seen the places."""
    return HistGradientBoostingClassifier(max_iter=50)


def request_features(entity: int) -> list[float]:
    """What is asked of an entity."""
    return [float(entity % 7) + shift for shift in range(len(REQUEST_FEATURES))]


def _settings(services: Services, embedded: EmbeddedPostgres, name: str) -> dict[str, str]:
    folder = services.folder
    settings = {"LISTEN": services.address(name), "LOG_LEVEL": "WARNING"}
    if name == "predictor":
        settings |= {"SPOOL_FOLDER": str(folder / "spool"), "CACHE_FOLDER": str(folder / "cache")}
        settings |= {n.upper(): services.address(n) for n in ("feature_store", "trainer", "logger")}
    else:
        settings |= {"DATABASE__URL": embedded.url(database=name), "DATABASE__PASSWORD_FILE": str(folder / "password")}
    if name in ("feature_store", "trainer"):
        settings["STATE_FOLDER"] = str(folder / name)
    if name == "trainer":
        settings |= {"SINK__URL": embedded.url(database=name), "SINK__PASSWORD_FILE": str(folder / "password")}
        settings["FEATURE_STORE"] = services.address("feature_store")
    return {f"FORESIGHT_{name.upper()}_{key}": value for key, value in settings.items()}


def _deploy(services: Services) -> None:
    """A group of ENTITIES entities, a view, and a gradient boosting over both its features and the request's."""
    group = FeatureGroup(
        "places", (Field(KEY, DataType.STRING),), tuple(Field(n, DataType.FLOAT64) for n in GROUP_FEATURES)
    )
    view = FeatureView(
        "late",
        Field("late", DataType.BOOL),
        (ViewSource("places", tuple(ViewFeature(n) for n in GROUP_FEATURES)),),
        tuple(Field(n, DataType.FLOAT64) for n in REQUEST_FEATURES),
    )
    rows, spine = places()
    with client_of(services, "feature_store") as features, client_of(services, "trainer") as trainer:
        features.apply(group, view)
        features.write("places", rows)
        dataset = features.create_training_dataset("late", "late", spine)
        version = trainer.train("late", untrained(), train=[dataset])
        trainer.deploy(DEPLOYMENT, "late", version.version, wait_s=0)
    _wait_until_answering(services)


@contextlib.contextmanager
def client_of(services: Services, name: str) -> Iterator[Client]:
    """A client of one service, without a gateway."""
    address = services.address(name)
    with _channel(address) as channel, Client(connection=Connection(channel, address, Retry(0.0))) as client:
        yield client


def _channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, [("grpc.default_authority", "localhost")])


async def _create_databases(embedded: EmbeddedPostgres, password: str) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            connection = await asyncpg.connect(embedded.url(), password=password)
            break
        except (OSError, asyncpg.CannotConnectNowError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
    try:
        for name in ("feature_store", "trainer", "logger"):
            await connection.execute(f"CREATE DATABASE {name} STRATEGY wal_log")
    finally:
        await connection.close()


def _wait_until_serving(services: Services, name: str) -> None:
    process, deadline = services.processes[name], time.monotonic() + READY_S
    with _channel(services.address(name)) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(grpc.RpcError):
                if (
                    health.Check(health_pb2.HealthCheckRequest(), timeout=2).status
                    == health_pb2.HealthCheckResponse.SERVING
                ):
                    return
            time.sleep(0.05)
    raise RuntimeError(f"{name} did not become ready: {(services.folder / 'log').read_text()[-2_000:]}")


def _wait_until_answering(services: Services) -> None:
    deadline = time.monotonic() + READY_S
    with _channel(services.address("predictor")) as channel:
        predict: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PREDICT)
        while True:
            try:
                predict(question([0]), timeout=5)
                return
            except grpc.RpcError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes], signal: int) -> None:
    process.send_signal(signal)
    process.wait(60)
