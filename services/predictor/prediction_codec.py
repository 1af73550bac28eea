"""Requests and answers of PredictionService as messages."""

from __future__ import annotations

from dataclasses import dataclass

from foresight.feature_store.v1 import online_pb2, registry_pb2
from foresight.predictor.v1 import prediction_pb2
from foresight.types.v1 import types_pb2
from foresight.values import InvalidValue
from foresight.wire import decode_columns, decode_optional_instant, encode_column, encode_instant
from services.predictor.explaining import Explanation
from services.predictor.policies import Missing
from services.predictor.questions import ROWS_MAX
from services.predictor.requests import Answer, Request
from services.predictor.serving import ServedArms
from services.predictor.streams import size_of_rows
from services.predictor.struct_codec import FIELDS_MAX, decode_rows, encode_rows
from services.predictor.versions import VersionRef


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, and the id of his call."""

    caller: str
    request_id: str
    # The arm that he asks for, see `arms`.
    arm: str = ""


def decode_request(request: prediction_pb2.PredictRequest, asker: Asker, remaining_s: float | None) -> Request:
    """What is asked with columns. Raises InvalidValue."""
    if len(request.columns) > FIELDS_MAX:
        raise InvalidValue("columns", f"are {len(request.columns)}, more than {FIELDS_MAX}")
    return Request(
        deployment=request.deployment,
        columns=decode_columns(request.columns, "columns"),
        event_time=decode_optional_instant(request.HasField("event_time"), request.event_time, "event_time"),
        caller=asker.caller,
        request_id=asker.request_id,
        remaining_s=remaining_s,
        client_request_id=request.request_id,
        explain=request.explain,
        forced_arm=asker.arm,
    )


def size_of_request(message: prediction_pb2.PredictStreamRequest) -> int:
    """The size of a request of a stream, before it is decoded."""
    rows = 0
    for column in message.request.columns:
        arm = column.WhichOneof("values")
        if arm is not None:
            values = getattr(column, arm)
            rows = len(values.micros if arm == "timestamp_values" else values.values)
            break
    return size_of_rows(min(rows, ROWS_MAX), message.ByteSize())


def decode_rows_request(
    request: prediction_pb2.PredictRowsRequest, serving: ServedArms, asker: Asker, remaining_s: float | None
) -> Request:
    """What is asked with rows of JSON, whose values are of the view's types, of those who have that view.

    Raises InvalidValue.
    """
    plan = serving.first.plan
    return Request(
        deployment=request.deployment,
        columns=decode_rows(request.rows, (*plan.keys, *plan.request_features)),
        event_time=decode_optional_instant(request.HasField("event_time"), request.event_time, "event_time"),
        caller=asker.caller,
        request_id=asker.request_id,
        remaining_s=remaining_s,
        client_request_id=request.request_id,
        explain=request.explain,
        served=None if serving.several or asker.arm else serving.first,
        forced_arm=asker.arm,
        serving=serving,
    )


def encode_answer(answer: Answer) -> prediction_pb2.PredictResponse:
    """The answer with columns."""
    return prediction_pb2.PredictResponse(
        prediction_ids=answer.prediction_ids,
        outputs=[encode_column(c) for c in answer.outputs],
        model=encode_ref(answer.model),
        event_time=encode_instant(answer.event_time),
        missing=[_encode_missing(m) for m in answer.missing],
        repeated_answer=answer.repeated,
        explanation=_encode_explanation(answer.explanation),
        arms=[prediction_pb2.ArmAnswer(arm=a.arm, model=encode_ref(a.model), rows=a.rows) for a in answer.arms],
    )


def encode_rows_answer(answer: Answer) -> prediction_pb2.PredictRowsResponse:
    """The answer row by row."""
    outputs = encode_rows(answer.outputs, len(answer.prediction_ids))
    model = encode_ref(answer.model)
    response = prediction_pb2.PredictRowsResponse(
        rows=[
            prediction_pb2.PredictedRow(prediction_id=prediction_id, outputs=row, model=model)
            for prediction_id, row in zip(answer.prediction_ids, outputs, strict=True)
        ],
        event_time=encode_instant(answer.event_time),
        missing=[_encode_missing(m) for m in answer.missing],
        repeated_answer=answer.repeated,
        explanation=_encode_explanation(answer.explanation),
    )
    for arm in answer.arms:
        for row in arm.rows:
            response.rows[row].arm = arm.arm
            response.rows[row].model.CopyFrom(encode_ref(arm.model))
    return response


def encode_ref(ref: VersionRef) -> types_pb2.VersionRef:
    """The message of a version."""
    return types_pb2.VersionRef(name=ref.name, version=ref.version)


def _encode_explanation(explanation: Explanation | None) -> prediction_pb2.Explanation | None:
    if explanation is None:
        return None
    return prediction_pb2.Explanation(
        output=explanation.output,
        base=encode_column(explanation.base),
        score=encode_column(explanation.score),
        contributions=[encode_column(c) for c in explanation.contributions],
    )


def _encode_missing(missing: Missing) -> prediction_pb2.MissingFeature:
    return prediction_pb2.MissingFeature(
        row=missing.row,
        feature=missing.feature,
        status=online_pb2.FeatureStatus.ValueType(missing.status),
        policy=registry_pb2.MissingPolicy.ValueType(missing.policy),
        last_known_at=None if missing.last_known_at is None else encode_instant(missing.last_known_at),
    )
