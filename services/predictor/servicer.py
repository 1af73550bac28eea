"""foresight.predictor.v1 over gRPC: decode, one call, encode."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import grpc

from foresight.predictor.v1 import prediction_pb2, prediction_pb2_grpc
from foresight.values import InvalidValue, check_name
from services.predictor.arms import ARM_HEADER
from services.predictor.deployments import Deployments
from services.predictor.mismatches import Mismatch
from services.predictor.prediction import ROWS_ON_LOOP_MAX
from services.predictor.prediction_codec import (
    Asker,
    decode_request,
    decode_rows_request,
    encode_answer,
    encode_ref,
    encode_rows_answer,
    size_of_request,
)
from services.predictor.requests import Predicting
from services.predictor.serving import ArmState, ServingState
from services.predictor.spool import Spool
from services.predictor.streams import Streams
from services.predictor.verification import Verification, Verifier
from services.runtime.boundary import refusal, request_id_of
from services.runtime.identity import caller_of

# The logger keeps no longer ones.
CALLER_CHARACTERS_MAX = 1_024
SERVICE = prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name
STREAM = f"/{SERVICE}/PredictStream"

Context = grpc.aio.ServicerContext[Any, Any]


class PredictionServicer(prediction_pb2_grpc.PredictionServiceServicer):
    """The service of one replica."""

    def __init__(
        self,
        predictor: Predicting,
        verifier: Verifier,
        deployments: Deployments,
        spool: Spool,
        streams: Streams,
        former: Sequence[Spool] = (),
    ) -> None:
        self._predictor = predictor
        self._verifier = verifier
        self._deployments = deployments
        self._spool = spool
        self._former = former
        self._streams = streams

    async def Predict(self, request: prediction_pb2.PredictRequest, context: Context) -> prediction_pb2.PredictResponse:
        """See the proto."""
        asked = decode_request(request, _asker(context), context.time_remaining())
        return encode_answer(await self._predictor.predict(asked))

    async def PredictRows(
        self, request: prediction_pb2.PredictRowsRequest, context: Context
    ) -> prediction_pb2.PredictRowsResponse:
        """See the proto. Many rows are read and written in a thread, as each of their values is an object."""
        asker, serving = _asker(context), self._deployments.arms(request.deployment)
        if len(request.rows) <= ROWS_ON_LOOP_MAX:
            asked = decode_rows_request(request, serving, asker, context.time_remaining())
            return encode_rows_answer(await self._predictor.predict(asked))
        asked = await asyncio.to_thread(decode_rows_request, request, serving, asker, context.time_remaining())
        return await asyncio.to_thread(encode_rows_answer, await self._predictor.predict(asked))

    async def PredictStream(
        self, request: AsyncIterator[prediction_pb2.PredictStreamRequest], context: Context
    ) -> AsyncIterator[prediction_pb2.PredictStreamResponse]:
        """See the proto."""
        asker = _asker(context)

        async def answer(message: prediction_pb2.PredictStreamRequest) -> prediction_pb2.PredictStreamResponse:
            try:
                if not message.HasField("request"):
                    raise InvalidValue("request", "is required")
                asked = decode_request(message.request, asker, context.time_remaining())
                response = encode_answer(await self._predictor.predict(asked))
            except Exception as error:  # noqa: BLE001 - the boundary of one request: its stream goes on
                return _encode_error(error)
            return prediction_pb2.PredictStreamResponse(response=response)

        async with contextlib.aclosing(self._streams.answers(request, answer, size_of_request)) as answers:
            async for response in answers:
                yield response

    async def VerifyPrediction(
        self, request: prediction_pb2.VerifyPredictionRequest, context: Context
    ) -> prediction_pb2.VerifyPredictionResponse:
        """See the proto."""
        return _encode_verification(await self._verifier.verify(request.prediction_id))

    async def ListServing(
        self, request: prediction_pb2.ListServingRequest, context: Context
    ) -> prediction_pb2.ListServingResponse:
        """See the proto."""
        return prediction_pb2.ListServingResponse(deployments=[_encode_state(s) for s in self._deployments.listing()])

    async def GetSpool(
        self, request: prediction_pb2.GetSpoolRequest, context: Context
    ) -> prediction_pb2.GetSpoolResponse:
        """See the proto."""
        spools = (self._spool, *self._former)
        incarnations = [
            prediction_pb2.SpooledIncarnation(
                replica=spool.replica,
                incarnation=i.incarnation,
                highest_sequence=i.highest_sequence,
                pending=i.pending,
            )
            for spool in spools
            for i in spool.incarnations()
            # A replica that there is no longer runs in no incarnation.
            if spool is self._spool or i.pending
        ]
        return prediction_pb2.GetSpoolResponse(incarnations=incarnations, bytes=sum(spool.size for spool in spools))


def _asker(context: Context) -> Asker:
    metadata = context.invocation_metadata() or ()
    return Asker(caller_of(metadata)[:CALLER_CHARACTERS_MAX], request_id_of(context), forced_arm_of(metadata))


def forced_arm_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The arm that a caller asks for, '' for none. Raises InvalidValue."""
    name = next((value for key, value in metadata if key == ARM_HEADER), "")
    return check_name(name if isinstance(name, str) else "", ARM_HEADER) if name else ""


def _encode_error(error: Exception) -> prediction_pb2.PredictStreamResponse:
    code, status = refusal(error, STREAM)
    return prediction_pb2.PredictStreamResponse(
        error=prediction_pb2.PredictStreamError(
            code=code.value[0], message=status.message, status=status.SerializeToString()
        )
    )


def _encode_verification(verification: Verification) -> prediction_pb2.VerifyPredictionResponse:
    return prediction_pb2.VerifyPredictionResponse(
        verified=not verification.mismatches,
        mismatches=[_encode_mismatch(m) for m in verification.mismatches],
        model=encode_ref(verification.model),
    )


def _encode_mismatch(mismatch: Mismatch) -> prediction_pb2.Mismatch:
    return prediction_pb2.Mismatch(
        name=mismatch.name,
        cause=prediction_pb2.MismatchCause.ValueType(mismatch.cause),
        recorded=mismatch.recorded,
        replayed=mismatch.replayed,
    )


def _encode_state(state: ServingState) -> prediction_pb2.ServingDeployment:
    model = encode_ref(state.model) if state.model is not None else None
    return prediction_pb2.ServingDeployment(
        deployment=state.deployment,
        model=model,
        ready=state.model is not None,
        cause=state.cause,
        etag=state.etag,
        arms=[_encode_arm_state(arm) for arm in state.arms],
    )


def _encode_arm_state(state: ArmState) -> prediction_pb2.ServingArm:
    return prediction_pb2.ServingArm(
        arm=state.name,
        model=encode_ref(state.model),
        weight=state.weight,
        shadow=state.shadow,
        ready=state.ready,
        cause=state.cause,
    )
