"""What the trainer answers to bad input, with nothing but the generated stubs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from foresight.trainer.v1 import batch_prediction_pb2 as batch
from foresight.trainer.v1 import (
    batch_prediction_pb2_grpc,
    flywheel_pb2_grpc,
    model_registry_pb2_grpc,
    training_pb2_grpc,
)
from foresight.trainer.v1 import flywheel_pb2 as flywheel
from foresight.trainer.v1 import model_registry_pb2 as registry
from foresight.trainer.v1 import training_pb2 as training
from foresight.types.v1.types_pb2 import VersionRef
from tests.integration.trainer.process import TrainerProcess

Case = tuple[Callable[[Any], Any], str]
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
NOON = Timestamp(seconds=1_767_225_600)
LATER = Timestamp(seconds=1_767_312_000)
BAD_NAMES = (
    "",
    "Late",
    "late model",
    "late\0",
    "läte",
    "l" * 64,
    "log_late",
    "../late",
    'late"; DROP TABLE models; --',
)


def _estimator(class_name: str = "sklearn.linear_model.LogisticRegression", **parameters: Any) -> training.Estimator:
    return training.Estimator(
        class_name=class_name,
        parameters=[training.Parameter(name=n, value=training.ParameterValue(**v)) for n, v in parameters.items()],
    )


def _train(**changes: Any) -> training.TrainRequest:
    request: dict[str, Any] = {
        "model": "late",
        "train": [training.DatasetSelection(dataset_id="d")],
        "pipeline": _estimator(),
    }
    return training.TrainRequest(**(request | changes))


def _judge(**changes: Any) -> flywheel.JudgeChallengerRequest:
    request: dict[str, Any] = {
        "deployment": "delays",
        "challenger": VersionRef(name="late", version=1),
        "dataset": training.DatasetSelection(dataset_id="d"),
        "metric": "log_loss",
        "judged_at": NOON,
    }
    return flywheel.JudgeChallengerRequest(**(request | changes))


def _batch(**changes: Any) -> batch.RunBatchPredictionRequest:
    rows = batch.ScoringRows(group=VersionRef(name="schedule"), from_event_time=NOON, to_event_time=LATER)
    request: dict[str, Any] = {"deployment": "delays", "rows": rows, "event_time": NOON, "sink_table": "tomorrow"}
    return batch.RunBatchPredictionRequest(**(request | changes))


def _nested(depth: int) -> training.ParameterValue:
    value = training.ParameterValue(int_value=1)
    for _ in range(depth):
        value = training.ParameterValue(list_value=training.ParameterList(values=[value]))
    return value


def _details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest]:
    trailing: Any = error.trailing_metadata()
    status = status_pb2.Status.FromString(dict(trailing)["grpc-status-details-bin"])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    return info, bad


def _refused(call: Callable[[], Any]) -> grpc.RpcError:
    """The error of a call that is refused, unary or streamed."""
    with pytest.raises(grpc.RpcError) as caught:
        _finish(call)
    return caught.value


def _finish(call: Callable[[], Any]) -> None:
    answer = call()
    if hasattr(answer, "__iter__"):
        list(answer)


def _expect(call: Callable[[], Any], code: grpc.StatusCode, field: str = "") -> None:
    error: Any = _refused(call)
    assert error.code() is code, error.details()
    info, bad = _details(error)
    assert info.domain == "foresight"
    assert info.reason
    for secret in ("/tmp", "Traceback", "SELECT", "services.", ".sock"):
        assert secret not in error.details()
    if field:
        assert [v.field for v in bad.field_violations] == [field]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_none_are_refused(trainer: TrainerProcess, name: str) -> None:
    stub = model_registry_pb2_grpc.ModelRegistryServiceStub(trainer.channel)
    model = VersionRef(name=name, version=1)
    _expect(lambda: stub.GetModelVersion(registry.GetModelVersionRequest(model=model)), INVALID, "model.name")
    _expect(lambda: stub.GetDeployment(registry.GetDeploymentRequest(name=name)), INVALID, "name")
    good = VersionRef(name="late")
    _expect(lambda: stub.SetDeployment(registry.SetDeploymentRequest(name=name, model=good)), INVALID, "name")
    alias = registry.SetAliasRequest(model=VersionRef(name="late", version=1), alias=name)
    _expect(lambda: stub.SetAlias(alias), INVALID, "alias")
    train = training_pb2_grpc.TrainingServiceStub(trainer.channel)
    _expect(lambda: train.Train(_train(model=name)), INVALID, "model")
    run = batch_prediction_pb2_grpc.BatchPredictionServiceStub(trainer.channel)
    _expect(lambda: run.RunBatchPrediction(_batch(sink_table=name)), INVALID, "sink_table")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (_train(train=[]), "train"),
        (_train(train=[training.DatasetSelection(dataset_id="d")] * 17), "train"),
        (_train(test=[training.DatasetSelection(dataset_id="d", split="rest")]), "test[0].split"),
        (_train(train=[training.DatasetSelection(dataset_id="")]), "train[0].dataset_id"),
        (_train(train=[training.DatasetSelection(dataset_id="d\n")]), "train[0].dataset_id"),
        (_train(pipeline=None), "pipeline"),
        (_train(pipeline=_estimator("os.system")), "pipeline.class_name"),
        (_train(pipeline=_estimator("\x80\x04\x95pickle")), "pipeline.class_name"),
        (_train(pipeline=_estimator(C={})), "pipeline.C"),
        (_train(pipeline=_estimator(C={"float_value": -1.0})), "pipeline"),
        (_train(pipeline=_estimator(nonsense={"int_value": 1})), "pipeline.nonsense"),
        (_train(pipeline=_estimator("sklearn.preprocessing.StandardScaler")), "pipeline"),
        (_train(description="x" * 1_025), "description"),
        (_train(description="e\u0301"), "description"),
    ],
)
def test_trainings_that_cannot_be_are_refused(
    trainer: TrainerProcess, request_: training.TrainRequest, field: str
) -> None:
    stub = training_pb2_grpc.TrainingServiceStub(trainer.channel)
    _expect(lambda: stub.Train(request_), INVALID, field)


def test_a_specification_that_is_too_deep_or_says_things_twice_is_refused(trainer: TrainerProcess) -> None:
    stub = training_pb2_grpc.TrainingServiceStub(trainer.channel)
    for depth in (17, 45):
        deep = training.Estimator(
            class_name="sklearn.linear_model.RidgeCV",
            parameters=[training.Parameter(name="alphas", value=_nested(depth))],
        )
        request = _train(pipeline=deep)
        _expect(functools.partial(stub.Train, request), INVALID)
    twice = _estimator(C={"float_value": 1.0})
    twice.parameters.append(twice.parameters[0])
    _expect(lambda: stub.Train(_train(pipeline=twice)), INVALID, "pipeline.C")


def test_a_good_training_without_a_feature_store_is_unavailable(trainer: TrainerProcess) -> None:
    stub = training_pb2_grpc.TrainingServiceStub(trainer.channel)
    _expect(lambda: stub.Train(_train()), grpc.StatusCode.UNAVAILABLE)


def _deployed(*arms: registry.Arm, **values: Any) -> registry.SetDeploymentRequest:
    return registry.SetDeploymentRequest(name="delays", arms=arms, **values)


def _arm(name: str = "champion", weight: int = 1, **values: Any) -> registry.Arm:
    return registry.Arm(name=name, model=VersionRef(name="late", version=1), weight=weight, **values)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (_deployed(), "model.name"),
        (_deployed(_arm(), model=VersionRef(name="late")), "model"),
        (_deployed(*[_arm(f"a{i}") for i in range(17)]), "arms"),
        (_deployed(_arm(), *[_arm(f"s{i}", 0, shadow=True) for i in range(5)]), "arms"),
        (_deployed(_arm(), _arm("b"), _arm()), "arms[2].name"),
        (_deployed(_arm(), _arm("B b")), "arms[1].name"),
        (_deployed(_arm(weight=10_001)), "arms[0].weight"),
        (_deployed(_arm(), _arm("b", 1, shadow=True)), "arms[1].weight"),
        (_deployed(_arm(weight=0), _arm("b")), "arms[0]"),
        (_deployed(_arm(weight=0, shadow=True), _arm("b")), "arms[0]"),
        (_deployed(registry.Arm(name="a", weight=1)), "arms[0].model.name"),
        (_deployed(_arm(), salt="x" * 65), "salt"),
        (_deployed(_arm(), salt="a\0b"), "salt"),
    ],
)
def test_arms_that_cannot_be_are_refused(
    trainer: TrainerProcess, request_: registry.SetDeploymentRequest, field: str
) -> None:
    stub = model_registry_pb2_grpc.ModelRegistryServiceStub(trainer.channel)
    _expect(lambda: stub.SetDeployment(request_), INVALID, field)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (_judge(challenger=VersionRef(name="late")), "challenger.version"),
        (_judge(metric="luck"), "metric"),
        (_judge(margin=-0.1), "margin"),
        (_judge(margin=float("nan")), "margin"),
        (_judge(judged_at=None), "judged_at"),
        (_judge(judged_at=Timestamp(seconds=10**12)), "judged_at"),
        (_judge(judged_at=Timestamp(nanos=-1)), "judged_at"),
        (_judge(references=[VersionRef(name="late")] * 15), "references"),
        (_judge(references=[VersionRef(name="")]), "references[0].name"),
        (_judge(dataset=None), "dataset.dataset_id"),
        (_judge(deployment=""), "deployment"),
    ],
)
def test_judgements_that_cannot_be_are_refused(
    trainer: TrainerProcess, request_: flywheel.JudgeChallengerRequest, field: str
) -> None:
    stub = flywheel_pb2_grpc.FlywheelServiceStub(trainer.channel)
    _expect(lambda: stub.JudgeChallenger(request_), INVALID, field)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (_batch(event_time=None), "event_time"),
        (_batch(rows=None), "rows.from_event_time"),
        (_batch(rows=batch.ScoringRows(from_event_time=NOON, to_event_time=NOON)), "rows.to_event_time"),
        (_batch(rows=batch.ScoringRows(from_event_time=NOON, to_event_time=LATER)), "rows.group.name"),
        (_batch(run_id="x" * 129), "run_id"),
        (_batch(run_id="a\0b"), "run_id"),
        (_batch(event_time=Timestamp(seconds=10**12)), "event_time"),
    ],
)
def test_batch_runs_that_cannot_be_are_refused(
    trainer: TrainerProcess, request_: batch.RunBatchPredictionRequest, field: str
) -> None:
    stub = batch_prediction_pb2_grpc.BatchPredictionServiceStub(trainer.channel)
    _expect(lambda: stub.RunBatchPrediction(request_), INVALID, field)


def test_what_does_not_exist_is_not_found(trainer: TrainerProcess) -> None:
    stub = model_registry_pb2_grpc.ModelRegistryServiceStub(trainer.channel)
    late = VersionRef(name="late", version=1)
    _expect(lambda: stub.GetModelVersion(registry.GetModelVersionRequest(model=late)), NOT_FOUND)
    _expect(lambda: stub.SetAlias(registry.SetAliasRequest(model=late, alias="best")), NOT_FOUND)
    _expect(lambda: stub.SetDeployment(registry.SetDeploymentRequest(name="delays", model=late)), NOT_FOUND)
    _expect(lambda: stub.GetDeployment(registry.GetDeploymentRequest(name="delays")), NOT_FOUND)
    _expect(lambda: stub.DownloadArtifact(registry.DownloadArtifactRequest(sha256="0" * 64)), NOT_FOUND)
    judge = flywheel_pb2_grpc.FlywheelServiceStub(trainer.channel)
    _expect(lambda: judge.JudgeChallenger(_judge()), NOT_FOUND)
    run = batch_prediction_pb2_grpc.BatchPredictionServiceStub(trainer.channel)
    _expect(lambda: run.RunBatchPrediction(_batch()), NOT_FOUND)
    train = training_pb2_grpc.TrainingServiceStub(trainer.channel)
    evaluate = training.EvaluateRequest(models=[late], dataset=training.DatasetSelection(dataset_id="d"))
    _expect(lambda: train.Evaluate(evaluate), NOT_FOUND)


@pytest.mark.parametrize("sha256", ["", "../../../etc/passwd", "F" * 64, "http://example.org/model.onnx", "0" * 65])
def test_an_artifact_is_asked_for_by_digest_only(trainer: TrainerProcess, sha256: str) -> None:
    stub = model_registry_pb2_grpc.ModelRegistryServiceStub(trainer.channel)
    _expect(lambda: stub.DownloadArtifact(registry.DownloadArtifactRequest(sha256=sha256)), INVALID, "sha256")


def test_an_alias_goes_without_a_version(trainer: TrainerProcess) -> None:
    stub = model_registry_pb2_grpc.ModelRegistryServiceStub(trainer.channel)
    both = registry.GetModelVersionRequest(model=VersionRef(name="late", version=1), alias="champion")
    _expect(lambda: stub.GetModelVersion(both), INVALID, "alias")


def test_lists_are_empty_where_there_is_nothing(trainer: TrainerProcess) -> None:
    models = model_registry_pb2_grpc.ModelRegistryServiceStub(trainer.channel)
    assert not models.ListModelVersions(registry.ListModelVersionsRequest()).versions
    assert not models.ListDeployments(registry.ListDeploymentsRequest()).deployments
    judge = flywheel_pb2_grpc.FlywheelServiceStub(trainer.channel)
    assert not judge.ListDecisions(flywheel.ListDecisionsRequest()).decisions
    runs = batch_prediction_pb2_grpc.BatchPredictionServiceStub(trainer.channel)
    assert not runs.ListBatchRuns(batch.ListBatchRunsRequest()).runs


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xc3\x28"])
@pytest.mark.parametrize(
    "method",
    ["TrainingService/Train", "ModelRegistryService/GetModelVersion", "FlywheelService/JudgeChallenger"],
)
def test_bytes_that_are_no_message_are_refused(trainer: TrainerProcess, method: str, data: bytes) -> None:
    call: Any = trainer.channel.unary_stream(f"/foresight.trainer.v1.{method}")
    _expect(lambda: call(data), INVALID)
