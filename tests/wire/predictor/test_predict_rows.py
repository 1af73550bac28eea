"""PredictRows is Predict for those who have JSON: the same answers and the same records, to the bit."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foresight.predictor.v1 import prediction_pb2
from foresight.values import Column, DataType, FeatureView, Field
from foresight.wire import encode_column, encode_instant
from tests.wire.predictor.rig import NOW, Replica, Rig, artifact, ask, flight_view, model_version, running_rig, until
from tests.wire.predictor.test_predictor_refusals import details

TYPED = FeatureView(
    name="typed",
    version=1,
    label=Field("late", DataType.BOOL),
    request_features=(
        Field("ratio", DataType.FLOAT64),
        Field("count", DataType.INT64),
        Field("flag", DataType.BOOL),
        Field("text", DataType.STRING),
        Field("vector", DataType.FLOAT_VECTOR, 2),
    ),
    features=(
        Field("ratio", DataType.FLOAT64),
        Field("count", DataType.INT64),
        Field("flag", DataType.BOOL),
        Field("text", DataType.STRING),
        Field("vector", DataType.FLOAT_VECTOR, 2),
    ),
)
INPUTS = ("ratio", "count")
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "ratio": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "count": st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-100, 100),
            "flag": st.none() | st.booleans(),
            "text": st.none() | st.text("ab\0 ", max_size=3),
            "vector": st.none() | st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=2),
        }
    ),
    min_size=1,
    max_size=4,
)
Outcome = tuple[str, list[Any], list[bytes]]


def struct(values: dict[str, Any]) -> Struct:
    message = Struct()
    message.update(
        {
            name: str(value) if name == "count" and value is not None and abs(value) >= 2**53 else value
            for name, value in values.items()
        }
    )
    return message


def flight(**changes: Any) -> Struct:
    return struct({"carrier": "AA", "origin": "JFK", "hour": 0.0, "route": "jfk-lax"} | changes)


def rows_of(*rows: Struct, deployment: str = "late_flights") -> prediction_pb2.PredictRowsRequest:
    return prediction_pb2.PredictRowsRequest(deployment=deployment, rows=rows, event_time=encode_instant(NOW))


def typed_request(rows: list[dict[str, Any]]) -> prediction_pb2.PredictRequest:
    """The same values as columns, also those that no well-behaved client would send."""
    request = prediction_pb2.PredictRequest(deployment="typed", event_time=encode_instant(NOW))
    for field in TYPED.request_features:
        values = [row[field.name] for row in rows]
        plain = [value.replace("\0", "?") if isinstance(value, str) else value for value in values]
        message = encode_column(Column.build(field.name, field.type, plain, field.dimension))
        if field.type is DataType.STRING:
            message.string_values.values[:] = [value or "" for value in values]
        request.columns.append(message)
    return request


async def recorded(rig: Rig, ids: list[str]) -> list[bytes]:
    """What the log has of predictions, but for what says which one it is."""
    await until(lambda: set(ids) <= rig.logger.records.keys())
    parts = []
    for record, row in (rig.logger.records[id] for id in ids):
        columns = (*record.entity_keys, *record.request_features, *record.outputs)
        features = [f.SerializeToString(deterministic=True) for f in record.features]
        shown = [c.SerializeToString(deterministic=True) for c in columns]
        parts.append(b"|".join([*shown, *features, record.event_time.SerializeToString(), bytes([row])]))
    return parts


async def outcome_of_rows(rig: Rig, replica: Replica, rows: list[dict[str, Any]]) -> Outcome:
    try:
        answer = await replica.stub.PredictRows(rows_of(*map(struct, rows), deployment="typed"))
    except grpc.aio.AioRpcError as error:
        return error.code().name, [], []
    values = [
        (row.outputs.fields["probability"].number_value, row.outputs.fields["label"].bool_value) for row in answer.rows
    ]
    assert {(row.model.name, row.model.version) for row in answer.rows} == {("typed", 1)}
    return "OK", values, await recorded(rig, [row.prediction_id for row in answer.rows])


async def outcome_of_columns(rig: Rig, replica: Replica, rows: list[dict[str, Any]]) -> Outcome:
    try:
        answer = await replica.stub.Predict(typed_request(rows))
    except grpc.aio.AioRpcError as error:
        return error.code().name, [], []
    probability, label = answer.outputs
    values = list(zip(probability.float64_values.values, label.bool_values.values, strict=True))
    return "OK", values, await recorded(rig, list(answer.prediction_ids))


async def deploy_typed(rig: Rig) -> None:
    rig.features.views[(TYPED.name, TYPED.version)] = TYPED
    rig.trainer.register(model_version(1, model="typed", view=TYPED, inputs=INPUTS), artifact(0.5, INPUTS))
    await rig.trainer.deploy("typed", "typed", 1)


def test_rows_are_answered_and_logged_as_columns_are() -> None:
    """For whatever values: the same scores, the same records, and what is refused of one is refused of the other."""
    codes: set[str] = set()
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()

        async def start() -> tuple[Rig, Replica]:
            rig = await stack.enter_async_context(running_rig())
            await deploy_typed(rig)
            replica = await stack.enter_async_context(rig.predictor())
            await until(lambda: replica.deployments.ready)
            return rig, replica

        try:
            rig, replica = runner.run(start())

            @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
            @given(ROWS)
            def holds(rows: list[dict[str, Any]]) -> None:
                by_rows = runner.run(outcome_of_rows(rig, replica, rows))
                assert by_rows == runner.run(outcome_of_columns(rig, replica, rows))
                codes.add(by_rows[0])

            holds()
        finally:
            runner.run(stack.aclose())
    assert codes >= {"OK", "INVALID_ARGUMENT"}


async def test_features_are_looked_up_and_what_is_missing_is_named_by_row(rig: Rig, replica: Replica) -> None:
    """Model, event time and ids are those of a prediction."""
    answer = await replica.stub.PredictRows(rows_of(flight(), flight(carrier="UA", hour=1)))
    columns = await replica.stub.Predict(ask(2, event_time=NOW))
    assert [r.outputs.fields["probability"].number_value for r in answer.rows] == list(
        columns.outputs[0].float64_values.values
    )
    assert list(answer.missing) == list(columns.missing)
    assert [m.row for m in answer.missing] == [1]
    assert answer.event_time == encode_instant(NOW)
    assert {(r.model.name, r.model.version) for r in answer.rows} == {("late", 1)}
    assert len({r.prediction_id for r in answer.rows}) == 2


async def test_the_most_rows_at_once_equal_the_columns(replica: Replica) -> None:
    """1,024 of them."""
    many = rows_of(*(flight(carrier=("AA", "UA")[i % 2], hour=i % 24) for i in range(1_024)))
    answer = await replica.stub.PredictRows(many)
    columns = await replica.stub.Predict(ask(1_024, event_time=NOW))
    assert [r.outputs.fields["probability"].number_value for r in answer.rows] == list(
        columns.outputs[0].float64_values.values
    )


def nested(depth: int) -> Value:
    value = Value(number_value=1)
    for _ in range(depth):
        outer = Value()
        outer.list_value.values.append(value)
        value = outer
    return value


def deep(depth: int) -> Struct:
    row = flight()
    row.fields["hour"].CopyFrom(nested(depth))
    return row


REFUSED: dict[str, tuple[prediction_pb2.PredictRowsRequest, grpc.StatusCode, str]] = {
    "no rows": (rows_of(), grpc.StatusCode.INVALID_ARGUMENT, "rows"),
    "too many rows": (rows_of(*[flight()] * 1_025), grpc.StatusCode.INVALID_ARGUMENT, "rows"),
    "a text for a number": (rows_of(flight(), flight(hour="7")), grpc.StatusCode.INVALID_ARGUMENT, "rows[1].hour"),
    "an empty row": (rows_of(Struct()), grpc.StatusCode.INVALID_ARGUMENT, "rows[0].carrier"),
    "a feature of a group": (rows_of(flight(wind=1.0)), grpc.StatusCode.INVALID_ARGUMENT, "rows[0].wind"),
    "a nested value": (rows_of(deep(20)), grpc.StatusCode.INVALID_ARGUMENT, "rows[0].hour"),
    "no deployment": (rows_of(flight(), deployment=""), grpc.StatusCode.INVALID_ARGUMENT, "deployment"),
    "an unknown deployment": (rows_of(flight(), deployment="nobody"), grpc.StatusCode.NOT_FOUND, ""),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_refused_names_its_row_and_leaves_nothing(replica: Replica, case: str) -> None:
    """And the service goes on."""
    request, code, field = REFUSED[case]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.stub.PredictRows(request)
    assert caught.value.code() is code
    assert field in (details(caught.value)[1] or [""])
    assert replica.spool.size == 0
    await replica.stub.PredictRows(rows_of(flight()))


@pytest.mark.parametrize("data", [b"\xff\xff\xff", rows_of(flight()).SerializeToString()[:-3]])
async def test_bytes_that_are_no_message_are_told_apart(replica: Replica, data: bytes) -> None:
    """Random, and cut short."""
    call: Any = replica.channel.unary_unary("/foresight.predictor.v1.PredictionService/PredictRows")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(data)
    assert (caught.value.code(), details(caught.value)[0]) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "MALFORMED_MESSAGE",
    )


async def test_nesting_beyond_what_protobuf_reads_is_no_message(replica: Replica) -> None:
    """A thousand lists in one another."""
    body = b"\x11" + bytes(8)
    for _ in range(1_000):
        inner = b"\x0a" + _varint(len(body)) + body
        body = b"\x32" + _varint(len(inner)) + inner
    entry = b"\x0a\x04hour\x12" + _varint(len(body)) + body
    row = b"\x0a" + _varint(len(entry)) + entry
    data = b"\x12" + _varint(len(row)) + row
    call: Any = replica.channel.unary_unary("/foresight.predictor.v1.PredictionService/PredictRows")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(data)
    assert details(caught.value)[0] == "MALFORMED_MESSAGE"
    await replica.stub.PredictRows(rows_of(flight()))


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])


class HoldsNext(ThreadPoolExecutor):
    """Begins the work that it gets next when it is told to, all other at once."""

    def __init__(self) -> None:
        super().__init__(4)
        self.next_waits = False
        self.begun, self.go_on = threading.Event(), threading.Event()

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not self.next_waits:
            return super().submit(work, *args, **kwargs)
        self.next_waits = False

        def later() -> Any:
            self.begun.set()
            assert self.go_on.wait(20)
            return work(*args, **kwargs)

        return super().submit(later)


async def test_rows_are_asked_of_the_version_whose_types_they_were_read_as(rig: Rig, replica: Replica) -> None:
    """Though another one serves when they are read: its view has a number where the rows have a text."""
    await replica.stub.Predict(ask())
    await until(lambda: not replica.spool.pending)
    fields = {f.name: f for f in flight_view().features} | {"route": Field("route", DataType.INT64)}
    view = flight_view(version=4, request_features=(fields["hour"], fields["route"]), features=tuple(fields.values()))
    rig.features.views[(view.name, view.version)] = view
    rig.trainer.register(model_version(2, view=view), artifact(1.0))
    row = {"carrier": "AA", "origin": "JFK", "hour": 1.0, "route": "jfk-lax"}
    request = prediction_pb2.PredictRowsRequest(deployment="late_flights", rows=[struct(row)] * 100)
    # The loop shuts it down.
    threads = HoldsNext()
    asyncio.get_running_loop().set_default_executor(threads)
    threads.next_waits = True
    call = asyncio.ensure_future(replica.stub.PredictRows(request))
    try:
        await until(threads.begun.is_set)
        await rig.trainer.deploy("late_flights", "late", 2)
        await until(lambda: replica.deployments.serving("late_flights").deployment.version.model.version == 2)
    finally:
        threads.go_on.set()
    answer = await call
    assert {r.model.version for r in answer.rows} == {1}
    assert len(answer.rows) == 100
