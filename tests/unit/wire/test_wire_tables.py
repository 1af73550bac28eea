"""Tables as chunks of Arrow IPC, whole or not at all."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.tables import (
    ARROW_CHUNK_BYTES,
    arrow_type,
    column_from_arrow,
    column_to_arrow,
    decode_table,
    encode_batches,
    encode_table,
)
from foresight.values import Column, DataType, Field, InvalidValue
from tests.unit.values.columns import columns, same

SMALL = pa.table({"key": ["a", None, "é"], "value": [1.5, None, -0.0]})
SMALL_BYTES = b"".join(encode_table(SMALL))


@given(columns())
def test_a_column_comes_back_from_arrow(column: Column) -> None:
    array = column_to_arrow(column)
    assert array.type == arrow_type(column.field)
    assert same(column_from_arrow(array, column.field), column)


@given(columns(rows=6), st.integers(0, 6), st.integers(0, 6))
def test_slices_and_chunks_come_back_from_arrow(column: Column, start: int, stop: int) -> None:
    array = column_to_arrow(column)
    sliced = column_from_arrow(array[start:stop], column.field)
    assert sliced.to_list() == column.to_list()[start:stop]
    chunked = pa.chunked_array([array[:start], array[start:]], type=array.type)
    assert same(column_from_arrow(chunked, column.field), column)
    empty = pa.chunked_array([], type=array.type)
    assert len(column_from_arrow(empty, column.field)) == 0


@given(st.lists(columns(rows=4), max_size=4, unique_by=lambda c: c.name), st.integers(1, 64))
def test_a_table_comes_back_however_it_is_cut(given_columns: list[Column], size: int) -> None:
    table = pa.table({c.name: column_to_arrow(c) for c in given_columns})
    data = b"".join(encode_table(table))
    cut = [data[i : i + size] for i in range(0, len(data), size)]
    decoded = decode_table(cut)
    assert decoded.schema == table.schema
    assert decoded.equals(table)


def test_large_tables_come_in_bounded_chunks() -> None:
    table = pa.table({"x": np.arange(500_000), "y": np.random.default_rng(0).random(500_000)})
    chunks = list(encode_table(table))
    assert len(chunks) > 4
    assert max(map(len, chunks)) <= ARROW_CHUNK_BYTES
    assert decode_table(chunks).equals(table)


def test_batches_are_encoded_as_they_are_asked_for() -> None:
    made = []

    def batches() -> object:
        for n in range(4):
            made.append(n)
            yield pa.record_batch({"x": np.full(200_000, n)})

    chunks = encode_batches(pa.schema({"x": pa.int64()}), batches())  # type: ignore[arg-type]  # a generator
    next(chunks)
    assert made == [0]
    assert len(b"".join(chunks)) > 0


def test_a_table_of_no_rows_has_its_schema_and_no_bytes_are_no_table() -> None:
    empty = SMALL.slice(0, 0)
    assert decode_table(encode_table(empty)).schema == SMALL.schema
    with pytest.raises(InvalidValue, match="rows: is empty"):
        decode_table([], "rows")
    with pytest.raises(InvalidValue):
        decode_table([b"", b""])


def test_every_cut_off_stream_is_refused() -> None:
    for length in range(len(SMALL_BYTES)):
        with pytest.raises(InvalidValue):
            decode_table([SMALL_BYTES[:length]])


def test_a_stream_cut_between_two_batches_is_refused() -> None:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, SMALL.schema) as writer:
        writer.write_table(SMALL)
        middle = sink.tell()
        writer.write_table(SMALL)
    data = sink.getvalue()
    assert decode_table([data]).num_rows == 6
    with pytest.raises(InvalidValue):
        decode_table([data[:middle]])


@pytest.mark.parametrize("garbage", [b"\0", b"garbage", SMALL_BYTES])
def test_nothing_may_follow_the_end_of_a_stream(garbage: bytes) -> None:
    with pytest.raises(InvalidValue):
        decode_table([SMALL_BYTES, garbage])


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidValue):
        decode_table([data])


@given(st.integers(0, len(SMALL_BYTES) - 1), st.integers(1, 255))
def test_a_damaged_stream_is_refused_or_still_a_valid_table(position: int, flip: int) -> None:
    damaged = bytearray(SMALL_BYTES)
    damaged[position] ^= flip
    try:
        decoded = decode_table([bytes(damaged)])
    except InvalidValue:
        return
    decoded.validate(full=True)


def test_two_columns_of_the_same_name_are_refused() -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    with pytest.raises(InvalidValue, match="same name"):
        decode_table(encode_table(table))


def test_pickles_and_files_of_other_kinds_are_refused() -> None:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, SMALL.schema) as writer:
        writer.write_table(SMALL)
    for data in (sink.getvalue(), b"\x80\x04K\x01.", b"PAR1" * 20):
        with pytest.raises(InvalidValue):
            decode_table([data])


def test_the_arrow_type_of_a_vector_has_its_dimension() -> None:
    assert arrow_type(Field("x", DataType.FLOAT_VECTOR, 3)) == pa.list_(pa.float32(), 3)
