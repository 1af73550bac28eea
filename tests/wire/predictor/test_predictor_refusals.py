"""What bad input gets from the predictor: a clear error that names the field, and nothing recorded."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from foresight.predictor.v1 import prediction_pb2
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType
from services.runtime.status import DETAILS_KEY
from tests.wire.predictor.rig import NOW, Replica, ask


def details(error: grpc.aio.AioRpcError) -> tuple[str, list[str]]:
    """The reason and the violated fields."""
    raw = dict(error.trailing_metadata())[DETAILS_KEY]
    assert isinstance(raw, bytes)
    status = status_pb2.Status.FromString(raw)
    reason, fields = "", []
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        if detail.Unpack(bad):
            fields = [v.field for v in bad.field_violations]
    return reason, fields


def column(name: str, type: DataType, *values: Any, dimension: int = 0) -> Column:
    return Column.build(name, type, values, dimension)


def raw(**changes: Any) -> prediction_pb2.PredictRequest:
    """A valid request whose column `hour` is replaced by a message."""
    request = ask(without="hour")
    request.columns.append(types_pb2.Column(name="hour", **changes))
    return request


def with_columns(*columns: types_pb2.Column) -> prediction_pb2.PredictRequest:
    request = ask()
    request.columns.extend(columns)
    return request


def with_time(**changes: Any) -> prediction_pb2.PredictRequest:
    request = ask()
    request.event_time.CopyFrom(Timestamp(**changes))
    return request


def with_text(text: str) -> prediction_pb2.PredictRequest:
    request = ask(without="route")
    request.columns.append(types_pb2.Column(name="route", string_values=types_pb2.StringValues(values=[text])))
    return request


floats = types_pb2.Float64Values
INVALID = {
    "no columns": (prediction_pb2.PredictRequest(deployment="late_flights"), "columns[carrier]"),
    "a missing key": (ask(without="carrier"), "columns[carrier]"),
    "a missing request feature": (ask(without="hour"), "columns[hour]"),
    "an extra column": (ask(extra=column("extra", DataType.INT64, 1)), "columns[extra]"),
    "a feature of a group": (ask(wind=column("wind", DataType.FLOAT64, 1.0)), "columns[wind]"),
    "the label": (ask(late=column("late", DataType.BOOL, True)), "columns[late]"),
    "a text for a number": (ask(hour=column("hour", DataType.STRING, "7")), "columns[hour]"),
    "a bool for a number": (ask(hour=column("hour", DataType.BOOL, True)), "columns[hour]"),
    "a number for a text": (ask(route=column("route", DataType.FLOAT64, 1.0)), "columns[route]"),
    "a vector for a number": (ask(hour=column("hour", DataType.FLOAT_VECTOR, [1.0], dimension=1)), "columns[hour]"),
    "an integer beyond 2^53": (ask(hour=column("hour", DataType.INT64, 2**53 + 1)), "columns[hour]"),
    "the least integer": (ask(hour=column("hour", DataType.INT64, -(2**63))), "columns[hour]"),
    "NaN": (raw(float64_values=floats(values=[float("nan")])), "columns[hour]"),
    "an infinity": (raw(float64_values=floats(values=[float("-inf")])), "columns[hour]"),
    "no values": (raw(), "columns[hour]"),
    "validity of another length": (raw(float64_values=floats(values=[1.0]), validity=b"\1\1"), "columns[hour]"),
    "validity beyond 1": (raw(float64_values=floats(values=[1.0]), validity=b"\2"), "columns[hour]"),
    "columns of different lengths": (raw(float64_values=floats(values=[1.0, 2.0])), "columns[hour]"),
    "the same column twice": (with_columns(ask().columns[0]), "columns"),
    "a column without a name": (with_columns(types_pb2.Column(float64_values=floats(values=[1.0]))), "columns"),
    "an extra column with an odd name": (
        with_columns(types_pb2.Column(name="../\u202e" * 40, float64_values=floats(values=[1.0]))),
        "columns[",
    ),
    "more columns than a view can have": (
        with_columns(*(types_pb2.Column(name=f"c{i}", bool_values=types_pb2.BoolValues()) for i in range(600))),
        "columns",
    ),
    "no rows": (ask(0), "columns"),
    "too many rows": (ask(1_025), "columns"),
    "a NUL in a text": (with_text("a\0b"), "columns[route]"),
    "a text that is not NFC": (with_text("e\u0301"), "columns[route]"),
    "a text of a megabyte": (with_text("x" * (1 << 20)), "columns[route]"),
    "no deployment": (ask(deployment=""), "deployment"),
    "a path as deployment": (ask(deployment="../late"), "deployment"),
    "SQL as deployment": (ask(deployment="x'; DROP TABLE y"), "deployment"),
    "a deployment of 64 bytes": (ask(deployment="d" * 64), "deployment"),
    "bad nanoseconds": (with_time(seconds=1, nanos=1_000_000_000), "event_time"),
    "a year over 9999": (with_time(seconds=253_402_300_800), "event_time"),
}


@pytest.mark.parametrize("case", INVALID)
async def test_invalid_requests_name_their_field_and_leave_nothing(replica: Replica, case: str) -> None:
    """INVALID_ARGUMENT whatever the state; the service goes on."""
    request, field = INVALID[case]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.stub.Predict(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    reason, fields = details(caught.value)
    assert reason == "INVALID_FIELD"
    assert any(f == field or (field.endswith("[") and f.startswith(field)) for f in fields), fields
    assert len(caught.value.details() or "") < 4_000
    assert replica.spool.size == 0


async def test_all_faults_of_a_request_are_told_together(replica: Replica) -> None:
    """A missing key, a wrong type and an extra column."""
    request = ask(without="carrier", hour=column("hour", DataType.BOOL, True), extra=column("extra", DataType.INT64, 1))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.stub.Predict(request)
    assert details(caught.value)[1] == ["columns[carrier]", "columns[extra]", "columns[hour]"]


async def test_five_minutes_ahead_are_allowed_and_no_more(replica: Replica) -> None:
    """OUT_OF_RANGE beyond."""
    await replica.stub.Predict(ask(event_time=NOW + timedelta(minutes=5)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.stub.Predict(ask(event_time=NOW + timedelta(minutes=5, seconds=1)))
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", ask().SerializeToString()[:-3]])
async def test_malformed_bytes_are_told_apart(replica: Replica, data: bytes) -> None:
    """Random, bad UTF-8, cut short."""
    channel = replica.channel
    call: Any = channel.unary_unary("/foresight.predictor.v1.PredictionService/Predict")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(data)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)[0] == "MALFORMED_MESSAGE"


@pytest.mark.parametrize("bad", ["", "x", "../../etc", "0198B5D1-0000-7000-8000-000000000000", "1" * 10_000])
async def test_an_id_that_is_none_is_invalid(replica: Replica, bad: str) -> None:
    """Before anything is asked of the logger."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.stub.VerifyPrediction(prediction_pb2.VerifyPredictionRequest(prediction_id=bad))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)[1] == ["prediction_id"]
