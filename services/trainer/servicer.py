"""The trainer's four gRPC services: decode, one call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

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
from foresight.values import InvalidValue, check_name
from services.trainer import codec
from services.trainer.artifacts import ArtifactStore
from services.trainer.batch import BatchPrediction
from services.trainer.evaluation import Evaluation
from services.trainer.flywheel import Flywheel
from services.trainer.progress import streamed
from services.trainer.registry import Registry
from services.trainer.training import Training
from services.trainer.watch import DeploymentWatch

CHUNK_BYTES = 1 << 20
SERVICES = (
    training_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name,
    model_registry_pb2.DESCRIPTOR.services_by_name["ModelRegistryService"].full_name,
    batch_prediction_pb2.DESCRIPTOR.services_by_name["BatchPredictionService"].full_name,
    flywheel_pb2.DESCRIPTOR.services_by_name["FlywheelService"].full_name,
)


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """Trains and evaluates."""

    def __init__(self, training: Training, evaluation: Evaluation) -> None:
        self._training = training
        self._evaluation = evaluation

    async def Train(
        self, request: training_pb2.TrainRequest, context: Any
    ) -> AsyncIterator[training_pb2.TrainResponse]:
        job = codec.decode_training(request)
        async for event in streamed(lambda report: self._training.train(job, report)):
            yield codec.encode_training_event(event)

    async def Evaluate(self, request: training_pb2.EvaluateRequest, context: Any) -> training_pb2.EvaluateResponse:
        models = codec.decode_models(request.models, "models", 1, codec.MODELS_MAX)
        measured, rows = await self._evaluation.evaluate(models, codec.decode_selection(request.dataset, "dataset"))
        return training_pb2.EvaluateResponse(models=codec.encode_model_metrics(measured), rows=rows)


class ModelRegistryServicer(model_registry_pb2_grpc.ModelRegistryServiceServicer):
    """Describes models and deployments."""

    def __init__(self, registry: Registry, watch: DeploymentWatch, artifacts: ArtifactStore) -> None:
        self._registry = registry
        self._watch = watch
        self._artifacts = artifacts

    async def GetModelVersion(
        self, request: model_registry_pb2.GetModelVersionRequest, context: Any
    ) -> model_registry_pb2.GetModelVersionResponse:
        ref = codec.decode_ref(request.model, "model")
        alias = codec.decode_optional_name(request.alias, "alias")
        if alias and ref.version:
            raise InvalidValue("alias", "goes with version 0 only")
        version = await self._registry.version(ref, alias)
        return model_registry_pb2.GetModelVersionResponse(version=codec.encode_version(version))

    async def ListModelVersions(
        self, request: model_registry_pb2.ListModelVersionsRequest, context: Any
    ) -> model_registry_pb2.ListModelVersionsResponse:
        versions = await self._registry.versions(codec.decode_optional_name(request.model, "model"))
        return model_registry_pb2.ListModelVersionsResponse(versions=codec.encode_versions(versions))

    async def SetAlias(
        self, request: model_registry_pb2.SetAliasRequest, context: Any
    ) -> model_registry_pb2.SetAliasResponse:
        ref = codec.decode_ref(request.model, "model", latest=False)
        version = await self._registry.set_alias(ref, check_name(request.alias, "alias"))
        return model_registry_pb2.SetAliasResponse(version=codec.encode_version(version))

    async def SetDeployment(
        self, request: model_registry_pb2.SetDeploymentRequest, context: Any
    ) -> model_registry_pb2.SetDeploymentResponse:
        name, wanted = check_name(request.name), codec.decode_wanted(request)
        etag, salt = codec.decode_etag(request.etag), codec.decode_salt(request.salt)
        deployment = await self._registry.set_deployment(name, wanted, etag, salt)
        return model_registry_pb2.SetDeploymentResponse(deployment=codec.encode_deployment(deployment))

    async def GetDeployment(
        self, request: model_registry_pb2.GetDeploymentRequest, context: Any
    ) -> model_registry_pb2.GetDeploymentResponse:
        deployment = await self._registry.deployment(check_name(request.name))
        return model_registry_pb2.GetDeploymentResponse(deployment=codec.encode_deployment(deployment))

    async def ListDeployments(
        self, request: model_registry_pb2.ListDeploymentsRequest, context: Any
    ) -> model_registry_pb2.ListDeploymentsResponse:
        deployments = await self._registry.deployments()
        return model_registry_pb2.ListDeploymentsResponse(deployments=[codec.encode_deployment(d) for d in deployments])

    async def WatchDeployments(
        self, request: model_registry_pb2.WatchDeploymentsRequest, context: Any
    ) -> AsyncIterator[model_registry_pb2.WatchDeploymentsResponse]:
        async for deployments in self._watch.follow():
            messages = [codec.encode_deployment(d) for d in deployments]
            yield model_registry_pb2.WatchDeploymentsResponse(deployments=messages)

    async def DownloadArtifact(
        self, request: model_registry_pb2.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[model_registry_pb2.DownloadArtifactResponse]:
        artifact = await self._artifacts.get(request.sha256)
        for start in range(0, len(artifact), CHUNK_BYTES):
            yield model_registry_pb2.DownloadArtifactResponse(chunk=artifact[start : start + CHUNK_BYTES])


class BatchPredictionServicer(batch_prediction_pb2_grpc.BatchPredictionServiceServicer):
    """Scores in batch."""

    def __init__(self, batch: BatchPrediction) -> None:
        self._batch = batch

    async def RunBatchPrediction(
        self, request: batch_prediction_pb2.RunBatchPredictionRequest, context: Any
    ) -> AsyncIterator[batch_prediction_pb2.RunBatchPredictionResponse]:
        job = codec.decode_batch(request)
        async for event in streamed(lambda report: self._batch.run(job, report)):
            yield codec.encode_batch_event(event)

    async def ListBatchRuns(
        self, request: batch_prediction_pb2.ListBatchRunsRequest, context: Any
    ) -> batch_prediction_pb2.ListBatchRunsResponse:
        runs = await self._batch.runs()
        return batch_prediction_pb2.ListBatchRunsResponse(runs=[codec.encode_run(r) for r in runs])


class FlywheelServicer(flywheel_pb2_grpc.FlywheelServiceServicer):
    """Judges challengers."""

    def __init__(self, flywheel: Flywheel, registry: Registry) -> None:
        self._flywheel = flywheel
        self._registry = registry

    async def JudgeChallenger(
        self, request: flywheel_pb2.JudgeChallengerRequest, context: Any
    ) -> flywheel_pb2.JudgeChallengerResponse:
        references = codec.decode_models(request.references, "references", 0, codec.REFERENCES_MAX)
        decision = await self._flywheel.judge(codec.decode_judgement(request), references)
        return flywheel_pb2.JudgeChallengerResponse(decision=codec.encode_decision(decision))

    async def ListDecisions(
        self, request: flywheel_pb2.ListDecisionsRequest, context: Any
    ) -> flywheel_pb2.ListDecisionsResponse:
        decisions = await self._registry.decisions(codec.decode_optional_name(request.deployment, "deployment"))
        return flywheel_pb2.ListDecisionsResponse(decisions=[codec.encode_decision(d) for d in decisions])
