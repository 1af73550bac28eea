"""What bad input over the Open Inference Protocol gets: INVALID_ARGUMENT that names the field, and nothing recorded."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from inference import grpc_service_pb2 as messages
from services.runtime.status import error_metadata
from tests.wire.predictor.inference_requests import Sent, features_of, infer, keys_of
from tests.wire.predictor.rig import Replica
from tests.wire.predictor.test_predictor_refusals import details

Request = messages.ModelInferRequest


def typed(**changes: Sent | None) -> Request:
    return infer(keys_of(1, **changes))


def raw(**changes: Sent | None) -> Request:
    return infer(keys_of(1, **changes), raw=True)


def given(**changes: Sent | None) -> Request:
    return infer(features_of(1, **changes))


def changed(request: Request, change: Callable[[Request], Any]) -> Request:
    change(request)
    return request


def buffers(position: int, data: bytes) -> Request:
    """Keys and request features, with one raw buffer replaced; 0 is a text, 2 a number."""
    return changed(raw(), lambda r: r.raw_input_contents.__setitem__(position, data))


def parameter(**values: Any) -> Request:
    return infer(keys_of(), parameters=values)


def tensor_parameter(part: str, name: str) -> Request:
    request = infer(keys_of(), outputs=["label"])
    getattr(request, part)[0].parameters[name].int64_param = 1
    return request


def both() -> Request:
    request = raw()
    request.inputs[2].contents.fp64_contents.append(1.0)
    return request


floats = "inputs[hour]"
INVALID: dict[str, tuple[Request, str]] = {
    # Shapes
    "no shape": (typed(hour=Sent("FP64", [1.0], [])), f"{floats}.shape"),
    "three dimensions": (typed(hour=Sent("FP64", [1.0], [1, 1, 1])), f"{floats}.shape"),
    "nine dimensions": (typed(hour=Sent("FP64", [1.0], [1] * 9)), f"{floats}.shape"),
    "two columns": (typed(hour=Sent("FP64", [1.0, 2.0], [1, 2])), f"{floats}.shape"),
    "no columns": (typed(hour=Sent("FP64", [], [1, 0])), f"{floats}.shape"),
    "a negative dimension": (typed(hour=Sent("FP64", [1.0], [-1, 1])), f"{floats}.shape"),
    "two negative dimensions": (raw(hour=Sent("FP64", [1.0], [-1, -1])), f"{floats}.shape"),
    "the least dimension": (raw(hour=Sent("FP64", [1.0], [-(2**63)])), f"{floats}.shape"),
    "a dimension beyond memory": (raw(hour=Sent("FP64", [1.0], [2**62, 4])), f"{floats}.shape"),
    "a dimension that hides behind zero": (raw(hour=Sent("FP64", [], [2**62, 0])), f"{floats}.shape"),
    "more rows than the others": (typed(hour=Sent("FP64", [1.0, 2.0])), f"{floats}.shape"),
    "no rows": (infer(keys_of(0)), "inputs[carrier].shape"),
    "too many rows": (infer(keys_of(1_025)), "inputs[carrier].shape"),
    "a shape that is larger than its contents": (typed(hour=Sent("FP64", [1.0], [2, 1])), f"{floats}.contents"),
    "a shape that is smaller than its contents": (typed(hour=Sent("FP64", [1.0, 2.0], [1])), f"{floats}.contents"),
    # Datatypes
    "no datatype": (changed(typed(), lambda r: setattr(r.inputs[2], "datatype", "")), f"{floats}.datatype"),
    "an unknown datatype": (changed(raw(), lambda r: setattr(r.inputs[2], "datatype", "FP8")), f"{floats}.datatype"),
    "half precision": (changed(raw(), lambda r: setattr(r.inputs[2], "datatype", "FP16")), f"{floats}.datatype"),
    "a text for a number": (typed(hour=Sent("BYTES", [b"7"])), f"{floats}.datatype"),
    "a bool for a number": (typed(hour=Sent("BOOL", [True])), f"{floats}.datatype"),
    "a number for a text": (typed(route=Sent("FP64", [1.0])), "inputs[route].datatype"),
    "a float for an integer key": (given(flights=Sent("BOOL", [True])), "inputs[flights].datatype"),
    # Values
    "an integer beyond 2^53": (typed(hour=Sent("INT64", [2**53 + 1])), floats),
    "the least integer": (raw(hour=Sent("INT64", [-(2**63)])), floats),
    "the largest integer": (raw(hour=Sent("UINT64", [2**64 - 1])), floats),
    "an integer beyond 64 bits with a sign": (given(flights=Sent("UINT64", [2**63])), "inputs[flights]"),
    "an integer that the model would round": (given(flights=Sent("INT64", [2**53 + 1])), "flights"),
    "a fraction for an integer": (given(flights=Sent("FP32", [0.5])), "inputs[flights]"),
    "NaN in a request feature": (typed(hour=Sent("FP64", [math.nan])), floats),
    "an infinity": (raw(hour=Sent("FP32", [-math.inf])), floats),
    "an infinity as a feature": (given(delay=Sent("FP64", [math.inf])), "inputs[delay]"),
    "an element beyond INT8": (
        changed(typed(hour=Sent("INT8", [1])), lambda r: r.inputs[2].contents.int_contents.__setitem__(0, 128)),
        f"{floats}.contents",
    ),
    "an element beyond UINT16": (
        changed(typed(hour=Sent("UINT16", [1])), lambda r: r.inputs[2].contents.uint_contents.__setitem__(0, 2**16)),
        f"{floats}.contents",
    ),
    "bytes that are no text": (typed(route=Sent("BYTES", [b"\xff\xfe"])), "inputs[route]"),
    "a NUL in a text": (raw(route=Sent("BYTES", [b"a\0b"])), "inputs[route]"),
    "a text that is not NFC": (raw(route=Sent("BYTES", ["e\u0301".encode()])), "inputs[route]"),
    "a text that is too long": (raw(route=Sent("BYTES", [b"x" * 5_000])), "inputs[route]"),
    # Inputs
    "no inputs": (infer({}), "inputs"),
    "a missing key": (typed(carrier=None), "inputs[carrier]"),
    "a missing request feature": (raw(hour=None), floats),
    "an unknown input": (typed(extra=Sent("FP64", [1.0])), "inputs[extra]"),
    "the label": (typed(late=Sent("BOOL", [True])), "inputs[late]"),
    "a feature of a group beside the request's": (typed(wind=Sent("FP64", [1.0])), "inputs[delay]"),
    "a missing feature": (given(wind=None), "inputs[wind]"),
    "an unknown input beside features": (given(extra=Sent("FP64", [1.0])), "inputs[extra]"),
    "one key of two beside features": (given(carrier=Sent("BYTES", [b"AA"])), "inputs[origin]"),
    "an input without a name": (infer({"": Sent("FP64", [1.0])}), "inputs[0].name"),
    "an input with an odd name": (infer({"../\u202e": Sent("FP64", [1.0])}), "inputs[0].name"),
    "an input with a long name": (infer({"x" * 64: Sent("FP64", [1.0])}), "inputs[0].name"),
    "an input twice": (changed(typed(), lambda r: r.inputs.append(r.inputs[2])), floats),
    "more inputs than there can be": (infer({f"x{i}": Sent("FP64", [1.0]) for i in range(1_025)}), "inputs"),
    # The tensor of all features
    "too few features": (infer({"features": Sent("FP32", [1.0] * 4, [1, 4])}), "inputs[features].shape"),
    "features in one dimension": (infer({"features": Sent("FP32", [1.0] * 5, [5])}), "inputs[features].shape"),
    "features of integers": (infer({"features": Sent("INT32", [1] * 5, [1, 5])}), "inputs[features].datatype"),
    "a fraction for an integer among features": (
        infer({"features": Sent("FP32", [0.5] * 5, [1, 5])}),
        "inputs[features][flights]",
    ),
    "features beside a feature": (
        infer({"features": Sent("FP32", [1.0] * 5, [1, 5]), "wind": Sent("FP64", [1.0])}),
        "inputs[wind]",
    ),
    # Raw buffers
    "a short buffer": (buffers(2, b"\0" * 7), "raw_input_contents[2]"),
    "a surplus of bytes": (buffers(2, b"\0" * 9), "raw_input_contents[2]"),
    "an empty buffer": (buffers(2, b""), "raw_input_contents[2]"),
    "a text without its length": (buffers(0, b"\2\0\0"), "raw_input_contents[0]"),
    "a text that is cut short": (buffers(0, struct.pack("<I", 3) + b"AA"), "raw_input_contents[0]"),
    "a text of four gibibytes": (buffers(0, struct.pack("<I", 2**32 - 1) + b"AA"), "raw_input_contents[0]"),
    "a text too many": (buffers(0, (struct.pack("<I", 2) + b"AA") * 2), "raw_input_contents[0]"),
    "bytes after the texts": (buffers(0, struct.pack("<I", 2) + b"AA\0"), "raw_input_contents[0]"),
    "a buffer too few": (changed(raw(), lambda r: r.raw_input_contents.pop()), "raw_input_contents"),
    "a buffer too many": (changed(raw(), lambda r: r.raw_input_contents.append(b"")), "raw_input_contents"),
    "raw and typed together": (both(), f"{floats}.contents"),
    "contents of another datatype": (
        changed(typed(), lambda r: r.inputs[2].contents.fp32_contents.append(1.0)),
        f"{floats}.contents",
    ),
    "no contents": (changed(typed(), lambda r: r.inputs[2].ClearField("contents")), f"{floats}.contents"),
    # Outputs
    "an unknown output": (infer(keys_of(), outputs=["score"]), "outputs['score']"),
    "an output twice": (infer(keys_of(), outputs=["label", "label"]), "outputs[label]"),
    "an output without a name": (infer(keys_of(), outputs=[""]), "outputs[0].name"),
    "more outputs than there can be": (infer(keys_of(), outputs=["label"] * 65), "outputs"),
    # Parameters
    "a sequence": (parameter(sequence_id=7), "parameters[sequence_id]"),
    "a named sequence": (parameter(sequence_id="a"), "parameters[sequence_id]"),
    "a sequence's start": (parameter(sequence_start=True), "parameters[sequence_start]"),
    "a sequence's end": (parameter(sequence_end=True), "parameters[sequence_end]"),
    "a priority": (parameter(priority=1), "parameters[priority]"),
    "a timeout that is no integer": (parameter(timeout="soon"), "parameters[timeout]"),
    "a negative timeout": (parameter(timeout=-1), "parameters[timeout]"),
    "shared memory": (tensor_parameter("inputs", "shared_memory_region"), "inputs[carrier].parameters"),
    "shared memory for an output": (tensor_parameter("outputs", "shared_memory_region"), "outputs[label].parameters"),
    "a classification": (tensor_parameter("outputs", "classification"), "outputs[label].parameters[classification]"),
    "an event time without a zone": (parameter(event_time="2026-03-01T12:00:00"), "parameters[event_time]"),
    "an event time that is a number": (parameter(event_time=1), "parameters[event_time]"),
    "an event time with a text around": (parameter(event_time=" 2026-03-01T12:00:00Z"), "parameters[event_time]"),
    "a day that is not": (parameter(event_time="2026-02-30T12:00:00Z"), "parameters[event_time]"),
    "a year beyond 9999": (parameter(event_time="9999-12-31T23:59:59-01:00"), "parameters[event_time]"),
    "an id of a megabyte": (infer(keys_of(), id="x" * (1 << 20)), "id"),
    "no model": (infer(keys_of(), model=""), "deployment"),
    "a path as a model": (infer(keys_of(), model="../late"), "deployment"),
}


@pytest.mark.parametrize("case", INVALID)
async def test_invalid_requests_name_their_field_and_leave_nothing(replica: Replica, case: str) -> None:
    """INVALID_ARGUMENT whatever the state; the service goes on."""
    request, field = INVALID[case]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.inference.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    reason, fields = details(caught.value)
    assert reason == "INVALID_FIELD"
    assert any(f == field or (f.startswith(f"{field}[") and field.endswith("parameters")) for f in fields), fields
    assert replica.spool.size == 0


@pytest.mark.parametrize("version", ["2", "0", "01", "-1", "1.0", "latest", " 1", "x" * 10_000])
async def test_an_unknown_version_is_never_answered_by_another(replica: Replica, version: str) -> None:
    """NOT_FOUND for predictions, descriptions and statistics; the one that serves is known by its number."""
    calls = (
        replica.inference.ModelInfer(infer(keys_of(), version=version)),
        replica.inference.ModelReady(messages.ModelReadyRequest(name="late_flights", version=version)),
        replica.inference.ModelMetadata(messages.ModelMetadataRequest(name="late_flights", version=version)),
        replica.inference.ModelConfig(messages.ModelConfigRequest(name="late_flights", version=version)),
        replica.inference.ModelStatistics(messages.ModelStatisticsRequest(name="late_flights", version=version)),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert error_metadata(caught.value)["kind"] == "version"
        assert len(caught.value.details() or "") < 300
    assert replica.spool.size == 0
    assert (await replica.inference.ModelInfer(infer(keys_of(), version="1"))).model_version == "1"


async def test_all_faults_of_the_inputs_are_told_together(replica: Replica) -> None:
    """A missing key, a wrong datatype and an extra input."""
    request = typed(carrier=None, hour=Sent("BOOL", [True]), extra=Sent("FP64", [1.0]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.inference.ModelInfer(request)
    assert details(caught.value)[1] == ["inputs[carrier]", "inputs[hour].datatype", "inputs[extra]"]


async def test_an_event_time_too_far_ahead_is_out_of_range(replica: Replica) -> None:
    """As for Predict."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.inference.ModelInfer(parameter(event_time="2026-03-01T12:05:00.000001Z"))
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", raw().SerializeToString()[:-3]])
async def test_malformed_bytes_are_told_apart(replica: Replica, data: bytes) -> None:
    """Alone, and in a stream, which they end."""
    call: Any = replica.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(data)
    assert details(caught.value)[0] == "MALFORMED_MESSAGE"
    stream: Any = replica.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [answer async for answer in stream(iter([data]))]
    assert details(caught.value)[0] == "MALFORMED_MESSAGE"


@pytest.mark.parametrize("method", ["SystemSharedMemoryStatus", "TraceSetting", "LogSettings"])
async def test_what_is_not_served_is_unimplemented(replica: Replica, method: str) -> None:
    call: Any = replica.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
