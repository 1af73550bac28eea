"""The whole loop over gRPC: stubs before the trainer, a feature store that speaks the protocol behind it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from foresight.feature_store.v1 import (
    lineage_pb2,
    lineage_pb2_grpc,
    offline_pb2,
    offline_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    training_dataset_pb2,
    training_dataset_pb2_grpc,
)
from foresight.tables import decode_table, encode_table
from foresight.trainer.v1 import (
    batch_prediction_pb2,
    batch_prediction_pb2_grpc,
    flywheel_pb2,
    flywheel_pb2_grpc,
    model_registry_pb2,
    model_registry_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from foresight.types.v1.types_pb2 import VersionRef
from foresight.wire import encode_field, encode_instant, encode_view
from services.runtime.boundary import Boundary
from services.runtime.channel import open_channel
from services.runtime.metrics import Metrics
from services.trainer import models
from services.trainer.executor import WorkerExecutor
from services.trainer.feature_store import Thing, ThingKind
from services.trainer.feature_store_client import FeatureStoreClient
from services.trainer.servicer import (
    BatchPredictionServicer,
    FlywheelServicer,
    ModelRegistryServicer,
    TrainingServicer,
)
from services.trainer.watch import DeploymentWatch
from tests.conftest import MakeDatabase
from tests.integration.trainer.rig import NOW, VIEW, MemoryStore, flights, running_trainer, schedule

EVENT_TIME = NOW - timedelta(hours=6)


class Datasets(training_dataset_pb2_grpc.TrainingDatasetServiceServicer):
    """Training datasets of a MemoryStore."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def GetTrainingDataset(self, request: Any, context: Any) -> training_dataset_pb2.GetTrainingDatasetResponse:
        manifest = await self._store.manifest(request.dataset_id)
        dataset = training_dataset_pb2.TrainingDataset(
            id=manifest.id,
            view=VersionRef(name=manifest.view.name, version=manifest.view.version),
            features=[encode_field(f) for f in manifest.features],
            label=encode_field(manifest.label),
        )
        return training_dataset_pb2.GetTrainingDatasetResponse(dataset=dataset)

    async def ReadTrainingDataset(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for chunk in encode_table(await self._store.dataset(request.dataset_id, request.split)):
            yield training_dataset_pb2.ReadTrainingDatasetResponse(arrow=chunk)


class Offline(offline_pb2_grpc.OfflineFeatureServiceServicer):
    """The offline service over a MemoryStore."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def ReadFeatures(self, request: Any, context: Any) -> AsyncIterator[Any]:
        query = request.query
        assert query.latest_only
        start, end = (t.ToDatetime(tzinfo=NOW.tzinfo) for t in (query.from_event_time, query.to_event_time))
        table = await self._store.latest_rows(models.VersionRef(query.group.name), start, end)
        for chunk in encode_table(table):
            yield offline_pb2.ReadFeaturesResponse(arrow=chunk)

    async def ReadAsOf(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        received = [request async for request in requests]
        assert [r.HasField("header") for r in received] == [True] + [False] * (len(received) - 1)
        spine = decode_table(r.arrow for r in received)
        assert set(spine["event_time"].to_pylist()) == {EVENT_TIME}
        for chunk in encode_table(await self._store.as_of(models.VersionRef("delays", 1), spine)):
            yield offline_pb2.ReadAsOfResponse(arrow=chunk)


class Uses(lineage_pb2_grpc.LineageServiceServicer):
    """The declarations of a MemoryStore."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def DeclareUses(self, request: Any, context: Any) -> lineage_pb2.DeclareUsesResponse:
        await self._store.declare(_thing(request.user), [_thing(thing) for thing in request.used])
        return lineage_pb2.DeclareUsesResponse()


def _thing(message: lineage_pb2.Thing) -> Thing:
    kind = lineage_pb2.ThingKind.Name(message.kind).removeprefix("THING_KIND_")
    return Thing(ThingKind[kind], message.name, message.version)


class Views(registry_pb2_grpc.FeatureRegistryServiceServicer):
    """The one view."""

    async def GetFeatureView(self, request: Any, context: Any) -> registry_pb2.GetFeatureViewResponse:
        return registry_pb2.GetFeatureViewResponse(view=encode_view(VIEW))


@contextlib.asynccontextmanager
async def _serving(address: str) -> AsyncIterator[grpc.aio.Server]:
    server = grpc.aio.server(interceptors=[Boundary(Metrics("test"))])
    server.add_insecure_port(address)
    yield server
    await server.stop(0)


@pytest_asyncio.fixture
async def channel(
    postgres_url: MakeDatabase, tmp_path: Path, executor: WorkerExecutor
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a trainer that reads from a feature store over gRPC."""
    folder = Path(tempfile.mkdtemp(prefix="fs-tr-"))
    store = MemoryStore(schedule=schedule(7))
    store.add("jan", flights(1))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        upstream = await stack.enter_async_context(_serving(f"unix:{folder}/store.sock"))
        # They have the methods that the trainer calls, and no others.
        offline_pb2_grpc.add_OfflineFeatureServiceServicer_to_server(Offline(store), upstream)  # type: ignore[abstract]
        training_dataset_pb2_grpc.add_TrainingDatasetServiceServicer_to_server(Datasets(store), upstream)  # type: ignore[abstract]
        registry_pb2_grpc.add_FeatureRegistryServiceServicer_to_server(Views(), upstream)  # type: ignore[abstract]
        lineage_pb2_grpc.add_LineageServiceServicer_to_server(Uses(store), upstream)  # type: ignore[abstract]
        await upstream.start()
        client = FeatureStoreClient(await stack.enter_async_context(open_channel(f"unix:{folder}/store.sock")))
        parts = await stack.enter_async_context(running_trainer(postgres_url("trainer"), tmp_path, executor, client))
        server = await stack.enter_async_context(_serving(f"unix:{folder}/trainer.sock"))
        watch = DeploymentWatch(parts.registry, stopping=asyncio.Event())
        training_pb2_grpc.add_TrainingServiceServicer_to_server(
            TrainingServicer(parts.training, parts.evaluation), server
        )
        model_registry_pb2_grpc.add_ModelRegistryServiceServicer_to_server(
            ModelRegistryServicer(parts.registry, watch, parts.artifacts), server
        )
        batch_prediction_pb2_grpc.add_BatchPredictionServiceServicer_to_server(
            BatchPredictionServicer(parts.batch), server
        )
        flywheel_pb2_grpc.add_FlywheelServiceServicer_to_server(
            FlywheelServicer(parts.flywheel, parts.registry), server
        )
        await server.start()
        yield await stack.enter_async_context(open_channel(f"unix:{folder}/trainer.sock"))


def _train(dataset_id: str, depth: int) -> training_pb2.TrainRequest:
    parameter = training_pb2.Parameter(name="max_depth", value=training_pb2.ParameterValue(int_value=depth))
    model = training_pb2.Estimator(class_name="sklearn.tree.DecisionTreeClassifier", parameters=[parameter])
    columns = training_pb2.ParameterList(values=[training_pb2.ParameterValue(string_value="wind")])
    part = [
        training_pb2.ParameterValue(string_value="fill"),
        training_pb2.ParameterValue(estimator_value=training_pb2.Estimator(class_name="sklearn.impute.SimpleImputer")),
        training_pb2.ParameterValue(list_value=columns),
    ]
    transformers = [_tuple(*part)]
    prepare = training_pb2.Estimator(
        class_name="sklearn.compose.ColumnTransformer", parameters=[_listed("transformers", transformers)]
    )
    steps = [
        _tuple(training_pb2.ParameterValue(string_value=name), training_pb2.ParameterValue(estimator_value=step))
        for name, step in (("prepare", prepare), ("model", model))
    ]
    pipeline = training_pb2.Estimator(class_name="sklearn.pipeline.Pipeline", parameters=[_listed("steps", steps)])
    return training_pb2.TrainRequest(
        model="late",
        train=[training_pb2.DatasetSelection(dataset_id=dataset_id, split="train")],
        test=[training_pb2.DatasetSelection(dataset_id=dataset_id, split="test")],
        pipeline=pipeline,
    )


def _tuple(*values: training_pb2.ParameterValue) -> training_pb2.ParameterValue:
    return training_pb2.ParameterValue(tuple_value=training_pb2.ParameterList(values=values))


def _listed(name: str, values: list[training_pb2.ParameterValue]) -> training_pb2.Parameter:
    listed = training_pb2.ParameterValue(list_value=training_pb2.ParameterList(values=values))
    return training_pb2.Parameter(name=name, value=listed)


async def test_train_deploy_judge_and_score_over_the_wire(channel: grpc.aio.Channel) -> None:
    training: Any = training_pb2_grpc.TrainingServiceStub(channel)
    registry: Any = model_registry_pb2_grpc.ModelRegistryServiceStub(channel)
    flywheel: Any = flywheel_pb2_grpc.FlywheelServiceStub(channel)
    batch: Any = batch_prediction_pb2_grpc.BatchPredictionServiceStub(channel)

    events = [event async for event in training.Train(_train("jan", depth=1))]
    assert [e.WhichOneof("event") for e in events] == ["progress"] * (len(events) - 1) + ["version"]
    first = events[-1].version
    assert [f.name for f in first.inputs] == ["wind"]
    assert [f.name for f in first.outputs] == ["probability", "label"]
    assert list(first.classes.bool_values.values) == [False, True]
    second = [event async for event in training.Train(_train("jan", depth=4))][-1].version
    assert (first.model.version, second.model.version) == (1, 2)

    request = model_registry_pb2.SetDeploymentRequest(name="delays", model=first.model)
    deployment = (await registry.SetDeployment(request)).deployment
    watch = registry.WatchDeployments(model_registry_pb2.WatchDeploymentsRequest())
    assert [d.etag for d in (await watch.read()).deployments] == [deployment.etag]
    download = registry.DownloadArtifact(model_registry_pb2.DownloadArtifactRequest(sha256=first.artifact_sha256))
    assert sum([len(part.chunk) async for part in download]) == first.artifact_bytes

    dataset = training_pb2.DatasetSelection(dataset_id="jan", split="test")
    judge = flywheel_pb2.JudgeChallengerRequest(
        deployment="delays",
        challenger=second.model,
        references=[first.model],
        dataset=dataset,
        metric="log_loss",
        judged_at=encode_instant(NOW),
    )
    decision = (await flywheel.JudgeChallenger(judge)).decision
    assert [m.model.version for m in decision.models] == [1, 2, 1]
    assert (await flywheel.ListDecisions(flywheel_pb2.ListDecisionsRequest())).decisions == [decision]
    if decision.promoted:
        assert [d.model.version for d in (await watch.read()).deployments] == [2]
    watch.cancel()
    evaluate = training_pb2.EvaluateRequest(models=[first.model, second.model], dataset=dataset)
    measured = (await training.Evaluate(evaluate)).models
    assert measured[0].metrics == decision.models[0].metrics

    run = batch_prediction_pb2.RunBatchPredictionRequest(
        deployment="delays",
        rows=batch_prediction_pb2.ScoringRows(
            group=VersionRef(name="schedule"),
            from_event_time=encode_instant(NOW),
            to_event_time=encode_instant(NOW + timedelta(days=1)),
        ),
        event_time=encode_instant(EVENT_TIME),
        sink_table="tomorrow",
    )
    finished = [event async for event in batch.RunBatchPrediction(run)][-1].run
    assert finished.rows == 7
    assert (await batch.ListBatchRuns(batch_prediction_pb2.ListBatchRunsRequest())).runs == [finished]


async def test_what_the_feature_store_does_not_have_is_named_in_the_error(channel: grpc.aio.Channel) -> None:
    training: Any = training_pb2_grpc.TrainingServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [event async for event in training.Train(_train("nowhere", depth=1))]
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "no training dataset nowhere"
