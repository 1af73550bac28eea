"""Nobody without a valid, permitted certificate reaches a service."""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from foresight.errors.v1 import errors_pb2
from gateway.certificates import make_authority
from gateway.policy import is_allowed
from services.runtime.errors import PermissionDenied
from services.runtime.identity import caller_of
from tests.integration.gateway.rig import PREDICT, TRAIN, Rig

OPERATOR = "spiffe://foresight/operator/test"
Issue = Callable[[Rig], bytes | None]


def reason_of(error: grpc.RpcError) -> str:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    assert f"ERROR_REASON_{info.reason}" in dict(errors_pb2.ErrorReason.items())
    return str(info.reason)


@pytest.mark.parametrize(
    "issue",
    [
        pytest.param(lambda rig: None, id="no certificate"),
        pytest.param(lambda rig: rig.issue(OPERATOR, authority=make_authority(datetime.now(UTC))), id="unknown CA"),
        pytest.param(lambda rig: rig.issue(OPERATOR, issued=timedelta(days=-366)), id="expired"),
        pytest.param(lambda rig: rig.issue(OPERATOR, issued=timedelta(days=1)), id="not yet valid"),
        pytest.param(lambda rig: rig.issue(OPERATOR, usage=ExtendedKeyUsageOID.SERVER_AUTH), id="for servers only"),
        pytest.param(lambda rig: rig.gateway.certificates.server.read_bytes(), id="the gateway's own"),
    ],
)
def test_an_invalid_certificate_ends_in_the_handshake(rig: Rig, issue: Issue) -> None:
    assert rig.refused(issue(rig)).code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "issue",
    [
        pytest.param(lambda rig: rig.issue(), id="no SAN"),
        pytest.param(lambda rig: rig.issue(common_name=OPERATOR), id="identity in the subject"),
        pytest.param(lambda rig: rig.issue(dns=[OPERATOR]), id="identity in a DNS name"),
        pytest.param(lambda rig: rig.issue("spiffe://foresight/operator-evil/test"), id="longer role"),
        pytest.param(lambda rig: rig.issue("spiffe://foresight/operator"), id="no name"),
        pytest.param(lambda rig: rig.issue("spiffe://foresight/operator/"), id="empty name"),
        pytest.param(lambda rig: rig.issue("spiffe://foresight/operator/a/b"), id="two segments"),
        pytest.param(lambda rig: rig.issue("spiffe://foresight/application/../operator/a"), id="dots"),
        pytest.param(lambda rig: rig.issue("spiffe://foresight-evil/operator/a"), id="longer domain"),
        pytest.param(lambda rig: rig.issue("https://foresight/operator/a"), id="another scheme"),
        pytest.param(lambda rig: rig.issue(OPERATOR + ";URI=x"), id="header separators"),
    ],
)
def test_an_unknown_identity_is_denied_before_any_service_sees_the_call(rig: Rig, issue: Issue) -> None:
    error = rig.refused(issue(rig))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


@pytest.mark.parametrize(
    "path",
    [
        TRAIN,
        "/foresight.feature_store.v1.OfflineFeatureService/WriteRows",
        "/foresight.logger.v1.PredictionLogService/Append",
        "/foresight.predictor.v1.PredictionServiceEvil/Predict",
        "/foresight.predictor.v1./Predict",
        "/foresight.predictor.v1.PredictionService/../../foresight.trainer.v1.TrainingService/Train",
        "//foresight.trainer.v1.TrainingService/Train",
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        "/inference.GRPCInferenceService/RepositoryModelUnload",
        "/inference.GRPCInferenceService/ModelInfer/../RepositoryModelLoad",
        "/inference.GRPCInferenceService/ModelInferEvil",
    ],
)
def test_an_application_is_denied_what_it_was_not_granted(rig: Rig, path: str) -> None:
    error = rig.refused(rig.client("application"), path)
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


@pytest.mark.parametrize("role", ["operator", "application"])
@pytest.mark.parametrize(
    "path",
    [
        PREDICT,
        TRAIN,
        "/foresight.feature_store.v1.FeatureRegistryService/RegisterGroup",
        "/foresight.logger.v1.OutcomeService/RecordOutcomes",
        "/foresight.logger.v1.PredictionLogService/ReadLog",
        "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelStatistics",
        "/inference.GRPCInferenceService/RepositoryIndex",
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        "/inference.GRPCInferenceService/RepositoryModelUnload",
        "/inference.GRPCInferenceService/SystemSharedMemoryStatus",
    ],
)
def test_the_gateway_agrees_with_the_policy(rig: Rig, role: str, path: str) -> None:
    if is_allowed(f"spiffe://foresight/{role}/test", path):
        assert rig.call(rig.client(role), path)[0] == b"hello"
        assert [method for method, _ in rig.calls()] == [path]
    else:
        assert rig.refused(rig.client(role), path).code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("role", ["operator", "application"])
@pytest.mark.parametrize(
    "path",
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/foresight.unknown.v1.Service/Method",
        "/foresight.trainer.v2.TrainingService/Train",
        "/inference.GRPCInferenceServiceEvil/ModelInfer",
        "/",
    ],
)
def test_a_service_that_does_not_exist_is_unimplemented(rig: Rig, role: str, path: str) -> None:
    error = rig.refused(rig.client(role), path)
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED")


def test_two_identities_in_one_certificate_are_for_the_service_to_refuse(rig: Rig) -> None:
    rig.call(rig.issue("spiffe://foresight/operator/a", "spiffe://foresight/operator/b"))
    [(_, metadata)] = rig.calls()
    with pytest.raises(PermissionDenied, match="exactly one identity"):
        caller_of(metadata.items())


def test_plaintext_gets_nothing(rig: Rig) -> None:
    with grpc.insecure_channel(rig.address) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(PREDICT)(b"hello", timeout=5)  # type: ignore[arg-type]  # untyped without a serializer
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    with socket.create_connection(("127.0.0.1", rig.gateway.port), timeout=5) as plain:
        plain.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n")
        assert plain.recv(1024) == b""
    assert rig.calls() == []


def client_context(rig: Rig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(rig.gateway.certificates.authority))
    context.load_cert_chain(rig.gateway.certificates.client("operator"))
    return context


def test_http_1_is_not_spoken(rig: Rig) -> None:
    context = client_context(rig)
    context.set_alpn_protocols(["http/1.1"])
    with (
        socket.create_connection(("localhost", rig.gateway.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        assert secure.selected_alpn_protocol() is None
        secure.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert not secure.recv(4096).startswith(b"HTTP/1.1")
    assert rig.calls() == []


def test_tls_older_than_1_2_is_refused(rig: Rig) -> None:
    context = client_context(rig)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(("localhost", rig.gateway.port), timeout=5) as plain,
        pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"),
    ):
        context.wrap_socket(plain, server_hostname="localhost")
