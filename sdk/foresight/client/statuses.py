"""From a gRPC status, with its google.rpc details, to the error that a caller sees."""

from __future__ import annotations

import re
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from foresight.client.errors import BY_CODE, CERTIFICATE, ForesightError, NotConnected, Unavailable
from foresight.values import Violation

_DETAILS_KEY = "grpc-status-details-bin"
# A stream whose service dies after its first message ends with what HTTP/2 says, not with a service's status.
_BROKEN_STREAM = re.compile(
    r"RST_STREAM|GOAWAY|Stream removed|[Cc]onnection reset|Socket closed|upstream connect error"
)
_UNREACHABLE = re.compile(r"failed to connect|connections to all backends|errors? resolving|resolution|empty address")
# A handshake that merely breaks off, as when the gateway is starting, says nothing about certificates.
_UNTRUSTED_GATEWAY = re.compile(r"CERTIFICATE_VERIFY_FAILED|peer name|peer certificate", re.IGNORECASE)
_UNTRUSTED_CLIENT = re.compile(r"TSI_DATA_CORRUPTED|_ALERT_")
_CAUSE = re.compile(
    r"Connection refused|Connection reset|Socket closed|No route to host|Network is unreachable|timed? ?out"
    r"|WRONG_VERSION_NUMBER|Domain name not found",
    re.IGNORECASE,
)


def error_of(error: grpc.RpcError, address: str) -> ForesightError:
    """The error of a failed call through the gateway at `address`."""
    known: Any = error
    code = str(known.code().name) if hasattr(error, "code") else "UNKNOWN"
    text = str(known.details() or "") if hasattr(error, "details") else ""
    status = _status_of(error)
    if status is None:
        return _without_status(code, text, address)
    return _with_status(code, text, status)


def error_of_status(code: int, text: str, status: bytes) -> ForesightError:
    """The error of a request of a stream, answered with the number of a code and a serialized google.rpc.Status."""
    name = next((known.name for known in grpc.StatusCode if known.value[0] == code), "UNKNOWN")
    try:
        return _with_status(name, text, status_pb2.Status.FromString(status))
    except DecodeError:
        return _with_status(name, text, status_pb2.Status())


def _with_status(code: str, text: str, status: status_pb2.Status) -> ForesightError:
    info = error_details_pb2.ErrorInfo()
    violations: list[Violation] = []
    retry_after_s = None
    for detail in status.details:
        request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1_000
        elif detail.Unpack(request):
            violations = [Violation(v.field, v.description) for v in request.field_violations]
    kind = BY_CODE.get(code, ForesightError)
    message = status.message or text or code
    return kind(
        message,
        code=code,
        reason=info.reason,
        violations=violations,
        metadata=info.metadata,
        retry_after_s=retry_after_s,
    )


def _status_of(error: grpc.RpcError) -> status_pb2.Status | None:
    known: Any = error
    trailing = known.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    for key, value in trailing or ():
        if key == _DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode("latin-1"))
            except DecodeError:
                return None
    return None


def _without_status(code: str, text: str, address: str) -> ForesightError:
    """The error of a call that no service answered: gRPC or the gateway itself says what is wrong."""
    if code == "UNAVAILABLE" and _UNREACHABLE.search(text):
        if _UNTRUSTED_GATEWAY.search(text):
            return NotConnected(
                f"what answers at {address} has no certificate that this client trusts", reason=CERTIFICATE
            )
        if _UNTRUSTED_CLIENT.search(text):
            return NotConnected(
                f"the gateway at {address} does not trust this client's certificate", reason=CERTIFICATE
            )
        cause = _CAUSE.search(text)
        said = f" ({cause[0].lower().replace('_', ' ')})" if cause else ""
        return NotConnected(f"no Foresight answers at {address}{said}")
    if code in ("UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED") and _BROKEN_STREAM.search(text):
        return Unavailable(f"the service behind the gateway at {address} does not answer")
    if code == "CANCELLED":
        # By the other side: a service that has too many calls waiting drops new ones before it looks at them.
        return Unavailable(f"Foresight at {address} has too many calls waiting")
    if code == "UNAVAILABLE":
        return Unavailable(f"Foresight at {address} does not answer: {text[:200]}")
    if code == "DEADLINE_EXCEEDED":
        return BY_CODE[code]("no answer came in time; give the call a larger timeout_s")
    if code == "PERMISSION_DENIED":
        return BY_CODE[code]("the certificate of this client does not allow the call")
    return BY_CODE.get(code, ForesightError)(text or code, code=code)
