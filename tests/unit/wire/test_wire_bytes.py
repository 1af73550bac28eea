"""Columns and numbers that are written and read as bytes are those that protobuf writes and reads value by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.feature_store.v1 import online_pb2
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType, InvalidValue
from foresight.values.instants import MICROS_MAX
from foresight.wire import decode_column, encode_column
from foresight.wire.column_bytes import column_bytes, delimited, packed_varints, tag
from tests.unit.values.columns import same
from tests.unit.wire.plain import column_message, longer_columns

NUMBERS = st.sampled_from([0, 1, 127, 128, 16_383, 16_384, 2**32, 2**63 - 1, 2**63, 2**64 - 1]) | st.integers(
    0, 2**64 - 1
)


@given(longer_columns())
def test_columns_of_any_length_are_protobufs_own(column: Column) -> None:
    """As bytes, as a message, and back."""
    plain = column_message(column)
    assert column_bytes(column, tag(2)) == delimited(tag(2), plain.SerializeToString())
    assert encode_column(column) == plain
    assert same(decode_column(plain), column)


@given(longer_columns())
def test_columns_are_read_whatever_stands_beside_them(column: Column) -> None:
    """Fields that nobody knows, on either level; and what is read can be written to."""
    plain = column_message(column)
    arm: Any = getattr(plain, plain.WhichOneof("values") or "")
    arm.MergeFromString(b"\xfa\x01\x03abc")
    plain.MergeFromString(b"\xfa\x01\x03abc")
    read = decode_column(plain)
    assert same(read, column)
    read.values[0] = read.values[-1]


@given(st.lists(NUMBERS, max_size=40), st.integers(1, 40))
def test_many_numbers_are_written_as_protobuf_writes_them(numbers: list[int], times: int) -> None:
    """As lists and as arrays, alike or not."""
    for some in (numbers, numbers[:1] * times):
        written = online_pb2.SourceRows(commits=some).SerializeToString()
        assert (delimited(tag(3), packed_varints(some)) if some else b"") == written
        assert packed_varints(np.array(some, np.uint64)) == packed_varints(some)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40))
def test_negative_numbers_take_ten_bytes(numbers: list[int]) -> None:
    """As protobuf has it for int64."""
    written = types_pb2.Int64Values(values=numbers).SerializeToString()
    assert (delimited(tag(1), packed_varints(np.array(numbers, np.int64))) if numbers else b"") == written
    assert packed_varints(numbers) == packed_varints(np.array(numbers, np.int64))


@pytest.mark.parametrize("rows", [1, 16, 17, 1_000])
def test_one_wrong_value_is_found_among_however_many(rows: int) -> None:
    """Wherever it is."""
    name, least = "f", [*range(rows)]
    wrong: list[types_pb2.Column] = []
    for at in {0, rows // 2, rows - 1}:
        for value in (float("nan"), float("inf")):
            numbers = [float(i) for i in least]
            numbers[at] = value
            wrong.append(types_pb2.Column(name=name, float64_values=types_pb2.Float64Values(values=numbers)))
            wrong.append(types_pb2.Column(name=name, vector_values=types_pb2.VectorValues(dimension=1, values=numbers)))
        instants = list(least)
        instants[at] = MICROS_MAX + 1
        wrong.append(types_pb2.Column(name=name, timestamp_values=types_pb2.TimestampValues(micros=instants)))
        for text in ("a" * 4_097, "\0", "a\u0301"):
            texts = ["a"] * rows
            texts[at] = text
            wrong.append(types_pb2.Column(name=name, string_values=types_pb2.StringValues(values=texts)))
    wrong.append(
        types_pb2.Column(name=name, vector_values=types_pb2.VectorValues(dimension=rows + 1, values=[0.0] * rows))
    )
    wrong.append(types_pb2.Column(name=name, vector_values=types_pb2.VectorValues(values=[0.0] * rows)))
    wrong.append(
        types_pb2.Column(name=name, bool_values=types_pb2.BoolValues(values=[True] * rows), validity=b"\2" * rows)
    )
    for message in wrong:
        with pytest.raises(InvalidValue):
            decode_column(message)


def test_no_rows_are_a_column_of_their_type() -> None:
    """Of numbers, texts and vectors."""
    for type, dimension in ((DataType.FLOAT64, 0), (DataType.STRING, 0), (DataType.FLOAT_VECTOR, 3)):
        none = Column.build("f", type, [], dimension)
        assert same(decode_column(encode_column(none)), none)
