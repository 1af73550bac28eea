"""Models: train, measure, register, deploy, and judge challengers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from foresight.client.connection import TRAIN_S, Calls, Connection
from foresight.client.datasets import TrainingDataset, decode_ref, id_of
from foresight.client.errors import DataLoss, FailedPrecondition
from foresight.client.estimators import encode_estimator, specify
from foresight.client.features import VersionRef
from foresight.client.frames import Progress
from foresight.predictor.v1 import prediction_pb2, prediction_pb2_grpc
from foresight.trainer.v1 import model_registry_pb2, model_registry_pb2_grpc, training_pb2, training_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import Field, InvalidValue
from foresight.wire import decode_column, decode_field, decode_instant

DEPLOYMENT_POLL_S = 0.05
WEIGHT_MAX = 10_000
_SPLITS = ("train", "test", "")
_TASKS = {1: "binary_classification", 2: "multiclass_classification", 3: "regression"}

Selection = TrainingDataset | str | tuple[TrainingDataset | str, str]


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """An immutable model version: what it takes and gives, where it comes from, how good it is."""

    name: str
    version: int
    description: str
    view: VersionRef
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    task: str
    classes: tuple[Any, ...]
    artifact_sha256: str
    artifact_bytes: int
    train_dataset_ids: tuple[str, ...]
    test_dataset_ids: tuple[str, ...]
    train_rows: int
    metrics: Mapping[str, float]
    parity_max_difference: float
    parity_rows: int
    batch_invariant: bool
    aliases: tuple[str, ...]
    created_at: datetime
    sklearn_version: str

    @property
    def ref(self) -> VersionRef:
        """Name and version."""
        return VersionRef(self.name, self.version)


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the versions that a deployment serves; version 0, in what you ask for: the latest.

    Entities are shared out in proportion to the weights, 0 to 10,000 each. An arm without weight answers only those who
    force it; a shadow scores what the others answer, for the log alone.
    """

    name: str
    model: str
    version: int = 0
    weight: int = 0
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Deployment:
    """What clients call, and the model versions that answer: one per arm.

    `model`, `view` and `version` are those of the first arm. `salt` goes into the assignment of entities to arms.
    """

    name: str
    model: VersionRef
    view: VersionRef
    etag: str
    updated_at: datetime
    version: ModelVersion
    arms: tuple[Arm, ...] = ()
    salt: str = ""


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """Metrics of one version; one that is not defined on the rows is left out."""

    model: VersionRef
    metrics: Mapping[str, float]


class ModelCalls(Calls):
    """Calls about models and deployments."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._training = training_pb2_grpc.TrainingServiceStub(connection.channel)
        self._models = model_registry_pb2_grpc.ModelRegistryServiceStub(connection.channel)
        self._serving = prediction_pb2_grpc.PredictionServiceStub(connection.channel)

    def train(
        self,
        model: str,
        pipeline: Any,
        train: Selection | Sequence[Selection],
        test: Selection | Sequence[Selection] = (),
        *,
        description: str = "",
        progress: Progress | None = None,
        timeout_s: float = TRAIN_S,
    ) -> ModelVersion:
        """Fits an unfitted scikit-learn pipeline in the trainer and registers the next version of `model`.

        `train` and `test`: training datasets (or their ids), each alone or with a split: `(dataset, "train")`.
        `progress` hears (stage, rows): reading, fitting, evaluating, converting, registering. When the trainer dies
        it is trained again; a version that was registered just before remains, unused.
        """
        request = training_pb2.TrainRequest(
            model=model,
            train=selections(train),
            test=selections(test),
            pipeline=encode_estimator(specify(pipeline)),
            description=description,
        )

        def last(responses: Iterator[training_pb2.TrainResponse]) -> ModelVersion:
            for response in responses:
                if response.WhichOneof("event") == "version":
                    return decode_model_version(response.version)
                if progress is not None:
                    progress(response.progress.stage, response.progress.rows)
            raise DataLoss("the training ended without a model version")

        return self._connection.download(lambda: self._training.Train(request, timeout=timeout_s), last)

    def evaluate(
        self,
        models: Sequence[tuple[str, int]],
        dataset: Selection,
        split: str = "",
        *,
        timeout_s: float = TRAIN_S,
    ) -> list[ModelMetrics]:
        """Measures model versions, `(name, version)` each, on the rows of a dataset; in the order given."""
        selection = selections((dataset, split) if isinstance(dataset, TrainingDataset | str) else dataset)[0]
        request = training_pb2.EvaluateRequest(models=[encode_ref(model) for model in models], dataset=selection)
        response = self._connection.call(self._training.Evaluate, request, timeout_s)
        return [decode_metrics(measured) for measured in response.models]

    def models(self, model: str = "") -> list[ModelVersion]:
        """Versions of one model, or of all, newest first."""
        request = model_registry_pb2.ListModelVersionsRequest(model=model)
        response = self._connection.call(self._models.ListModelVersions, request)
        return [decode_model_version(version) for version in response.versions]

    def model(self, name: str, version: int = 0, *, alias: str = "") -> ModelVersion:
        """One version: by number, by alias, or (neither given) the latest. Raises NotFound."""
        request = model_registry_pb2.GetModelVersionRequest(model=encode_ref((name, version)), alias=alias)
        return decode_model_version(self._connection.call(self._models.GetModelVersion, request).version)

    def set_alias(self, model: str, version: int, alias: str) -> ModelVersion:
        """Points an alias at a version."""
        request = model_registry_pb2.SetAliasRequest(model=encode_ref((model, version)), alias=alias)
        return decode_model_version(self._connection.call(self._models.SetAlias, request).version)

    def deploy(
        self,
        deployment: str,
        model: str = "",
        version: int = 0,
        *,
        arms: Sequence[Arm] = (),
        salt: str = "",
        etag: str = "",
        wait_s: float = 30.0,
    ) -> Deployment:
        """Lets a deployment serve a version (0: the latest), or several as `arms`, and waits until all replicas do.

        An entity always gets the same arm, as long as its weight does not shrink; another `salt` assigns all of them
        anew. The first arm has a weight: it gets the alias `champion` and stands for the deployment where one arm has
        to. Shadows are not waited for.

        With an `etag` it raises Aborted when somebody else changed the deployment since it was read. Raises
        FailedPrecondition, with the cause, when it is not served within `wait_s` (0: do not wait).
        """
        if bool(model) == bool(arms):
            raise InvalidValue("arms", "and a model: give one of them")
        request = model_registry_pb2.SetDeploymentRequest(
            name=deployment,
            model=encode_ref((model, version)) if model else None,
            arms=[_encode_arm(arm, i) for i, arm in enumerate(arms)],
            salt=salt,
            etag=etag,
        )
        # A repeated change with an etag would find its own first attempt in the way.
        call = self._connection.call_once if etag else self._connection.call
        answer = decode_deployment(call(self._models.SetDeployment, request).deployment)
        if wait_s > 0:
            self._await_serving(answer, wait_s)
        return answer

    def deployments(self) -> list[Deployment]:
        """All deployments, by name."""
        response = self._connection.call(self._models.ListDeployments, model_registry_pb2.ListDeploymentsRequest())
        return [decode_deployment(deployment) for deployment in response.deployments]

    def deployment(self, name: str) -> Deployment:
        """One deployment. Raises NotFound."""
        request = model_registry_pb2.GetDeploymentRequest(name=name)
        return decode_deployment(self._connection.call(self._models.GetDeployment, request).deployment)

    def _await_serving(self, wanted: Deployment, wait_s: float) -> None:
        give_up = time.monotonic() + wait_s
        while True:
            answers = self._connection.call_each_replica(self._serving.ListServing, prediction_pb2.ListServingRequest())
            cause = next(filter(None, (_why_not(wanted, answer) for answer in answers)), "")
            if not cause:
                return
            if time.monotonic() >= give_up:
                raise FailedPrecondition(
                    f"{wanted.name} does not serve {wanted.model} after {wait_s:g} s: {cause}",
                    reason="MODEL_NOT_READY",
                    metadata={"cause": cause},
                )
            self._connection.retry.sleep(DEPLOYMENT_POLL_S)


def _why_not(wanted: Deployment, answer: prediction_pb2.ListServingResponse) -> str:
    """Why a replica does not serve a deployment; '' when it does."""
    for serving in answer.deployments:
        if serving.deployment == wanted.name:
            # The same model may be there with other arms.
            if serving.ready and (serving.etag, decode_ref(serving.model)) == (wanted.etag, wanted.model):
                return ""
            return serving.cause or "the predictor is still loading it"
    return "the predictor does not know it yet"


def selections(chosen: Selection | Sequence[Selection]) -> list[training_pb2.DatasetSelection]:
    """The messages of one or several datasets, each alone or with a split."""
    if _is_pair(chosen) or isinstance(chosen, TrainingDataset | str):
        chosen = [chosen]  # type: ignore[list-item]
    messages = []
    for choice in chosen:
        dataset, split = choice if isinstance(choice, tuple) else (choice, "")
        messages.append(training_pb2.DatasetSelection(dataset_id=id_of(dataset), split=split))
    return messages


def _is_pair(chosen: Any) -> bool:
    """Whether it is (dataset, split), and not two datasets."""
    return isinstance(chosen, tuple) and len(chosen) == 2 and isinstance(chosen[1], str) and chosen[1] in _SPLITS


def encode_ref(ref: tuple[str, int]) -> types_pb2.VersionRef:
    """The message of a name and a version."""
    name, version = ref
    return types_pb2.VersionRef(name=name, version=version)


def decode_metrics(message: training_pb2.ModelMetrics) -> ModelMetrics:
    """The metrics of a message."""
    return ModelMetrics(decode_ref(message.model), {metric.name: metric.value for metric in message.metrics})


def decode_deployment(message: model_registry_pb2.Deployment) -> Deployment:
    """The deployment of a message."""
    return Deployment(
        name=message.name,
        model=decode_ref(message.model),
        view=decode_ref(message.view),
        etag=message.etag,
        updated_at=decode_instant(message.updated_at, "updated_at"),
        version=decode_model_version(message.version),
        arms=tuple(Arm(a.name, a.model.name, a.model.version, a.weight, a.shadow) for a in message.arms),
        salt=message.salt,
    )


def _encode_arm(arm: Arm, place: int) -> model_registry_pb2.Arm:
    if not 0 <= arm.weight <= WEIGHT_MAX:
        raise InvalidValue(f"arms[{place}].weight", f"is {arm.weight}, not 0 to {WEIGHT_MAX:,}")
    model = encode_ref((arm.model, arm.version))
    return model_registry_pb2.Arm(name=arm.name, model=model, weight=arm.weight, shadow=arm.shadow)


def decode_model_version(message: model_registry_pb2.ModelVersion) -> ModelVersion:
    """The model version of a message."""
    return ModelVersion(
        name=message.model.name,
        version=message.model.version,
        description=message.description,
        view=decode_ref(message.view),
        inputs=tuple(decode_field(field, "inputs") for field in message.inputs),
        outputs=tuple(decode_field(field, "outputs") for field in message.outputs),
        task=_TASKS.get(message.task, ""),
        classes=tuple(decode_column(message.classes, "classes").to_list()) if message.HasField("classes") else (),
        artifact_sha256=message.artifact_sha256,
        artifact_bytes=message.artifact_bytes,
        train_dataset_ids=tuple(message.train_dataset_ids),
        test_dataset_ids=tuple(message.test_dataset_ids),
        train_rows=message.train_rows,
        metrics={metric.name: metric.value for metric in message.metrics},
        parity_max_difference=message.parity_max_difference,
        parity_rows=message.parity_rows,
        batch_invariant=message.batch_invariant,
        aliases=tuple(message.aliases),
        created_at=decode_instant(message.created_at, "created_at"),
        sklearn_version=message.sklearn_version,
    )
