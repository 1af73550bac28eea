"""Who may call what, and what the gateway says otherwise."""

from __future__ import annotations

import base64

import pytest
from google.rpc import error_details_pb2, status_pb2

from foresight.errors.v1 import errors_pb2
from gateway.policy import APPLICATION, INFERENCE, OPERATOR, is_allowed
from gateway.refusals import REFUSALS, Refusal

PREDICT = "/foresight.predictor.v1.PredictionService/Predict"


@pytest.mark.parametrize(
    ("uri", "path", "allowed"),
    [
        ("spiffe://foresight/operator/a", PREDICT, True),
        ("spiffe://foresight/operator/a", "/foresight.trainer.v1.TrainingService/Train", True),
        ("spiffe://foresight/operator/a", "/grpc.health.v1.Health/Check", False),
        ("spiffe://foresight/operator/a", f"{INFERENCE}RepositoryModelLoad", True),
        ("spiffe://foresight/operator/a", f"{INFERENCE}ModelInfer", True),
        ("spiffe://foresight/application/a", f"{INFERENCE}ModelInfer", True),
        ("spiffe://foresight/application/a", f"{INFERENCE}ModelStreamInfer", True),
        ("spiffe://foresight/application/a", f"{INFERENCE}RepositoryIndex", True),
        ("spiffe://foresight/application/a", f"{INFERENCE}RepositoryModelLoad", False),
        ("spiffe://foresight/application/a", f"{INFERENCE}RepositoryModelUnload", False),
        ("spiffe://foresight/application/a", f"{INFERENCE}ModelInferEvil", False),
        ("spiffe://foresight/application/a", f"{INFERENCE}", False),
        ("spiffe://foresight/application/a", "/inference.GRPCInferenceServiceEvil/ModelInfer", False),
        ("spiffe://foresight/operator/a", "/inference.GRPCInferenceServiceEvil/ModelInfer", False),
        ("spiffe://foresight/application/a", PREDICT, True),
        ("spiffe://foresight/application/a", f"{PREDICT}Rows", True),
        ("spiffe://foresight/application/a", f"{PREDICT}Stream", True),
        ("spiffe://foresight/application-evil/a", f"{PREDICT}Stream", False),
        ("spiffe://foresight/application/a", "/foresight.logger.v1.OutcomeService/RecordOutcomes", True),
        ("spiffe://foresight/application/a", "/foresight.logger.v1.PredictionLogService/Append", False),
        ("spiffe://foresight/application/a", "/foresight.predictor.v1.PredictionServiceEvil/Predict", False),
        ("spiffe://foresight/application/a", "/foresight.trainer.v1.TrainingService/Train", False),
        ("spiffe://foresight/operator-evil/a", PREDICT, False),
        ("spiffe://foresight/operator", PREDICT, False),
        ("spiffe://foresight/operator/", PREDICT, False),
        ("spiffe://foresight/operator/a/b", PREDICT, False),
        ("spiffe://foresight/operator/a;URI=spiffe://foresight/operator/b", PREDICT, False),
        ("spiffe://foresight.example/operator/a", PREDICT, False),
        ("spiffe://foresightx/operator/a", PREDICT, False),
        ("https://foresight/operator/a", PREDICT, False),
        ("", PREDICT, False),
    ],
)
def test_nothing_is_allowed_that_is_not_listed(uri: str, path: str, allowed: bool) -> None:
    assert is_allowed(uri, path) is allowed


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a;b", "a,b", 'a"b', "ä", "x" * 64])
def test_an_identity_is_one_plain_segment(name: str) -> None:
    with pytest.raises(ValueError, match="no name of an identity"):
        OPERATOR.identity(name)
    assert APPLICATION.identity("shop-1") == "spiffe://foresight/application/shop-1"


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.reason)
def test_a_refusal_carries_the_status_that_clients_decode(refusal: Refusal) -> None:
    padded = refusal.details + "=" * (-len(refusal.details) % 4)
    status = status_pb2.Status.FromString(base64.b64decode(padded))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message) == (refusal.grpc_status, refusal.message)
    assert (info.domain, info.reason) == ("foresight", refusal.reason)
    assert f"ERROR_REASON_{refusal.reason}" in dict(errors_pb2.ErrorReason.items())
