"""The one table from errors to gRPC status, with google.rpc details, and back from an upstream's status."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from foresight.errors.v1 import errors_pb2
from foresight.values import ExpectationsBroken, InvalidValue
from services.runtime import errors

ERROR_DOMAIN = "foresight"
DETAILS_KEY = "grpc-status-details-bin"
# gRPC drops a whole answer whose trailers are larger than 8 KiB: text beyond ASCII triples there, details grow by a
# third, and the message is in both.
MESSAGE_BYTES_MAX = 600
DETAILS_BYTES_MAX = 4_000
METADATA_MAX = 8
VALUE_BYTES_MAX = 200
INTERNAL_MESSAGE = "internal error; the service's log has the details under this request id"

# The most specific type comes first where one derives from another.
STATUS_TABLE: Sequence[tuple[type[Exception], grpc.StatusCode, errors_pb2.ErrorReason.ValueType]] = (
    (ExpectationsBroken, grpc.StatusCode.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_EXPECTATION_FAILED),
    (InvalidValue, grpc.StatusCode.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_INVALID_FIELD),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND, errors_pb2.ERROR_REASON_NOT_FOUND),
    (errors.FeatureMissing, grpc.StatusCode.NOT_FOUND, errors_pb2.ERROR_REASON_FEATURE_MISSING),
    (errors.AlreadyExists, grpc.StatusCode.ALREADY_EXISTS, errors_pb2.ERROR_REASON_ALREADY_EXISTS),
    (errors.StaleEtag, grpc.StatusCode.ABORTED, errors_pb2.ERROR_REASON_STALE_ETAG),
    (errors.ModelNotReady, grpc.StatusCode.FAILED_PRECONDITION, errors_pb2.ERROR_REASON_MODEL_NOT_READY),
    (errors.TransformMismatch, grpc.StatusCode.FAILED_PRECONDITION, errors_pb2.ERROR_REASON_TRANSFORM_MISMATCH),
    (errors.FailedPrecondition, grpc.StatusCode.FAILED_PRECONDITION, errors_pb2.ERROR_REASON_FAILED_PRECONDITION),
    (errors.OutOfRange, grpc.StatusCode.OUT_OF_RANGE, errors_pb2.ERROR_REASON_OUT_OF_RANGE),
    (errors.SpoolFull, grpc.StatusCode.RESOURCE_EXHAUSTED, errors_pb2.ERROR_REASON_SPOOL_FULL),
    (errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED, errors_pb2.ERROR_REASON_OVERLOADED),
    (errors.LimitExceeded, grpc.StatusCode.RESOURCE_EXHAUSTED, errors_pb2.ERROR_REASON_LIMIT_EXCEEDED),
    (errors.PermissionDenied, grpc.StatusCode.PERMISSION_DENIED, errors_pb2.ERROR_REASON_PERMISSION_DENIED),
    (errors.DataLoss, grpc.StatusCode.DATA_LOSS, errors_pb2.ERROR_REASON_DATA_LOSS),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE, errors_pb2.ERROR_REASON_UNAVAILABLE),
)


_INTERNAL = grpc.StatusCode.INTERNAL


class MalformedMessage(Exception):
    """The bytes of a request are not a message of the expected type."""


def status_of(error: Exception) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """The status of an error; anything that is not in the table is INTERNAL with a fixed text."""
    if isinstance(error, MalformedMessage):
        code = grpc.StatusCode.INVALID_ARGUMENT
        malformed = errors_pb2.ERROR_REASON_MALFORMED_MESSAGE
        return code, _status(code, malformed, "the request is not a valid message", {})
    for type, code, reason in STATUS_TABLE:
        if isinstance(error, type):
            if isinstance(error, InvalidValue):
                status = _status(code, reason, str(error), {})
                status.details.append(_packed(_bad_request(error, DETAILS_BYTES_MAX - status.ByteSize())))
                return code, status
            assert isinstance(error, errors.ServiceError)
            status = _status(code, reason, error.message, error.metadata)
            if error.retry_after_s is not None:
                status.details.append(_packed(_retry_info(error.retry_after_s)))
            return code, status
    code = grpc.StatusCode.INTERNAL
    return code, _status(code, errors_pb2.ERROR_REASON_INTERNAL, INTERNAL_MESSAGE, {})


def code_name_of(error: BaseException) -> str:
    """The name of the status that a call ends with: one of gRPC's."""
    if isinstance(error, Exception):
        return str(next((code for type, code, _ in STATUS_TABLE if isinstance(error, type)), _INTERNAL).name)
    return str(grpc.StatusCode.CANCELLED.name)


def unimplemented() -> status_pb2.Status:
    """The status of a method that the server does not have."""
    reason = errors_pb2.ERROR_REASON_UNIMPLEMENTED
    return _status(grpc.StatusCode.UNIMPLEMENTED, reason, "the service has no such method", {})


def reason_of(status: status_pb2.Status) -> str:
    """The reason in the ErrorInfo of a status; empty without one."""
    info = error_details_pb2.ErrorInfo()
    return next((str(info.reason) for detail in status.details if detail.Unpack(info)), "")


def upstream_error(error: grpc.RpcError, upstream: str) -> Exception:
    """The error that a call to another service means here.

    Its own NOT_FOUND, FAILED_PRECONDITION, ... keep their meaning; what is only between the two services
    (INVALID_ARGUMENT, UNIMPLEMENTED, INTERNAL) is a bug here: it is returned unchanged, hence INTERNAL.
    """
    code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    text = (error.details() if hasattr(error, "details") else None) or ""
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        # The upstream's own text may be gRPC's and name a socket.
        return errors.Unavailable(f"the {upstream} does not answer", upstream=upstream)
    for type, known, _ in reversed(STATUS_TABLE):
        if (
            code is known
            and issubclass(type, errors.ServiceError)
            and type
            not in (
                errors.NotFound,
                errors.FeatureMissing,
            )
        ):
            return type(text, upstream=upstream)
    if code is grpc.StatusCode.NOT_FOUND:
        metadata = error_metadata(error)
        return errors.NotFound(metadata.get("kind", "thing"), metadata.get("name", text))
    return error


def error_metadata(error: grpc.RpcError) -> dict[str, str]:
    """The metadata of the ErrorInfo in an RPC error's trailing metadata; empty without one."""
    trailing: Any = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    for key, value in trailing or ():
        if key == DETAILS_KEY:
            status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return dict(info.metadata)
    return {}


def _status(
    code: grpc.StatusCode, reason: errors_pb2.ErrorReason.ValueType, text: str, metadata: dict[str, str]
) -> status_pb2.Status:
    name = errors_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
    short = {key: _cut(value, VALUE_BYTES_MAX) for key, value in list(metadata.items())[:METADATA_MAX]}
    info = error_details_pb2.ErrorInfo(domain=ERROR_DOMAIN, reason=name, metadata=short)
    return status_pb2.Status(code=code.value[0], message=_cut(text, MESSAGE_BYTES_MAX), details=[_packed(info)])


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    """google.rpc.RetryInfo, to the millisecond and never at once."""
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(max(1, math.ceil(seconds * 1_000)))
    return info


def _bad_request(error: InvalidValue, bytes_max: int) -> error_details_pb2.BadRequest:
    """The first violations, as many as fit."""
    bad = error_details_pb2.BadRequest()
    for violation in error.violations:
        field, description = (_cut(text, VALUE_BYTES_MAX) for text in (violation.field, violation.description))
        bytes_max -= len(field.encode()) + len(description.encode()) + 16
        if bytes_max < 0:
            break
        bad.field_violations.add(field=field, description=description)
    return bad


def _cut(text: str, bytes_max: int) -> str:
    return text.encode(errors="replace")[:bytes_max].decode(errors="ignore")


def _packed(message: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
