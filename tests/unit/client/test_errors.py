"""What services answer, and what gRPC and the gateway say for them, becomes one tree of errors."""

from typing import Any

import grpc
import pytest

from foresight.client import errors
from foresight.client.errors import BY_CODE, ForesightError
from foresight.client.statuses import error_of
from foresight.values import InvalidValue, Violation
from services.runtime import errors as service_errors
from services.runtime.status import DETAILS_KEY, STATUS_TABLE, status_of


class Failed(grpc.RpcError):
    """A failed call as gRPC shows it."""

    def __init__(self, code: grpc.StatusCode, text: str = "", details: bytes | None = None) -> None:
        self._code, self._text, self._details = code, text, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> Any:
        return () if self._details is None else ((DETAILS_KEY, self._details),)


def _answered(error: Exception) -> ForesightError:
    code, status = status_of(error)
    return error_of(Failed(code, status.message, status.SerializeToString()), "here")


@pytest.mark.parametrize("kind", [kind for kind, _, _ in STATUS_TABLE], ids=lambda kind: kind.__name__)
def test_every_error_of_a_service_has_its_class_here(kind: type[Exception]) -> None:
    code, reason = next((c, r) for k, c, r in STATUS_TABLE if k is kind)
    # These two take a kind of thing and its name, or a field and its fault; the others a message.
    two = issubclass(kind, service_errors.NotFound | InvalidValue)
    error = _answered(kind("group", "weather") if two else kind("not possible"))
    assert type(error) is BY_CODE[code.name]
    assert error.code == code.name
    assert error.reason
    assert reason


def test_reason_metadata_and_violations_are_decoded() -> None:
    error = _answered(service_errors.NotFound("group", "weather"))
    assert (str(error), error.reason, error.metadata) == (
        "no group weather",
        "NOT_FOUND",
        {"kind": "group", "name": "weather"},
    )
    refused = _answered(InvalidValue("a", "is wrong", Violation("b", "is too")))
    assert isinstance(refused, ValueError)
    assert refused.violations == (Violation("a", "is wrong"), Violation("b", "is too"))
    assert str(refused) == "a: is wrong; b: is too"


def test_when_to_come_again_is_decoded() -> None:
    """Only an overload says it. A call that was dropped before it was looked at is one that nobody answered."""
    assert _answered(service_errors.Overloaded("too much", 0.25)).retry_after_s == 0.25
    assert _answered(service_errors.LimitExceeded("too large")).retry_after_s is None
    dropped = error_of(Failed(grpc.StatusCode.CANCELLED, "CANCELLED"), "here")
    assert type(dropped) is errors.Unavailable


def test_a_bug_of_a_service_is_internal_with_a_fixed_text() -> None:
    error = _answered(ZeroDivisionError("secret"))
    assert type(error) is errors.Internal
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("code", "text", "kind", "says"),
    [
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused",
            errors.NotConnected,
            "no Foresight answers at here (connection refused)",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED",
            errors.NotConnected,
            "no certificate that this client trusts",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: Unwrap failed (TSI_DATA_CORRUPTED)",
            errors.NotConnected,
            "does not trust this client's certificate",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: Handshake read failed (Socket closed)",
            errors.NotConnected,
            "no Foresight answers at here (socket closed)",
        ),
        (grpc.StatusCode.UNAVAILABLE, "upstream connect error or disconnect", errors.Unavailable, "behind the gateway"),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", errors.Unavailable, "behind the gateway"),
        (grpc.StatusCode.UNKNOWN, "Stream removed", errors.Unavailable, "behind the gateway"),
        (grpc.StatusCode.UNAVAILABLE, "no healthy upstream", errors.Unavailable, "no healthy upstream"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", errors.DeadlineExceeded, "timeout_s"),
        (grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied", errors.PermissionDenied, "certificate"),
        (grpc.StatusCode.INTERNAL, "something else", errors.Internal, "something else"),
        (grpc.StatusCode.UNAUTHENTICATED, "who are you", ForesightError, "who are you"),
    ],
)
def test_a_failure_without_a_service_behind_it_is_named_for_what_it_is(
    code: grpc.StatusCode, text: str, kind: type[ForesightError], says: str
) -> None:
    error = error_of(Failed(code, text), "here")
    assert type(error) is kind
    assert says in str(error)


def test_only_refused_certificates_are_past_mending() -> None:
    """A gateway that is just starting breaks handshakes off; that is worth another try."""

    def reason(text: str) -> str:
        return error_of(Failed(grpc.StatusCode.UNAVAILABLE, f"failed to connect: {text}"), "here").reason

    assert reason("CERTIFICATE_VERIFY_FAILED") == reason("TSI_DATA_CORRUPTED") == errors.CERTIFICATE
    assert reason("Handshake read failed (recvmsg:Connection reset by peer (104))") == ""


def test_details_that_are_no_status_are_ignored() -> None:
    error = error_of(Failed(grpc.StatusCode.NOT_FOUND, "gone", b"\xff\xff\xff"), "here")
    assert (type(error), str(error)) == (errors.NotFound, "gone")


def test_an_error_knows_its_code_without_being_told() -> None:
    assert errors.DataLoss("damaged").code == "DATA_LOSS"
    assert all(kind.default_code == code for code, kind in BY_CODE.items())
