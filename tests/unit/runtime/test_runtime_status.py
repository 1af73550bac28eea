"""The table from errors to status, and what an upstream's status means here."""

from __future__ import annotations

import inspect

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from foresight.errors.v1 import errors_pb2
from foresight.values import ExpectationsBroken, InvalidValue, Violation
from services.runtime import errors
from services.runtime.status import (
    DETAILS_KEY,
    INTERNAL_MESSAGE,
    STATUS_TABLE,
    MalformedMessage,
    error_metadata,
    status_of,
    unimplemented,
    upstream_error,
)

ERROR_TYPES = [
    type
    for _, type in inspect.getmembers(errors, inspect.isclass)
    if issubclass(type, errors.ServiceError) and type is not errors.ServiceError
]
# Sent outside of the table: malformed bytes, unknown methods, bugs; gRPC itself says when the time is up.
ELSEWHERE = {
    errors_pb2.ERROR_REASON_UNSPECIFIED,
    errors_pb2.ERROR_REASON_MALFORMED_MESSAGE,
    errors_pb2.ERROR_REASON_UNIMPLEMENTED,
    errors_pb2.ERROR_REASON_INTERNAL,
    errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
}


def an(type: type[Exception]) -> Exception:
    return errors.NotFound("model", "delay") if type is errors.NotFound else type("text")


def info_of(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


def test_the_table_has_every_error_type_and_every_reason_once() -> None:
    types = [type for type, _, _ in STATUS_TABLE]
    reasons = [reason for _, _, reason in STATUS_TABLE]
    assert sorted(map(str, types)) == sorted(map(str, [InvalidValue, ExpectationsBroken, *ERROR_TYPES]))
    assert sorted([*reasons, *ELSEWHERE]) == sorted(errors_pb2.ErrorReason.values())


@pytest.mark.parametrize("type", ERROR_TYPES)
def test_every_error_type_gets_the_row_of_its_own(type: type[Exception]) -> None:
    wanted = next(row for row in STATUS_TABLE if row[0] is type)
    code, status = status_of(an(type))
    assert code is wanted[1]
    assert status.code == code.value[0]
    reason = errors_pb2.ErrorReason.Name(wanted[2])
    assert f"ERROR_REASON_{info_of(status).reason}" == reason
    # The comment of the reason in the proto begins with its status.
    assert code is not grpc.StatusCode.INTERNAL


def test_anything_else_is_internal_with_a_fixed_text() -> None:
    code, status = status_of(ValueError("SELECT secret FROM somewhere"))
    assert code is grpc.StatusCode.INTERNAL
    assert status.message == INTERNAL_MESSAGE
    assert b"secret" not in status.SerializeToString()


@pytest.mark.parametrize(("seconds", "millis"), [(0.0, 1), (0.0502, 51), (2.5, 2_500)])
def test_an_overload_says_when_to_come_again(seconds: float, millis: int) -> None:
    """Rounded up, and never at once."""
    _, status = status_of(errors.Overloaded("too much", seconds, limit="deadline"))
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == millis
    assert info_of(status).metadata == {"limit": "deadline"}


def test_malformed_bytes_and_unknown_methods_have_reasons() -> None:
    assert info_of(status_of(MalformedMessage())[1]).reason == "MALFORMED_MESSAGE"
    assert info_of(unimplemented()).reason == "UNIMPLEMENTED"


def test_every_violation_names_its_field() -> None:
    _, status = status_of(InvalidValue("a", "is wrong", Violation("b", "is missing")))
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    assert [(v.field, v.description) for v in bad.field_violations] == [("a", "is wrong"), ("b", "is missing")]
    assert status.message == "a: is wrong; b: is missing"


@pytest.mark.parametrize(
    "error",
    [
        InvalidValue("a" * 5_000, "é" * 5_000, *(Violation(f"f{i}", "x" * 1_000) for i in range(2_000))),
        errors.NotFound("model", "🙂" * 5_000),
        errors.Unavailable("é" * 10_000, **{f"key{i}": "y" * 1_000 for i in range(100)}),
        errors.AlreadyExists("\ud800 half of a pair"),
    ],
)
def test_a_status_fits_into_the_trailers_whatever_is_in_it(error: Exception) -> None:
    _, status = status_of(error)
    # In the trailers, text beyond ASCII triples and bytes grow by a third.
    assert 3 * len(status.message.encode()) + status.ByteSize() * 4 / 3 < 8_000
    assert status.message


def from_upstream(code: grpc.StatusCode, text: str, metadata: dict[str, str] | None = None) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata()
    if metadata is not None:
        status = status_pb2.Status(code=code.value[0], message=text)
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason="X", domain="foresight", metadata=metadata))
        trailing.add(DETAILS_KEY, status.SerializeToString())
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, text)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_what_an_upstream_answers_keeps_its_meaning_or_is_a_bug(code: grpc.StatusCode) -> None:
    error = upstream_error(from_upstream(code, "socket /run/s refused"), "feature store")
    answered, status = status_of(error)
    match code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            assert answered is grpc.StatusCode.UNAVAILABLE
            assert status.message == "the feature store does not answer"
        case (
            grpc.StatusCode.NOT_FOUND
            | grpc.StatusCode.ALREADY_EXISTS
            | grpc.StatusCode.ABORTED
            | grpc.StatusCode.FAILED_PRECONDITION
            | grpc.StatusCode.OUT_OF_RANGE
            | grpc.StatusCode.RESOURCE_EXHAUSTED
            | grpc.StatusCode.PERMISSION_DENIED
            | grpc.StatusCode.DATA_LOSS
        ):
            assert answered is code
        case _:
            assert answered is grpc.StatusCode.INTERNAL


def test_not_found_of_an_upstream_says_what_was_not_found() -> None:
    rpc = from_upstream(grpc.StatusCode.NOT_FOUND, "no view delays", {"kind": "view", "name": "delays"})
    error = upstream_error(rpc, "feature store")
    assert isinstance(error, errors.NotFound)
    assert error.metadata == {"kind": "view", "name": "delays"}
    assert error_metadata(from_upstream(grpc.StatusCode.NOT_FOUND, "x")) == {}
