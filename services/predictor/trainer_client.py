"""The predictor's calls to the trainer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import grpc
from google.protobuf.message import DecodeError

from foresight.scoring import ModelTask
from foresight.trainer.v1 import model_registry_pb2, model_registry_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import InvalidValue
from foresight.wire import decode_column, decode_field, encode_column, encode_field
from services.predictor.versions import Arm, Deployment, ModelVersion, VersionRef
from services.runtime.channel import translated

_NAME = "trainer"
# The trainer's name for the arm of a deployment that was set with a version alone.
ONLY_ARM = "primary"
DESCRIBE_TIMEOUT_S = 5.0
DOWNLOAD_TIMEOUT_S = 120.0


class TrainerClient:
    """Deployments, model versions and artifacts."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._registry = model_registry_pb2_grpc.ModelRegistryServiceStub(channel)

    async def watch(self) -> AsyncIterator[Sequence[Deployment]]:
        """All deployments, at once and after every change. Raises Unavailable."""
        with translated(_NAME):
            async for response in self._registry.WatchDeployments(model_registry_pb2.WatchDeploymentsRequest()):
                yield [_decode_deployment(d) for d in response.deployments]

    async def model_version(self, ref: VersionRef) -> ModelVersion:
        """The version's description. Raises NotFound and Unavailable."""
        model = types_pb2.VersionRef(name=ref.name, version=ref.version)
        request = model_registry_pb2.GetModelVersionRequest(model=model)
        with translated(_NAME):
            response = await self._registry.GetModelVersion(request, timeout=DESCRIBE_TIMEOUT_S)
        return _decode_version(response.version)

    async def download(self, sha256: str) -> AsyncIterator[bytes]:
        """The artifact's bytes in chunks. Raises NotFound, DataLoss and Unavailable."""
        request = model_registry_pb2.DownloadArtifactRequest(sha256=sha256)
        with translated(_NAME):
            async for response in self._registry.DownloadArtifact(request, timeout=DOWNLOAD_TIMEOUT_S):
                yield response.chunk

    def pack(self, deployments: Sequence[Deployment]) -> bytes:
        """The bytes of deployments, for a file."""
        message = model_registry_pb2.WatchDeploymentsResponse(deployments=[_encode_deployment(d) for d in deployments])
        return message.SerializeToString()

    def unpack(self, data: bytes) -> Sequence[Deployment]:
        """The deployments of `pack`'s bytes. Raises InvalidValue."""
        try:
            message = model_registry_pb2.WatchDeploymentsResponse.FromString(data)
        except DecodeError as error:
            raise InvalidValue("deployments", "are not a list of deployments") from error
        return [_decode_deployment(d) for d in message.deployments]


def _decode_deployment(message: model_registry_pb2.Deployment) -> Deployment:
    arms = tuple(Arm(a.name, _decode_version(a.version), a.weight, a.shadow) for a in message.arms)
    # One that was kept by an earlier release has none.
    arms = arms or (Arm(ONLY_ARM, _decode_version(message.version), 1),)
    return Deployment(message.name, message.etag, arms, message.salt)


def _decode_version(message: model_registry_pb2.ModelVersion) -> ModelVersion:
    try:
        task = ModelTask(message.task)
    except ValueError:
        raise InvalidValue("task", "is not known to this predictor") from None
    return ModelVersion(
        model=VersionRef(message.model.name, message.model.version),
        view=VersionRef(message.view.name, message.view.version),
        task=task,
        inputs=tuple(decode_field(f, "inputs") for f in message.inputs),
        classes=decode_column(message.classes, "classes") if message.HasField("classes") else None,
        artifact_sha256=message.artifact_sha256,
        artifact_bytes=message.artifact_bytes,
        batch_invariant=message.batch_invariant,
    )


def _encode_deployment(deployment: Deployment) -> model_registry_pb2.Deployment:
    return model_registry_pb2.Deployment(
        name=deployment.name,
        etag=deployment.etag,
        salt=deployment.salt,
        arms=[
            model_registry_pb2.Arm(
                name=arm.name, weight=arm.weight, shadow=arm.shadow, version=_encode_version(arm.version)
            )
            for arm in deployment.arms
        ],
    )


def _encode_version(version: ModelVersion) -> model_registry_pb2.ModelVersion:
    return model_registry_pb2.ModelVersion(
        model=types_pb2.VersionRef(name=version.model.name, version=version.model.version),
        view=types_pb2.VersionRef(name=version.view.name, version=version.view.version),
        task=model_registry_pb2.ModelTask.ValueType(version.task),
        inputs=[encode_field(f) for f in version.inputs],
        classes=encode_column(version.classes) if version.classes is not None else None,
        artifact_sha256=version.artifact_sha256,
        artifact_bytes=version.artifact_bytes,
        batch_invariant=version.batch_invariant,
    )
