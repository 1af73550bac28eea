"""Datasets, models, deployments and batch runs: what each call sends, and what it makes of the answer."""

from typing import Any

import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from foresight.client import (
    Arm,
    Client,
    DataLoss,
    DataType,
    FailedPrecondition,
    InvalidValue,
    Logged,
    TrainingDataset,
)
from foresight.client.estimators import decode_estimator
from foresight.feature_store.v1 import training_dataset_pb2
from foresight.predictor.v1 import prediction_pb2
from foresight.tables import decode_table
from foresight.trainer.v1 import batch_prediction_pb2, model_registry_pb2, training_pb2
from foresight.types.v1 import types_pb2
from foresight.values import Column
from foresight.wire import encode_column, encode_instant
from tests.wire.client.conftest import Pauses
from tests.wire.client.delays import HOUR, LATE, NOON, described_view, ref
from tests.wire.client.fake_foresight import FakeForesight, tables


def _dataset(**changes: Any) -> training_dataset_pb2.TrainingDataset:
    return training_dataset_pb2.TrainingDataset(
        id="d1",
        name="spring",
        view=ref("delays", 3),
        rows=3,
        splits=[
            training_dataset_pb2.SplitRows(split="train", rows=2),
            training_dataset_pb2.SplitRows(split="test", rows=1),
        ],
        label=types_pb2.Field(name="late", type=types_pb2.DATA_TYPE_BOOL),
        created_at=encode_instant(NOON),
        **changes,
    )


def test_a_dataset_is_made_of_a_spine_or_of_logged_predictions(client: Client, fake: FakeForesight) -> None:
    fake.on("GetFeatureView", described_view())
    logged = Logged(to_event_time=NOON, observed_by=NOON + HOUR, deployment="delays", from_event_time=NOON - HOUR)
    message = training_dataset_pb2.LoggedPredictions(
        deployment="delays",
        from_event_time=encode_instant(NOON - HOUR),
        to_event_time=encode_instant(NOON),
        observed_by=encode_instant(NOON + HOUR),
    )
    fake.on(
        "CreateTrainingDataset", training_dataset_pb2.CreateTrainingDatasetResponse(dataset=_dataset(logged=message))
    )
    dataset = client.create_training_dataset("spring", "delays", logged=logged)
    assert (dataset.id, dataset.splits, dataset.label, dataset.logged) == ("d1", {"train": 2, "test": 1}, LATE, logged)
    spine = [{"origin": "JFK", "event_time": NOON, "hour": 17, "late": True}]
    client.create_training_dataset("spring", "delays", spine, known_by=True, test_from=NOON)
    of_log, of_spine = fake.requests("CreateTrainingDataset")
    assert len(of_log) == 1
    assert of_log[0].header.logged == message
    assert of_spine[0].header == training_dataset_pb2.TrainingDatasetHeader(
        name="spring", view=ref("delays", 3), known_by=True, test_from=encode_instant(NOON)
    )
    assert decode_table([tables(of_spine)]).to_pylist() == spine
    for arguments in ({}, {"spine": spine, "logged": logged}):
        with pytest.raises(InvalidValue, match="give one of them"):
            client.create_training_dataset("spring", "delays", **arguments)  # type: ignore[arg-type]


@pytest.fixture
def dataset(client: Client, fake: FakeForesight) -> TrainingDataset:
    """A dataset that the fake describes."""
    fake.on("GetTrainingDataset", training_dataset_pb2.GetTrainingDatasetResponse(dataset=_dataset()))
    return client.training_dataset("d1")


def test_datasets_are_selected_alone_or_with_a_split(
    client: Client, fake: FakeForesight, dataset: TrainingDataset
) -> None:
    done = training_pb2.TrainResponse(version=model_registry_pb2.ModelVersion(model=ref("delays", 1)))
    fake.on("Train", lambda request: [done])
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.5))
    for chosen in (dataset, [dataset], "d1", (dataset, ""), [("d1", "")]):
        client.train("delays", pipeline, chosen)
    client.train("delays", pipeline, train=[(dataset, "train"), "d2"], test=(dataset, "test"), description="first")
    *alone, both = fake.requests("Train")
    assert all(request.train == [training_pb2.DatasetSelection(dataset_id="d1")] for request in alone)
    assert [(s.dataset_id, s.split) for s in both.train] == [("d1", "train"), ("d2", "")]
    assert [(s.dataset_id, s.split) for s in both.test] == [("d1", "test")]
    assert both.description == "first"
    assert decode_estimator(both.pipeline).class_name == "sklearn.pipeline.Pipeline"


def test_a_training_without_a_version_at_its_end_is_an_error(client: Client, fake: FakeForesight) -> None:
    fake.on("Train", lambda request: [])
    with pytest.raises(DataLoss):
        client.train("delays", LogisticRegression(), "d1")


def test_a_model_version_is_described_in_plain_values(client: Client, fake: FakeForesight) -> None:
    classes = Column.build("classes", DataType.BOOL, [False, True])
    version = model_registry_pb2.ModelVersion(
        model=ref("delays", 2),
        view=ref("delays", 3),
        task=model_registry_pb2.MODEL_TASK_BINARY_CLASSIFICATION,
        classes=encode_column(classes),
        metrics=[model_registry_pb2.Metric(name="roc_auc", value=0.7)],
        aliases=["champion"],
        created_at=encode_instant(NOON),
    )
    fake.on("ListModelVersions", model_registry_pb2.ListModelVersionsResponse(versions=[version]))
    fake.on("GetModelVersion", model_registry_pb2.GetModelVersionResponse(version=version))
    fake.on("SetAlias", model_registry_pb2.SetAliasResponse(version=version))
    [found] = client.models("delays")
    assert (found.task, found.classes, found.metrics, found.aliases) == (
        "binary_classification",
        (False, True),
        {"roc_auc": 0.7},
        ("champion",),
    )
    assert str(found.ref) == "delays v2"
    assert client.model("delays", alias="champion") == found == client.set_alias("delays", 2, "champion")


def test_evaluating_names_the_versions_in_order(client: Client, fake: FakeForesight, dataset: TrainingDataset) -> None:
    measured = training_pb2.ModelMetrics(
        model=ref("delays", 1), metrics=[model_registry_pb2.Metric(name="brier", value=0.2)]
    )
    fake.on("Evaluate", training_pb2.EvaluateResponse(models=[measured], rows=1))
    [found] = client.evaluate([("delays", 1)], dataset, "test")
    assert (found.model, found.metrics) == (("delays", 1), {"brier": 0.2})
    [request] = fake.requests("Evaluate")
    assert request.dataset == training_pb2.DatasetSelection(dataset_id="d1", split="test")


def _deployed(version: int) -> model_registry_pb2.SetDeploymentResponse:
    deployment = model_registry_pb2.Deployment(name="delays", model=ref("delays", version), etag="e")
    return model_registry_pb2.SetDeploymentResponse(deployment=deployment)


def _serving(version: int, ready: bool, cause: str = "") -> prediction_pb2.ListServingResponse:
    serving = prediction_pb2.ServingDeployment(
        deployment="delays", model=ref("delays", version), ready=ready, cause=cause, etag="e"
    )
    return prediction_pb2.ListServingResponse(deployments=[serving])


def test_deploying_waits_until_the_predictor_serves_that_version(
    client: Client, fake: FakeForesight, pauses: Pauses
) -> None:
    fake.on("SetDeployment", _deployed(2))
    fake.on(
        "ListServing", prediction_pb2.ListServingResponse(), _serving(1, True), _serving(2, False), _serving(2, True)
    )
    assert client.deploy("delays", "delays").model == ("delays", 2)
    assert len(fake.requests("ListServing")) == 4
    client.deploy("delays", "delays", 2, wait_s=0)
    assert len(fake.requests("ListServing")) == 4


def test_deploying_says_why_a_version_is_not_served(client: Client, fake: FakeForesight) -> None:
    fake.on("SetDeployment", _deployed(2))
    fake.on("ListServing", _serving(1, False, "the transform rush_hour differs"))
    with pytest.raises(FailedPrecondition, match="the transform rush_hour differs") as caught:
        client.deploy("delays", "delays", wait_s=0.001)
    assert caught.value.reason == "MODEL_NOT_READY"


def test_deploying_waits_for_every_replica(client: Client, fake: FakeForesight) -> None:
    fake.on("SetDeployment", _deployed(2))
    fake.on_processes("ListServing", {"one": _serving(2, True), "two": _serving(1, True, "it is being loaded")})
    with pytest.raises(FailedPrecondition, match="it is being loaded"):
        client.deploy("delays", "delays", wait_s=0.001)
    fake.on_processes("ListServing", {"one": _serving(2, True), "two": _serving(2, True)})
    assert client.deploy("delays", "delays").model == ("delays", 2)


def test_deploying_arms_waits_until_these_arms_serve(client: Client, fake: FakeForesight, pauses: Pauses) -> None:
    """The same first version with other arms is another deployment: the etag tells."""
    deployed = _deployed(2)
    deployed.deployment.arms.add(name="champion", model=ref("delays", 2), weight=90)
    deployed.deployment.arms.add(name="next", model=ref("delays", 3), shadow=True)
    deployed.deployment.salt = "spring"
    fake.on("SetDeployment", deployed)
    before = _serving(2, True)
    before.deployments[0].etag = "before"
    fake.on("ListServing", before, _serving(2, True))
    arms = [Arm("champion", "delays", 2, weight=90), Arm("next", "delays", 3, shadow=True)]
    made = client.deploy("delays", arms=arms, salt="spring")
    assert (list(made.arms), made.salt) == (arms, "spring")
    assert len(fake.requests("ListServing")) == 2
    for wrong in ({}, {"model": "delays", "arms": arms}, {"arms": [Arm("a", "delays", weight=10_001)]}):
        with pytest.raises(InvalidValue):
            client.deploy("delays", **wrong)
    assert len(fake.requests("SetDeployment")) == 1


def test_a_batch_run_gets_an_id_of_its_own_and_says_how_far_it_is(client: Client, fake: FakeForesight) -> None:
    kind = batch_prediction_pb2.RunBatchPredictionResponse
    scoring = kind(progress=batch_prediction_pb2.BatchProgress(stage="scoring", rows=5))
    fake.on("RunBatchPrediction", lambda r: [scoring, kind(run=batch_prediction_pb2.BatchRun(run_id=r.run_id, rows=5))])
    heard: list[tuple[str, int]] = []
    run = client.batch(
        "delays",
        "schedule",
        from_event_time=NOON,
        to_event_time=NOON + HOUR,
        event_time=NOON,
        sink_table="tomorrow",
        progress=lambda stage, rows: heard.append((stage, rows)),
    )
    assert (len(run.run_id), run.rows, heard) == (36, 5, [("scoring", 5)])
    fake.on(
        "ListBatchRuns", batch_prediction_pb2.ListBatchRunsResponse(runs=[batch_prediction_pb2.BatchRun(run_id="r")])
    )
    assert [found.run_id for found in client.batch_runs()] == ["r"]
