"""Tables as Arrow IPC streams cut into chunks, and columns as Arrow arrays."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from foresight.values.columns import Column
from foresight.values.errors import InvalidValue
from foresight.values.fields import DataType, Field

ARROW_CHUNK_BYTES = 1 << 20
_BATCH_ROWS = 65_536
_SCALARS = {
    DataType.INT64: pa.int64(),
    DataType.FLOAT64: pa.float64(),
    DataType.BOOL: pa.bool_(),
    DataType.STRING: pa.string(),
    DataType.TIMESTAMP: pa.timestamp("us", "UTC"),
}


def arrow_type(field: Field) -> pa.DataType:
    """The Arrow type of a field."""
    if field.type is DataType.FLOAT_VECTOR:
        return pa.list_(pa.float32(), field.dimension)
    return _SCALARS[field.type]


def column_to_arrow(column: Column) -> pa.Array:
    """The Arrow array of a column."""
    mask = None if column.valid is None else ~column.valid
    if column.type is DataType.FLOAT_VECTOR:
        flat = pa.array(column.values.ravel(), pa.float32())
        return pa.FixedSizeListArray.from_arrays(
            flat, column.values.shape[1], mask=None if mask is None else pa.array(mask)
        )
    return pa.array(column.values, type=arrow_type(column.field), mask=mask)


def column_from_arrow(array: pa.Array | pa.ChunkedArray, field: Field) -> Column:
    """The column of an Arrow array that has the field's Arrow type."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    valid = None if array.null_count == 0 else np.asarray(array.is_valid())
    values: np.ndarray[Any, Any]
    match field.type:
        case DataType.FLOAT_VECTOR:
            values = np.zeros((len(array), field.dimension), np.float32)
            present = np.ones(len(array), np.bool_) if valid is None else valid
            values[present] = np.asarray(array.drop_null().flatten()).reshape(-1, field.dimension)
        case DataType.TIMESTAMP:
            values = np.asarray(array.cast(pa.int64()).fill_null(0))
        case DataType.STRING:
            values = np.asarray(array.fill_null("").to_numpy(zero_copy_only=False), dtype=np.object_)
        case DataType.BOOL:
            values = np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False))
        case _:
            values = np.asarray(array.fill_null(0))
    return Column(field.name, field.type, values, valid)


class _ChunkSink(io.RawIOBase):
    """Collects written bytes until somebody takes them."""

    def __init__(self) -> None:
        self.pending = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.pending += memoryview(data)
        return len(data)

    def take(self, least: int) -> Iterator[bytes]:
        while len(self.pending) >= least and self.pending:
            chunk, self.pending = bytes(self.pending[:ARROW_CHUNK_BYTES]), self.pending[ARROW_CHUNK_BYTES:]
            yield chunk


def encode_table(table: pa.Table) -> Iterator[bytes]:
    """The chunks of a table, at most ARROW_CHUNK_BYTES each; at least one, which carries the schema."""
    return encode_batches(table.schema, table.to_batches(max_chunksize=_BATCH_ROWS))


def encode_batches(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
    """The chunks of a table that comes in batches, each made when it is asked for; see `encode_table`."""
    sink = _ChunkSink()
    with pa.ipc.new_stream(pa.PythonFile(sink, "w"), schema) as writer:
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                writer.write_batch(batch.slice(start, _BATCH_ROWS))
                yield from sink.take(ARROW_CHUNK_BYTES)
    yield from sink.take(1)


def decode_table(chunks: Iterable[bytes], field: str = "arrow") -> pa.Table:
    """The table of a call's chunks. Raises InvalidValue when they are not one whole, valid Arrow IPC stream."""
    data = b"".join(chunks)
    if not data:
        raise InvalidValue(field, "is empty; an Arrow IPC stream is needed, even for no rows")
    try:
        table = _read_whole(pa.BufferReader(data))
        table.validate(full=True)
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        raise InvalidValue(field, "is not a whole Arrow IPC stream") from error
    names = table.column_names
    if len(set(names)) != len(names):
        raise InvalidValue(field, "has two columns of the same name")
    return table


def _read_whole(source: pa.BufferReader) -> pa.Table:
    """The table of a stream that has its end marker and nothing after it.

    Arrow itself takes the end of the data for the end of the stream, so that a cut between two batches would go
    unnoticed.
    """
    batches = []
    with pa.ipc.open_stream(source) as reader:
        while True:
            before = source.tell()
            try:
                batches.append(reader.read_next_batch())
            except StopIteration:
                break
        if source.tell() == before or source.tell() != source.size():
            raise ValueError("the end marker is missing, or something follows it")
        return pa.Table.from_batches(batches, reader.schema)
