"""A whole predictor in the test's process, with hand-written services around it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc

from foresight.predictor.v1 import prediction_pb2, prediction_pb2_grpc
from foresight.trainer.v1 import model_registry_pb2
from foresight.transforms import TransformSet, source_sha256
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType, FeatureView, Field, MissingPolicy, Transform, ViewFeature, ViewSource
from foresight.wire import encode_column, encode_field, encode_instant
from inference import grpc_service_pb2_grpc
from services.predictor.admission import QUEUE_ROWS_MAX, Admission
from services.predictor.answer_codec import AnswerCodec
from services.predictor.answer_journal import AnswerJournal
from services.predictor.arms import Arms
from services.predictor.artifacts import ArtifactCache
from services.predictor.config import REPEATS_BYTES_MAX
from services.predictor.deployments import Deployments
from services.predictor.explaining import Explanations
from services.predictor.feature_store_client import FeatureStoreClient
from services.predictor.inference_servicer import InferenceServicer
from services.predictor.logger_client import LoggerClient
from services.predictor.lookup import Lookup
from services.predictor.models import ModelCache
from services.predictor.prediction import Predictor
from services.predictor.record_codec import decode_record, encode_records
from services.predictor.recording import Recorder
from services.predictor.repeats import Repeats
from services.predictor.servicer import PredictionServicer
from services.predictor.serving_file import ServingFile
from services.predictor.shadows import Shadows
from services.predictor.shipping import Shipper
from services.predictor.spool import Spool
from services.predictor.streams import Streams
from services.predictor.telemetry import Telemetry
from services.predictor.trainer_client import TrainerClient
from services.predictor.verification import Verifier
from services.predictor.views import ViewCatalogue
from services.runtime.boundary import Boundary
from services.runtime.channel import open_channel
from services.runtime.ids import new_id
from services.runtime.metrics import Metrics
from tests.wire.predictor import transforms
from tests.wire.predictor.onnx_models import linear_model
from tests.wire.predictor.upstreams import FeatureStore, Logger, Row, Trainer, start_server

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TRANSFORMS = "tests.wire.predictor.transforms"


def micros(instant: datetime) -> int:
    return int(instant.timestamp()) * 1_000_000


def flight_view(**changes: Any) -> FeatureView:
    """Two sources (one feature per policy), request features of several types, one transform."""
    delay = ViewFeature("delay")
    flights = ViewFeature(
        "flights", missing=MissingPolicy.DEFAULT, default=Column.build("flights", DataType.INT64, [10])
    )
    wind = ViewFeature("wind", missing=MissingPolicy.FAIL)
    values: dict[str, Any] = {
        "name": "flights",
        "version": 3,
        "label": Field("late", DataType.BOOL),
        "sources": (
            ViewSource("carriers", (delay, flights), max_age=timedelta(days=1), group_version=2),
            ViewSource("weather", (wind,), group_version=1),
        ),
        "request_features": (Field("hour", DataType.FLOAT64), Field("route", DataType.STRING)),
        "transforms": (
            Transform(
                Field("total_delay", DataType.FLOAT64),
                f"{TRANSFORMS}:total_delay",
                source_sha256(transforms.total_delay),
                ("delay", "hour"),
            ),
        ),
        "entity_keys": (Field("carrier", DataType.STRING), Field("origin", DataType.STRING)),
        "features": (
            Field("delay", DataType.FLOAT64),
            Field("flights", DataType.INT64),
            Field("wind", DataType.FLOAT64),
            Field("hour", DataType.FLOAT64),
            Field("route", DataType.STRING),
            Field("total_delay", DataType.FLOAT64),
        ),
    }
    return FeatureView(**(values | changes))


def request_view() -> FeatureView:
    """A view without sources."""
    return FeatureView(
        name="plain",
        version=1,
        label=Field("late", DataType.BOOL),
        request_features=(Field("hour", DataType.FLOAT64),),
        features=(Field("hour", DataType.FLOAT64),),
    )


MODEL_INPUTS = ("delay", "flights", "wind", "hour", "total_delay")


def model_version(
    version: int, *, model: str = "late", view: FeatureView | None = None, inputs: tuple[str, ...] = ()
) -> model_registry_pb2.ModelVersion:
    """A binary classifier's description over the view."""
    view = view or flight_view()
    names = inputs or MODEL_INPUTS
    fields = {f.name: f for f in view.features}
    return model_registry_pb2.ModelVersion(
        model=types_pb2.VersionRef(name=model, version=version),
        view=types_pb2.VersionRef(name=view.name, version=view.version),
        inputs=[encode_field(fields[name]) for name in names],
        task=model_registry_pb2.MODEL_TASK_BINARY_CLASSIFICATION,
        classes=encode_column(Column.build("classes", DataType.BOOL, [False, True])),
        batch_invariant=True,
    )


def artifact(bias: float, inputs: tuple[str, ...] = MODEL_INPUTS) -> bytes:
    return linear_model(inputs, [0.01] * len(inputs), bias, classifier=True)


def ask(
    n: int = 1,
    *,
    deployment: str = "late_flights",
    event_time: datetime | None = None,
    without: str = "",
    **columns: Column,
) -> prediction_pb2.PredictRequest:
    """A valid request of n rows, with columns replaced or left out."""
    given = {
        "carrier": Column.build("carrier", DataType.STRING, [("AA", "UA")[i % 2] for i in range(n)]),
        "origin": Column.build("origin", DataType.STRING, ["JFK"] * n),
        "hour": Column.build("hour", DataType.FLOAT64, [float(i % 24) for i in range(n)]),
        "route": Column.build("route", DataType.STRING, ["jfk-lax"] * n),
    } | columns
    return prediction_pb2.PredictRequest(
        deployment=deployment,
        columns=[encode_column(c) for name, c in given.items() if name != without],
        event_time=encode_instant(event_time) if event_time else None,
    )


@dataclass
class Replica:
    """One running predictor."""

    channel: grpc.aio.Channel
    stub: prediction_pb2_grpc.PredictionServiceAsyncStub
    inference: grpc_service_pb2_grpc.GRPCInferenceServiceAsyncStub
    spool: Spool
    deployments: Deployments
    shipper: Shipper
    metrics: Metrics
    predictor: Predictor
    streams: Streams
    shadows: Shadows


@dataclass
class Rig:
    """The fakes, the folders, and predictors that are started on them."""

    folder: Path
    features: FeatureStore = field(default_factory=FeatureStore)
    trainer: Trainer = field(default_factory=Trainer)
    logger: Logger = field(default_factory=Logger)
    servers: dict[str, grpc.aio.Server] = field(default_factory=dict)
    now: datetime = NOW
    lives: int = 0

    def address(self, name: str) -> str:
        return f"unix:{self.folder}/{name}.sock"

    async def start(self, *names: str) -> None:
        fakes = {"features": self.features, "trainer": self.trainer, "logger": self.logger}
        for name in names or tuple(fakes):
            self.servers[name] = await start_server(self.address(name), fakes[name])

    async def stop(self, *names: str) -> None:
        for name in names or tuple(self.servers):
            await self.servers.pop(name).stop(None)

    @contextlib.asynccontextmanager
    async def predictor(
        self,
        *,
        modules: tuple[str, ...] = (TRANSFORMS,),
        queue_rows_max: int = QUEUE_ROWS_MAX,
        fsync: bool = False,
        lookup: Callable[[FeatureStoreClient], Lookup] = Lookup,
        explanations: Explanations | None = None,
        required: tuple[str, ...] = (),
        serving_file: Callable[[Path], ServingFile] = ServingFile,
        late_s: float = 60.0,
        **spool_options: Any,
    ) -> AsyncIterator[Replica]:
        """A predictor on the rig's folders; one at a time."""
        async with contextlib.AsyncExitStack() as stack:
            metrics = Metrics("predictor")
            options = {"bytes_max": 1 << 30, "fsync": fsync} | spool_options
            spool = Spool(self.folder / "spool", "predictor-0", new_id(), **options)
            stack.callback(spool.close)
            channels = [
                await stack.enter_async_context(open_channel(self.address(n)))
                for n in ("features", "trainer", "logger")
            ]
            features, trainer, logger = (
                FeatureStoreClient(channels[0]),
                TrainerClient(channels[1]),
                LoggerClient(channels[2]),
            )
            functions = TransformSet(modules)
            views = ViewCatalogue(features)
            models = ModelCache(ArtifactCache(self.folder / "cache/artifacts", trainer))
            file = serving_file(self.folder / "cache/serving")
            deployments = Deployments(trainer, features, views, models, functions, file, required=required)
            telemetry = Telemetry(metrics.registry)
            admission = Admission(queue_rows_max)
            recorder = Recorder(spool, encode_records, lambda: self.now, fsync=fsync)
            predictor = Predictor(
                *(deployments, lookup(features), functions, recorder, telemetry, lambda: self.now),
                admission=admission,
                explanations=explanations,
                late_s=late_s,
            )
            shadows = Shadows(predictor.score_beside, lambda: predictor.admitted_rows, telemetry.shadowed)
            arms = Arms(deployments, predictor, shadows, lambda: self.now)
            journal = AnswerJournal(self.folder / "cache/answers", REPEATS_BYTES_MAX)
            repeats = Repeats(arms, AnswerCodec(), journal, lambda: self.now, bytes_max=REPEATS_BYTES_MAX)
            repeats.restore()
            stack.push_async_callback(repeats.close)
            verifier = Verifier(logger, spool, decode_record, views, features, functions, trainer, models)
            shipper = Shipper(spool, logger, gather_s=0.001)
            for loop in (deployments.run(), shipper.run(), shadows.run()):
                stack.push_async_callback(_cancel, asyncio.create_task(loop))
            stack.push_async_callback(shadows.close, 0.0)
            server = grpc.aio.server(interceptors=[Boundary(metrics)])
            streams = Streams()
            servicer = PredictionServicer(repeats, verifier, deployments, spool, streams)
            prediction_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, server)

            async def ready() -> bool:
                return deployments.ready and spool.accepting

            inference = InferenceServicer(arms, deployments, streams, ready, "1.2.3")
            grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, server)
            # A path of its own for each life: a channel to the same one may still be connected to the server before.
            self.lives += 1
            address = self.address("predictor" if self.lives == 1 else f"predictor-{self.lives}")
            server.add_insecure_port(address)
            await server.start()
            stack.push_async_callback(server.stop, None)
            channel = await stack.enter_async_context(open_channel(address))
            stub = prediction_pb2_grpc.PredictionServiceStub(channel)
            inference_stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
            stubs = (stub, inference_stub)
            yield Replica(channel, *stubs, spool, deployments, shipper, metrics, predictor, streams, shadows)

    async def deploy_flights(self, version: int = 1, bias: float = 0.0) -> None:
        """Registers the view and a model version, and deploys it."""
        view = flight_view()
        self.features.views[(view.name, view.version)] = view
        self.trainer.register(model_version(version), artifact(bias))
        await self.trainer.deploy("late_flights", "late", version)

    def feed(self) -> None:
        """Rows for the carriers AA and UA."""
        for carrier, delay, flights in (("AA", 5.0, 100), ("UA", 7.5, None)):
            key = (carrier, "JFK")
            event_time = micros(NOW - timedelta(hours=1))
            self.features.rows.setdefault("carriers", {})[key] = Row(
                event_time, 3, {"delay": delay, "flights": flights}
            )
            self.features.rows.setdefault("weather", {})[key] = Row(event_time, 4, {"wind": 12.0})


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    """Waits for something that a task of the process brings about."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running_rig() -> AsyncIterator[Rig]:
    folder = Path(tempfile.mkdtemp(prefix="fs-pred-"))
    rig = Rig(folder)
    await rig.start()
    try:
        yield rig
    finally:
        await rig.stop()
        shutil.rmtree(folder, ignore_errors=True)
