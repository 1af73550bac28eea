"""foresight.predictor.v1 over gRPC: decode, one call, encode."""

from __future__ import annotations

from typing import Any

import grpc

from foresight.feature_store.v1 import online_pb2
from foresight.predictor.v1 import prediction_pb2, prediction_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import InvalidValue
from foresight.values.features import REQUEST_FEATURES_MAX, VIEW_KEYS_MAX
from foresight.wire import decode_columns, decode_optional_instant, encode_column, encode_instant
from services.predictor.deployments import Deployments
from services.predictor.prediction import Answer, Predictor, Request
from services.predictor.serving import ServingState
from services.predictor.spool import Spool
from services.predictor.verification import Mismatch, Verification, Verifier
from services.predictor.versions import VersionRef
from services.runtime.boundary import request_id_of
from services.runtime.identity import caller_of

# No view has more.
COLUMNS_MAX = VIEW_KEYS_MAX + REQUEST_FEATURES_MAX
# The logger keeps no longer ones.
CALLER_CHARACTERS_MAX = 1_024
SERVICE = prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


class PredictionServicer(prediction_pb2_grpc.PredictionServiceServicer):
    """The service of one replica."""

    def __init__(self, predictor: Predictor, verifier: Verifier, deployments: Deployments, spool: Spool) -> None:
        self._predictor = predictor
        self._verifier = verifier
        self._deployments = deployments
        self._spool = spool

    async def Predict(self, request: prediction_pb2.PredictRequest, context: Context) -> prediction_pb2.PredictResponse:
        """See the proto."""
        return _encode_answer(await self._predictor.predict(_decode_request(request, context)))

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
        incarnations = [
            prediction_pb2.SpooledIncarnation(
                replica=self._spool.replica,
                incarnation=i.incarnation,
                highest_sequence=i.highest_sequence,
                pending=i.pending,
            )
            for i in self._spool.incarnations()
        ]
        return prediction_pb2.GetSpoolResponse(incarnations=incarnations, bytes=self._spool.size)


def _decode_request(request: prediction_pb2.PredictRequest, context: Context) -> Request:
    if len(request.columns) > COLUMNS_MAX:
        raise InvalidValue("columns", f"are {len(request.columns)}, more than {COLUMNS_MAX}")
    return Request(
        deployment=request.deployment,
        columns=decode_columns(request.columns, "columns"),
        event_time=decode_optional_instant(request.HasField("event_time"), request.event_time, "event_time"),
        caller=caller_of(context.invocation_metadata() or ())[:CALLER_CHARACTERS_MAX],
        request_id=request_id_of(context),
        remaining_s=context.time_remaining(),
    )


def _encode_answer(answer: Answer) -> prediction_pb2.PredictResponse:
    return prediction_pb2.PredictResponse(
        prediction_ids=answer.prediction_ids,
        outputs=[encode_column(c) for c in answer.outputs],
        model=_encode_ref(answer.model),
        event_time=encode_instant(answer.event_time),
        missing=[
            prediction_pb2.MissingFeature(
                row=m.row, feature=m.feature, status=online_pb2.FeatureStatus.ValueType(m.status)
            )
            for m in answer.missing
        ],
    )


def _encode_verification(verification: Verification) -> prediction_pb2.VerifyPredictionResponse:
    return prediction_pb2.VerifyPredictionResponse(
        verified=not verification.mismatches,
        mismatches=[_encode_mismatch(m) for m in verification.mismatches],
        model=_encode_ref(verification.model),
    )


def _encode_mismatch(mismatch: Mismatch) -> prediction_pb2.Mismatch:
    return prediction_pb2.Mismatch(
        name=mismatch.name,
        cause=prediction_pb2.MismatchCause.ValueType(mismatch.cause),
        recorded=mismatch.recorded,
        replayed=mismatch.replayed,
    )


def _encode_state(state: ServingState) -> prediction_pb2.ServingDeployment:
    model = _encode_ref(state.model) if state.model is not None else None
    return prediction_pb2.ServingDeployment(
        deployment=state.deployment, model=model, ready=state.model is not None, cause=state.cause
    )


def _encode_ref(ref: VersionRef) -> types_pb2.VersionRef:
    return types_pb2.VersionRef(name=ref.name, version=ref.version)
