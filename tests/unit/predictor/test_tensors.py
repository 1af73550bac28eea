"""Tensors of the inference protocol: they keep every bit, and nothing but InvalidValue comes of bad ones."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from foresight.values import Column, DataType, Field, InvalidValue
from inference import grpc_service_pb2 as messages
from services.predictor.inference_codec import decode_request
from services.predictor.tensor_columns import NUMBERS, column_of, tensor_of
from services.predictor.tensors import DTYPES, from_elements, from_raw, to_raw

NUMERIC = sorted(DTYPES.keys() - {"BYTES"})
shapes = st.lists(st.one_of(st.integers(-2, 4), st.sampled_from([2**31, 2**62, -(2**63)])), max_size=9)
parameters = st.builds(
    messages.InferParameter, string_param=st.sampled_from(["", "2026-03-01T12:00:00Z", "9999-99-99T99:99:99Z"])
) | st.builds(messages.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1))
contents = st.builds(
    messages.InferTensorContents,
    int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    fp64_contents=st.lists(st.floats(), max_size=3),
    bytes_contents=st.lists(st.binary(max_size=5), max_size=3),
)
tensors = st.builds(
    messages.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["a", "b", "", "x" * 64, "ä"]),
    datatype=st.sampled_from([*DTYPES, "FP16", "", "x"]),
    shape=shapes,
    parameters=st.dictionaries(st.sampled_from(["shared_memory_region", "own"]), parameters),
    contents=contents,
)
requests = st.builds(
    messages.ModelInferRequest,
    id=st.text(max_size=5),
    inputs=st.lists(tensors, max_size=3),
    raw_input_contents=st.lists(st.binary(max_size=20), max_size=3),
    parameters=st.dictionaries(st.sampled_from(["event_time", "timeout", "priority", "sequence_id"]), parameters),
)


@given(st.data())
def test_raw_buffers_keep_every_bit(data: st.DataObject) -> None:
    """There and back, also of NaN with a payload."""
    datatype = data.draw(st.sampled_from(NUMERIC))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    values = data.draw(arrays(DTYPES[datatype], tuple(shape)))
    tensor = from_raw("x", datatype, shape, values.tobytes(), "inputs[x]", "raw_input_contents[0]")
    assert tensor.values.shape == tuple(shape)
    assert to_raw(tensor) == values.tobytes()
    typed = from_elements("x", datatype, shape, values.ravel().tolist(), "inputs[x]")
    assert np.array_equal(typed.values, values, equal_nan=values.dtype.kind == "f")


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=4))
def test_texts_keep_every_byte(texts: list[bytes]) -> None:
    raw = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    tensor = from_raw("x", "BYTES", [len(texts)], raw, "inputs[x]", "raw_input_contents[0]")
    assert tensor.values.tolist() == texts
    assert to_raw(tensor) == raw


@given(st.binary(max_size=40), st.sampled_from(sorted(DTYPES)), shapes)
def test_any_buffer_is_a_tensor_or_invalid(raw: bytes, datatype: str, shape: list[int]) -> None:
    with contextlib.suppress(InvalidValue):
        tensor = from_raw("x", datatype, shape, raw, "inputs[x]", "raw_input_contents[0]")
        assert to_raw(tensor) == raw


@given(requests)
def test_any_request_is_well_formed_or_invalid(request: messages.ModelInferRequest) -> None:
    with contextlib.suppress(InvalidValue):
        assert len(decode_request(request).tensors) == len(request.inputs)


@given(st.data(), st.booleans())
def test_a_number_is_taken_exactly_or_refused(data: st.DataObject, for_model: bool) -> None:
    """Of every datatype for every type; NaN is NULL where the model takes it, and refused elsewhere."""
    datatype = data.draw(st.sampled_from(NUMERIC))
    values = data.draw(arrays(DTYPES[datatype], 3))
    field = Field("x", data.draw(st.sampled_from(NUMBERS)))
    tensor = from_raw("x", datatype, [3, 1], values.tobytes(), "inputs[x]", "raw_input_contents[0]")
    with contextlib.suppress(InvalidValue):
        column = column_of(tensor, field, for_model=for_model)
        taken = column.to_list()
        assert for_model or column.valid is None
        for before, after in zip(values.tolist(), taken, strict=True):
            assert after == before if after is not None else before != before


@pytest.mark.parametrize(
    ("column", "shape"),
    [
        (Column.build("x", DataType.FLOAT64, [1.5, -0.0]), (2, 1)),
        (Column.build("x", DataType.INT64, [2**63 - 1, -(2**63)]), (2, 1)),
        (Column.build("x", DataType.BOOL, [True]), (1, 1)),
        (Column.build("x", DataType.STRING, ["", "ä"]), (2, 1)),
        (Column.build("x", DataType.FLOAT_VECTOR, [[1.0, 2.0, 3.0]], 3), (1, 3)),
    ],
)
def test_outputs_come_back_as_they_were(column: Column, shape: tuple[int, ...]) -> None:
    tensor = tensor_of(column)
    assert tensor.values.shape == shape
    again: Any = from_raw("x", tensor.datatype, shape, to_raw(tensor), "inputs[x]", "raw_input_contents[0]")
    assert column_of(again, column.field).equals(column)
