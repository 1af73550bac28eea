"""A client in any language has just the protos: predict, tell the outcome and read the log with the stubs alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from deploy.local import LocalStack
from foresight.logger.v1 import outcome_pb2, outcome_pb2_grpc, prediction_log_pb2, prediction_log_pb2_grpc
from foresight.predictor.v1 import prediction_pb2, prediction_pb2_grpc
from foresight.types.v1 import types_pb2
from tests.e2e.local_stack.calls import eventually

# 2026-03-05T09:30:00Z
ASKED_AT_S = 1_772_703_000


def _channel(stack: LocalStack, identity: str) -> grpc.Channel:
    files = stack.connection["identities"][identity]
    credentials = grpc.ssl_channel_credentials(
        Path(stack.connection["ca"]).read_bytes(),
        Path(files["key"]).read_bytes(),
        Path(files["certificate"]).read_bytes(),
    )
    return grpc.secure_channel(stack.connection["gateway"], credentials)


@pytest.fixture
def channel(stack: LocalStack) -> Iterator[grpc.Channel]:
    """A channel to the gateway, as the operator."""
    with _channel(stack, "operator") as opened:
        yield opened


def _request() -> prediction_pb2.PredictRequest:
    return prediction_pb2.PredictRequest(
        deployment="late_orders",
        columns=[
            types_pb2.Column(name="restaurant", string_values=types_pb2.StringValues(values=["bistro", "aroma"])),
            types_pb2.Column(name="distance_km", float64_values=types_pb2.Float64Values(values=[6.5, 0.8])),
            types_pb2.Column(name="rain", bool_values=types_pb2.BoolValues(values=[True, False])),
        ],
        event_time=Timestamp(seconds=ASKED_AT_S),
    )


def test_a_prediction_and_its_outcome_are_in_the_log_with_features_and_caller(channel: grpc.Channel) -> None:
    answer = prediction_pb2_grpc.PredictionServiceStub(channel).Predict(_request(), timeout=10)
    assert [c.name for c in answer.outputs] == ["probability", "label"]
    likely, unlikely = answer.outputs[0].float64_values.values
    assert 0 < unlikely < likely < 1
    outcomes = outcome_pb2_grpc.OutcomeServiceStub(channel)
    outcomes.RecordOutcomes(
        outcome_pb2.RecordOutcomesRequest(
            prediction_ids=answer.prediction_ids[:1],
            values=types_pb2.Column(name="late", bool_values=types_pb2.BoolValues(values=[True])),
            observed_at_micros=[(ASKED_AT_S + 3_600) * 1_000_000],
        ),
        timeout=10,
    )
    log = prediction_log_pb2_grpc.PredictionLogServiceStub(channel)

    def logged() -> prediction_log_pb2.GetPredictionResponse | None:
        request = prediction_log_pb2.GetPredictionRequest(prediction_id=answer.prediction_ids[0])
        try:
            found: prediction_log_pb2.GetPredictionResponse = log.GetPrediction(request, timeout=10)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return found if found.HasField("outcome") else None

    entry = eventually(logged)
    record = entry.record
    assert list(record.prediction_ids) == list(answer.prediction_ids)
    assert record.caller == "spiffe://foresight/operator/local"
    assert list(record.outputs[0].float64_values.values) == [likely, unlikely]
    features = {f.column.name: f.column for f in record.features}
    assert set(features) == {"orders_last_hour", "prep_minutes"}
    assert len(features["prep_minutes"].float64_values.values) == 2
    assert all(commit > 0 for commit in record.sources[0].commits)
    assert entry.outcome.value.bool_values.values == [True]

    entries = log.ReadLog(prediction_log_pb2.ReadLogRequest(), timeout=10).entries
    assert answer.prediction_ids[0] in {i for e in entries for i in e.record.prediction_ids}


def test_a_prediction_can_be_verified(channel: grpc.Channel) -> None:
    predictions = prediction_pb2_grpc.PredictionServiceStub(channel)
    answer = predictions.Predict(_request(), timeout=10)
    for prediction_id in answer.prediction_ids:
        replayed = predictions.VerifyPrediction(
            prediction_pb2.VerifyPredictionRequest(prediction_id=prediction_id), timeout=10
        )
        assert replayed.verified
        assert not replayed.mismatches


def test_no_header_makes_an_application_an_operator(stack: LocalStack) -> None:
    """Who calls is the certificate's to say: a forged one, twice or in other letters, forces no arm."""
    operator = "By=spiffe://foresight/gateway;URI=spiffe://foresight/operator/local"
    forged = ("x-forwarded-client-cert", operator)
    with _channel(stack, "application") as opened:
        stub = prediction_pb2_grpc.PredictionServiceStub(opened)
        for headers in ((), (forged,), (forged, forged), (("x-foresight-replica", "predictor"), forged)):
            with pytest.raises(grpc.RpcError) as refused:
                stub.Predict(_request(), timeout=10, metadata=(*headers, ("x-foresight-arm", "primary")))
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        # A name with underscores is dropped on the way: nobody takes it for the header.
        answer = stub.Predict(_request(), timeout=10, metadata=(forged, ("x_foresight_arm", "primary")))
    assert not answer.arms
