"""inference.GRPCInferenceService over gRPC: decode, one call, encode."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import grpc
from google.rpc import status_pb2

from foresight.values import InvalidValue
from inference import grpc_service_pb2, grpc_service_pb2_grpc, model_config_pb2
from services.predictor.arms import find_arm
from services.predictor.deployments import Deployments
from services.predictor.inference import check_outputs, check_version, read_inputs
from services.predictor.inference_codec import (
    InferRequest,
    decode_request,
    encode_answer,
    encode_failure,
    size_of_request,
)
from services.predictor.inference_description import (
    EXTENSIONS,
    PLATFORM,
    Described,
    Description,
    describe,
    index,
    is_ready,
    versions_of,
)
from services.predictor.questions import ROWS_MAX
from services.predictor.requests import Predicting, Request
from services.predictor.servicer import CALLER_CHARACTERS_MAX, forced_arm_of
from services.predictor.serving import Served
from services.predictor.streams import Streams
from services.runtime.boundary import request_id_of
from services.runtime.errors import PermissionDenied, ServiceError
from services.runtime.identity import caller_of, is_operator
from services.runtime.status import reason_of, status_of

INFERENCE_SERVICE = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
FINAL = "triton_final_response"
_DATA_TYPES = {"BYTES": model_config_pb2.TYPE_STRING}

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """The service of one replica; `ready` is what health follows, `release` the version of the server."""

    def __init__(
        self,
        predictor: Predicting,
        deployments: Deployments,
        streams: Streams,
        ready: Callable[[], Awaitable[bool]],
        release: str,
    ) -> None:
        self._predictor = predictor
        self._deployments = deployments
        self._streams = streams
        self._ready = ready
        self._release = release

    async def ServerLive(
        self, request: grpc_service_pb2.ServerLiveRequest, context: Context
    ) -> grpc_service_pb2.ServerLiveResponse:
        """See the proto."""
        return grpc_service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: grpc_service_pb2.ServerReadyRequest, context: Context
    ) -> grpc_service_pb2.ServerReadyResponse:
        """See the proto."""
        return grpc_service_pb2.ServerReadyResponse(ready=await self._ready())

    async def ModelReady(
        self, request: grpc_service_pb2.ModelReadyRequest, context: Context
    ) -> grpc_service_pb2.ModelReadyResponse:
        """See the proto."""
        state = self._deployments.state(request.name)
        return grpc_service_pb2.ModelReadyResponse(ready=is_ready(state, request.version))

    async def ServerMetadata(
        self, request: grpc_service_pb2.ServerMetadataRequest, context: Context
    ) -> grpc_service_pb2.ServerMetadataResponse:
        """See the proto."""
        return grpc_service_pb2.ServerMetadataResponse(name=PLATFORM, version=self._release, extensions=EXTENSIONS)

    async def ModelMetadata(
        self, request: grpc_service_pb2.ModelMetadataRequest, context: Context
    ) -> grpc_service_pb2.ModelMetadataResponse:
        """See the proto."""
        serving = self._deployments.arms(request.name)
        described = describe(check_version(serving, request.version))
        return grpc_service_pb2.ModelMetadataResponse(
            name=described.name,
            versions=[described.version] if request.version else versions_of(serving),
            platform=PLATFORM,
            inputs=[_encode_tensor(t) for t in described.inputs],
            outputs=[_encode_tensor(t) for t in described.outputs],
        )

    async def ModelConfig(
        self, request: grpc_service_pb2.ModelConfigRequest, context: Context
    ) -> grpc_service_pb2.ModelConfigResponse:
        """See the proto."""
        described = describe(self._serving(request.name, request.version))
        return grpc_service_pb2.ModelConfigResponse(config=_encode_config(described))

    async def ModelInfer(
        self, request: grpc_service_pb2.ModelInferRequest, context: Context
    ) -> grpc_service_pb2.ModelInferResponse:
        """See the proto."""
        return await self._infer(request, context)

    async def ModelStreamInfer(
        self, request: AsyncIterator[grpc_service_pb2.ModelInferRequest], context: Context
    ) -> AsyncIterator[grpc_service_pb2.ModelStreamInferResponse]:
        """See the proto. Answers come in the order of the messages, several of which are worked on at a time."""

        def answer(
            message: grpc_service_pb2.ModelInferRequest,
        ) -> Coroutine[Any, Any, grpc_service_pb2.ModelStreamInferResponse]:
            return self._infer_of_stream(message, context)

        async with contextlib.aclosing(self._streams.answers(request, answer, size_of_request)) as answers:
            async for response in answers:
                yield response

    async def ModelStatistics(
        self, request: grpc_service_pb2.ModelStatisticsRequest, context: Context
    ) -> grpc_service_pb2.ModelStatisticsResponse:
        """See the proto."""
        if request.version and not request.name:
            raise InvalidValue("version", "goes with the name of a model")
        if request.version:
            chosen = [self._serving(request.name, request.version)]
        elif request.name:
            chosen = [arm.served for arm in self._deployments.arms(request.name).arms]
        else:
            chosen = self._deployments.all_serving()
        return grpc_service_pb2.ModelStatisticsResponse(model_stats=[_encode_statistics(served) for served in chosen])

    async def RepositoryIndex(
        self, request: grpc_service_pb2.RepositoryIndexRequest, context: Context
    ) -> grpc_service_pb2.RepositoryIndexResponse:
        """See the proto."""
        _check_repository(request.repository_name)
        response = grpc_service_pb2.RepositoryIndexResponse()
        for entry in index(self._deployments.listing(), ready_only=request.ready):
            response.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return response

    async def RepositoryModelLoad(
        self, request: grpc_service_pb2.RepositoryModelLoadRequest, context: Context
    ) -> grpc_service_pb2.RepositoryModelLoadResponse:
        """See the proto."""
        _check_operator(context)
        _check_repository(request.repository_name)
        if request.parameters:
            raise InvalidValue("parameters", "are not taken: models come from the trainer")
        await self._deployments.load(request.model_name)
        return grpc_service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: grpc_service_pb2.RepositoryModelUnloadRequest, context: Context
    ) -> grpc_service_pb2.RepositoryModelUnloadResponse:
        """See the proto."""
        _check_operator(context)
        _check_repository(request.repository_name)
        if request.parameters.keys() - {"unload_dependents"}:
            raise InvalidValue("parameters", "are not taken, but unload_dependents")
        self._deployments.unload(request.model_name)
        return grpc_service_pb2.RepositoryModelUnloadResponse()

    def _serving(self, name: str, version: str) -> Served:
        return check_version(self._deployments.arms(name), version)

    async def _infer(
        self, message: grpc_service_pb2.ModelInferRequest, context: Context
    ) -> grpc_service_pb2.ModelInferResponse:
        metadata = context.invocation_metadata() or ()
        caller, forced_arm = caller_of(metadata)[:CALLER_CHARACTERS_MAX], forced_arm_of(metadata)
        serving = self._deployments.arms(message.model_name)
        arm = find_arm(serving, caller, forced_arm, message.model_version)
        served = serving.first if arm is None else arm.served
        request = decode_request(message)
        check_outputs(served, request.outputs)
        inputs = read_inputs(served, request.tensors)
        answer = await self._predictor.predict(
            Request(
                deployment=request.model_name,
                columns=inputs.columns,
                event_time=request.event_time,
                caller=caller,
                request_id=request.request_id or request_id_of(context),
                remaining_s=_remaining_s(request, context),
                served=None if serving.several and arm is None and not inputs.given else served,
                given=inputs.given,
                forced_arm=forced_arm,
                serving=serving,
            )
        )
        return encode_answer(request, answer)

    async def _infer_of_stream(
        self, message: grpc_service_pb2.ModelInferRequest, context: Context
    ) -> grpc_service_pb2.ModelStreamInferResponse:
        """The answer to one message of a stream. A bug ends the stream: the boundary answers it."""
        try:
            response = grpc_service_pb2.ModelStreamInferResponse(infer_response=await self._infer(message, context))
        except (ServiceError, InvalidValue) as error:
            code, status = status_of(error)
            response = _encode_failure(message.id, code, status)
        response.infer_response.parameters[FINAL].bool_param = True
        return response


def _encode_failure(
    request_id: str, code: grpc.StatusCode, status: status_pb2.Status
) -> grpc_service_pb2.ModelStreamInferResponse:
    return encode_failure(request_id, code.name, reason_of(status), status.message)


def _remaining_s(request: InferRequest, context: Context) -> float | None:
    bounds = [s for s in (context.time_remaining(), request.timeout_s) if s is not None]
    return min(bounds) if bounds else None


def _check_operator(context: Context) -> None:
    if not is_operator(caller_of(context.invocation_metadata() or ())):
        raise PermissionDenied("only operators load and unload models")


def _check_repository(name: str) -> None:
    if name:
        raise InvalidValue("repository_name", "is not empty: there is one repository, without a name")


def _encode_tensor(tensor: Described) -> grpc_service_pb2.ModelMetadataResponse.TensorMetadata:
    return grpc_service_pb2.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=[-1, tensor.row]
    )


def _encode_config(described: Description) -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig(
        name=described.name, platform=PLATFORM, backend=PLATFORM, max_batch_size=ROWS_MAX
    )
    for tensor in described.inputs:
        config.input.add(name=tensor.name, data_type=_data_type(tensor.datatype), dims=[tensor.row])
    for tensor in described.outputs:
        config.output.add(name=tensor.name, data_type=_data_type(tensor.datatype), dims=[tensor.row])
    for key, value in described.parameters.items():
        config.parameters[key].string_value = value
    return config


def _data_type(datatype: str) -> model_config_pb2.DataType.ValueType:
    return _DATA_TYPES.get(datatype) or model_config_pb2.DataType.Value(f"TYPE_{datatype}")


def _encode_statistics(served: Served) -> grpc_service_pb2.ModelStatistics:
    tally = served.tally
    return grpc_service_pb2.ModelStatistics(
        name=served.deployment.name,
        version=str(served.deployment.version.model.version),
        last_inference=tally.last_answer_ms,
        inference_count=tally.predictions,
        execution_count=tally.answers,
        inference_stats=grpc_service_pb2.InferStatistics(
            success=grpc_service_pb2.StatisticDuration(count=tally.answers, ns=tally.answers_ns),
            fail=grpc_service_pb2.StatisticDuration(count=tally.failures, ns=tally.failures_ns),
        ),
    )
