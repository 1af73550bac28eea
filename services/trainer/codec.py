"""The trainer's values on the wire. Decoding checks everything that does not depend on state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from foresight.trainer.v1 import batch_prediction_pb2, flywheel_pb2, model_registry_pb2, training_pb2
from foresight.types.v1 import types_pb2
from foresight.values import InvalidValue, check_name
from foresight.values.errors import quoted
from foresight.values.names import check_text
from foresight.wire import decode_instant, encode_column, encode_field, encode_instant
from services.trainer import specification
from services.trainer.arms import ARMS_MAX, SALT_BYTES_MAX, WantedArm, check_arms
from services.trainer.batch import BatchJob
from services.trainer.measures import METRICS
from services.trainer.models import (
    Arm,
    BatchRun,
    DatasetSelection,
    Decision,
    Deployment,
    Judgement,
    ModelMetrics,
    ModelVersion,
    VersionRef,
)
from services.trainer.progress import Progress
from services.trainer.specification import VALUES_MAX, Estimator, Listed, Value
from services.trainer.training import TrainingJob

TRAIN_MAX = TEST_MAX = 16
MODELS_MAX = 16
REFERENCES_MAX = 14
RUN_ID_BYTES_MAX = 128
ETAG_BYTES_MAX = 128
# Answers with lists stay below the message size; what does not fit is left out at the end.
LIST_BYTES_MAX = 8 << 20


def decode_ref(message: types_pb2.VersionRef, field: str, *, latest: bool = True) -> VersionRef:
    """The reference; `latest` says whether version 0 may be asked for."""
    try:
        ref = VersionRef(message.name, message.version)
    except InvalidValue as error:
        raise error.within(field) from None
    if not latest and not ref.version:
        raise InvalidValue(f"{field}.version", "is required")
    return ref


def decode_selection(message: training_pb2.DatasetSelection, field: str) -> DatasetSelection:
    """The dataset, or split of one."""
    try:
        return DatasetSelection(message.dataset_id, message.split)
    except InvalidValue as error:
        raise error.within(field) from None


def decode_training(request: training_pb2.TrainRequest) -> TrainingJob:
    """The training that is asked for."""
    _check_count(len(request.train), "train", 1, TRAIN_MAX)
    _check_count(len(request.test), "test", 0, TEST_MAX)
    if not request.HasField("pipeline"):
        raise InvalidValue("pipeline", "is required")
    job = TrainingJob(
        model=check_name(request.model, "model"),
        description=check_text(request.description, "description"),
        train=tuple(decode_selection(s, f"train[{i}]") for i, s in enumerate(request.train)),
        test=tuple(decode_selection(s, f"test[{i}]") for i, s in enumerate(request.test)),
        pipeline=_EstimatorDecoder().estimator(request.pipeline, "pipeline"),
    )
    specification.check(job.pipeline)
    return job


def decode_models(messages: Iterable[types_pb2.VersionRef], field: str, least: int, most: int) -> list[VersionRef]:
    """References to models; version 0 is the latest."""
    refs = [decode_ref(message, f"{field}[{i}]") for i, message in enumerate(messages)]
    _check_count(len(refs), field, least, most)
    return refs


def decode_judgement(request: flywheel_pb2.JudgeChallengerRequest) -> Judgement:
    """The question that is asked."""
    if request.metric not in METRICS:
        raise InvalidValue("metric", f"{quoted(request.metric)} is none of {', '.join(sorted(METRICS))}")
    if not math.isfinite(request.margin) or request.margin < 0:
        raise InvalidValue("margin", "is not a number of at least 0")
    if not request.HasField("judged_at"):
        raise InvalidValue("judged_at", "is required")
    return Judgement(
        deployment=check_name(request.deployment, "deployment"),
        challenger=decode_ref(request.challenger, "challenger", latest=False),
        dataset=decode_selection(request.dataset, "dataset"),
        metric=request.metric,
        margin=request.margin,
        judged_at=decode_instant(request.judged_at, "judged_at"),
    )


def decode_batch(request: batch_prediction_pb2.RunBatchPredictionRequest) -> BatchJob:
    """The run that is asked for."""
    rows = request.rows
    for present, field in (
        (rows.HasField("from_event_time"), "rows.from_event_time"),
        (rows.HasField("to_event_time"), "rows.to_event_time"),
        (request.HasField("event_time"), "event_time"),
    ):
        if not present:
            raise InvalidValue(field, "is required")
    start = decode_instant(rows.from_event_time, "rows.from_event_time")
    end = decode_instant(rows.to_event_time, "rows.to_event_time")
    if end <= start:
        raise InvalidValue("rows.to_event_time", "is not after rows.from_event_time")
    return BatchJob(
        deployment=check_name(request.deployment, "deployment"),
        group=decode_ref(rows.group, "rows.group"),
        start=start,
        end=end,
        event_time=decode_instant(request.event_time),
        sink_table=check_name(request.sink_table, "sink_table"),
        run_id=check_text(request.run_id, "run_id", RUN_ID_BYTES_MAX),
    )


def decode_optional_name(name: str, field: str) -> str:
    """A name, or '' for none."""
    return check_name(name, field) if name else ""


def decode_etag(etag: str) -> str:
    """An etag, or '' for none."""
    return check_text(etag, "etag", ETAG_BYTES_MAX)


def decode_wanted(request: model_registry_pb2.SetDeploymentRequest) -> VersionRef | tuple[WantedArm, ...]:
    """What a deployment is to serve: a version alone, or arms."""
    if not request.arms:
        return decode_ref(request.model, "model")
    if request.HasField("model"):
        raise InvalidValue("model", "goes without arms")
    if len(request.arms) > ARMS_MAX:
        raise InvalidValue("arms", f"are {len(request.arms)}, not 1 to {ARMS_MAX}")
    arms = []
    for i, message in enumerate(request.arms):
        model = decode_ref(message.model, f"arms[{i}].model")
        try:
            arms.append(WantedArm(message.name, model, message.weight, message.shadow))
        except InvalidValue as error:
            raise error.within(f"arms[{i}]") from None
    return check_arms(arms)


def decode_salt(salt: str) -> str:
    """A salt, or '' for none."""
    return check_text(salt, "salt", SALT_BYTES_MAX)


def encode_ref(ref: VersionRef) -> types_pb2.VersionRef:
    """The message of a reference."""
    return types_pb2.VersionRef(name=ref.name, version=ref.version)


def encode_version(version: ModelVersion) -> model_registry_pb2.ModelVersion:
    """The message of a version."""
    signature, quality, lineage = version.signature, version.quality, version.lineage
    return model_registry_pb2.ModelVersion(
        model=encode_ref(version.ref),
        description=version.description,
        view=encode_ref(version.view),
        inputs=[encode_field(f) for f in signature.inputs],
        outputs=[encode_field(f) for f in signature.outputs],
        task=model_registry_pb2.ModelTask.ValueType(int(signature.task)),
        classes=None if signature.classes is None else encode_column(signature.classes),
        artifact_sha256=version.artifact_sha256,
        artifact_bytes=version.artifact_bytes,
        train_dataset_ids=[s.dataset_id for s in lineage.train],
        test_dataset_ids=[s.dataset_id for s in lineage.test],
        train_rows=quality.train_rows,
        metrics=_encode_metrics(quality.metrics),
        parity_max_difference=quality.parity_max_difference,
        parity_rows=quality.parity_rows,
        batch_invariant=quality.batch_invariant,
        aliases=version.aliases,
        created_at=encode_instant(version.created_at),
        sklearn_version=lineage.sklearn_version,
    )


def encode_versions(versions: Iterable[ModelVersion]) -> Iterator[model_registry_pb2.ModelVersion]:
    """The messages of versions, as many as fit into LIST_BYTES_MAX."""
    size = 0
    for version in versions:
        message = encode_version(version)
        size += message.ByteSize()
        if size > LIST_BYTES_MAX:
            return
        yield message


def encode_deployment(deployment: Deployment) -> model_registry_pb2.Deployment:
    """The message of a deployment."""
    return model_registry_pb2.Deployment(
        name=deployment.name,
        model=encode_ref(deployment.version.ref),
        view=encode_ref(deployment.version.view),
        etag=deployment.etag,
        updated_at=encode_instant(deployment.updated_at),
        version=encode_version(deployment.version),
        arms=[_encode_arm(arm) for arm in deployment.arms],
        salt=deployment.salt,
    )


def _encode_arm(arm: Arm) -> model_registry_pb2.Arm:
    return model_registry_pb2.Arm(
        name=arm.name,
        model=encode_ref(arm.version.ref),
        weight=arm.weight,
        shadow=arm.shadow,
        version=encode_version(arm.version),
    )


def encode_training_event(event: Progress | ModelVersion) -> training_pb2.TrainResponse:
    """The message of a training's step or result."""
    if isinstance(event, Progress):
        return training_pb2.TrainResponse(progress=training_pb2.TrainingProgress(stage=event.stage, rows=event.rows))
    return training_pb2.TrainResponse(version=encode_version(event))


def encode_model_metrics(measured: Iterable[ModelMetrics]) -> list[training_pb2.ModelMetrics]:
    """The messages of measured models."""
    return [training_pb2.ModelMetrics(model=encode_ref(m.model), metrics=_encode_metrics(m.metrics)) for m in measured]


def encode_decision(decision: Decision) -> flywheel_pb2.Decision:
    """The message of a decision."""
    judgement = decision.judgement
    return flywheel_pb2.Decision(
        id=decision.id,
        deployment=judgement.deployment,
        champion=encode_ref(decision.champion),
        challenger=encode_ref(judgement.challenger),
        promoted=decision.promoted,
        metric=judgement.metric,
        margin=judgement.margin,
        models=encode_model_metrics(decision.models),
        rows=decision.rows,
        dataset_id=judgement.dataset.dataset_id,
        judged_at=encode_instant(judgement.judged_at),
        created_at=encode_instant(decision.created_at),
    )


def encode_run(run: BatchRun) -> batch_prediction_pb2.BatchRun:
    """The message of a batch run."""
    return batch_prediction_pb2.BatchRun(
        run_id=run.run_id,
        deployment=run.deployment,
        model=encode_ref(run.model),
        sink_table=run.sink_table,
        event_time=encode_instant(run.event_time),
        rows=run.rows,
        finished_at=encode_instant(run.finished_at),
        duration_ms=run.duration_ms,
    )


def encode_batch_event(event: Progress | BatchRun) -> batch_prediction_pb2.RunBatchPredictionResponse:
    """The message of a batch run's step or result."""
    if isinstance(event, Progress):
        progress = batch_prediction_pb2.BatchProgress(stage=event.stage, rows=event.rows)
        return batch_prediction_pb2.RunBatchPredictionResponse(progress=progress)
    return batch_prediction_pb2.RunBatchPredictionResponse(run=encode_run(event))


class _EstimatorDecoder:
    """Decodes one specification; its depth is bounded by protobuf, its size here, before anything is built of it."""

    def __init__(self) -> None:
        self._count = 0

    def estimator(self, message: training_pb2.Estimator, path: str) -> Estimator:
        self._one_more()
        parameters = tuple((p.name, self.value(p.value, f"{path}.{p.name[:63]}")) for p in message.parameters)
        return Estimator(message.class_name, parameters)

    def value(self, message: training_pb2.ParameterValue, path: str) -> Value:
        arm = message.WhichOneof("value")
        match arm:
            case None:
                raise InvalidValue(path, "has no value")
            case "null_value":
                if not message.null_value:
                    raise InvalidValue(path, "null_value is false; it says None, or is not set")
                found: Value = None
            case "list_value":
                return Listed(self._values(message.list_value, path))
            case "tuple_value":
                return self._values(message.tuple_value, path)
            case "estimator_value":
                return self.estimator(message.estimator_value, path)
            case _:
                found = getattr(message, arm)
        self._one_more()
        return found

    def _values(self, message: training_pb2.ParameterList, path: str) -> tuple[Value, ...]:
        self._one_more()
        return tuple(self.value(v, f"{path}[{i}]") for i, v in enumerate(message.values))

    def _one_more(self) -> None:
        self._count += 1
        if self._count > VALUES_MAX:
            raise InvalidValue("pipeline", f"has more than {VALUES_MAX} values")


def _encode_metrics(metrics: Any) -> list[model_registry_pb2.Metric]:
    return [model_registry_pb2.Metric(name=name, value=value) for name, value in sorted(metrics.items())]


def _check_count(count: int, field: str, least: int, most: int) -> None:
    if not least <= count <= most:
        raise InvalidValue(field, f"are {count}, not {least} to {most}")
