"""Tables in and out: pandas, polars, Arrow, a list of dicts or a dict of columns.

On the way in, columns that are known (the keys and features of a group, `event_time`, ...) get their declared type;
others keep their own, with the narrow variants widened (int32 → int64, categorical → its values). NaN and NaT are
NULL. Instants need a time zone: a naive one is refused, never guessed. pandas and polars are imported only when used.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foresight.client.errors import DataLoss
from foresight.tables import arrow_type
from foresight.values import DataType, Field, InvalidValue

Output = Literal["pandas", "polars", "arrow"]
# Hears a stage and its rows so far, perhaps from another thread than the caller's.
Progress = Callable[[str, int], None]

EVENT_TIME = Field("event_time", DataType.TIMESTAMP)
KNOWN_AT = Field("known_at", DataType.TIMESTAMP)
DELETED = Field("deleted", DataType.BOOL)
_INTEGER_AS_FLOAT_MAX = 2**53


def to_table(data: Any, fields: Iterable[Field] = ()) -> pa.Table:
    """The Arrow table of `data`, with the columns named in `fields` of their types.

    `data`: a pandas or polars DataFrame, an Arrow table or record batch, a list of dicts (a missing key is NULL) or a
    dict of equally long columns. A pandas index is not a column. Raises InvalidValue naming the column at fault.
    """
    known = {field.name: field for field in fields}
    names: list[str] = []
    arrays: list[pa.Array | pa.ChunkedArray] = []
    for name, values in _columns(data, known):
        if not isinstance(name, str):
            raise InvalidValue("data", f"has a column named {name!r}; names are texts")
        if name in names:
            raise InvalidValue(name, "is the name of two columns")
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else _array(values, name, known.get(name))
        names.append(name)
        arrays.append(_typed(array, name, known.get(name)))
    lengths = {len(array) for array in arrays}
    if len(lengths) > 1:
        raise InvalidValue("data", f"has columns of different lengths: {sorted(lengths)}")
    return pa.table(arrays, names=names)


def from_table(table: pa.Table, output: Output) -> Any:
    """The table as a DataFrame. In pandas, an integer or bool column with NULLs is a nullable one, so that no digit
    is lost; times are `datetime64[us, UTC]`."""
    if output == "arrow":
        return table
    if output == "polars":
        import polars

        return polars.from_arrow(table)
    if output != "pandas":
        raise InvalidValue("output", f"is {output!r}, not 'pandas', 'polars' or 'arrow'")
    import pandas

    frame = table.to_pandas()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count and (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
            kind = pandas.BooleanDtype() if pa.types.is_boolean(column.type) else pandas.Int64Dtype()
            frame[name] = pandas.array(column.to_pylist(), dtype=kind)
    return frame


def read_table(chunks: Iterable[bytes], progress: Progress | None = None) -> pa.Table:
    """The table of a download; `progress` hears ("downloading", rows so far). Raises DataLoss when it is cut short."""
    stream = RowStream(chunks)
    batches: list[pa.RecordBatch] = []
    rows = 0
    for batch in stream:
        batches.append(batch)
        rows += batch.num_rows
        if progress is not None:
            progress("downloading", rows)
    return pa.Table.from_batches(batches, stream.schema)


class RowStream:
    """The Arrow batches of a download, each read when it is asked for; to be gone through once.

    Raises DataLoss, at its making or while it is gone through, when the download is damaged or cut short.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        with _whole():
            self._reader = pa.ipc.open_stream(pa.PythonFile(_ChunkSource(self._chunks), "r"))

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._reader.schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        while True:
            with _whole():
                try:
                    batch = self._reader.read_next_batch()
                except StopIteration:
                    break
            yield batch
        # Only after its last message a call says whether it went well.
        for _ in self._chunks:
            raise DataLoss("the table that arrived goes on after its end")


@contextmanager
def _whole() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise DataLoss("the table that arrived is damaged or cut short") from error


def is_frame(data: Any) -> bool:
    """Whether `data` is a DataFrame or an Arrow table."""
    return isinstance(data, pa.Table | pa.RecordBatch) or _is_pandas(data) or _is_polars(data)


class _ChunkSource(io.RawIOBase):
    """A file over the chunks of a stream; a read is short only at the end."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts: list[memoryview] = []
        missing = size if size >= 0 else sys.maxsize
        while missing:
            if not self._pending:
                chunk = next(self._chunks, None)
                if chunk is None:
                    break
                self._pending = memoryview(chunk)
            part, self._pending = self._pending[:missing], self._pending[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


def _columns(data: Any, known: Mapping[str, Field]) -> Iterator[tuple[Any, Any]]:
    """Names and values of the columns."""
    if isinstance(data, pa.Table | pa.RecordBatch):
        yield from zip(data.schema.names, data.columns, strict=True)
    elif _is_pandas(data):
        for position, name in enumerate(data.columns):
            yield name, data.iloc[:, position]
    elif _is_polars(data):
        table = data.to_arrow()
        yield from zip(table.column_names, table.columns, strict=True)
    elif isinstance(data, Mapping):
        yield from data.items()
    elif isinstance(data, Sequence) and not isinstance(data, str | bytes) and all(isinstance(r, Mapping) for r in data):
        # No rows: the known columns, so that an empty write still has its schema.
        names = dict.fromkeys(name for row in data for name in row) if data else known
        for name in names:
            yield name, [row.get(name) for row in data]
    else:
        raise InvalidValue(
            "data", f"is a {type(data).__name__}, not a DataFrame, an Arrow table, a list of dicts or a dict of columns"
        )


def _array(values: Any, name: str, field: Field | None) -> pa.Array | pa.ChunkedArray:
    """The Arrow array of a Series, an ndarray or a list; NaN, NaT and pandas.NA are NULL."""
    if field is not None and field.type is DataType.FLOAT_VECTOR:
        values = [v if v is None or isinstance(v, list) else _listed(v) for v in values]
    elif isinstance(values, np.ndarray) and values.ndim != 1:
        raise InvalidValue(name, f"has shape {values.shape}, not (n,)")
    try:
        array = pa.array(values, from_pandas=True)
    except OverflowError:
        raise InvalidValue(name, "holds an integer that does not fit into 64 bits") from None
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError) as error:
        raise InvalidValue(name, f"has values that do not make one column: {error}") from None
    if pa.types.is_timestamp(array.type) and str(getattr(values, "dtype", "object")) == "object":
        # Arrow takes the first value's zone for all and would read a naive one as UTC.
        _refuse_naive(values, name)
    return array


def _refuse_naive(values: Iterable[Any], name: str) -> None:
    for value in values:
        if isinstance(value, datetime) and value.tzinfo is None and type(value).__name__ != "NaTType":
            raise InvalidValue(name, f"has an instant without a time zone: {value}")


def _listed(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return None if value is None or isinstance(value, float) else list(value)


def _typed(array: pa.Array | pa.ChunkedArray, name: str, field: Field | None) -> pa.Array | pa.ChunkedArray:
    """The array in the field's Arrow type, or, for a column that is not known, in the widest form of its own."""
    if array.null_count == len(array) and (field is not None or pa.types.is_null(array.type)):
        # Nothing but NULLs is of any type: pandas makes floats of them.
        return pa.nulls(len(array), arrow_type(field) if field is not None else pa.float64())
    array = _widened(array, name)
    if field is None:
        return array
    wanted = arrow_type(field)
    if array.type == wanted:
        return array
    found = array.type
    if field.type is DataType.FLOAT64 and pa.types.is_integer(found):
        extremes = pc.min_max(array).as_py()
        if extremes["min"] is not None and max(-extremes["min"], extremes["max"]) > _INTEGER_AS_FLOAT_MAX:
            raise InvalidValue(name, "holds an integer beyond 2^53, which would lose digits as a float")
        return array.cast(wanted)
    if field.type is DataType.INT64 and pa.types.is_floating(found):
        # pandas makes floats of integers as soon as one is missing.
        try:
            return array.cast(wanted)
        except pa.ArrowInvalid:
            raise InvalidValue(name, "is int64, and the data has fractions or numbers beyond 2^53 in it") from None
    if field.type is DataType.FLOAT_VECTOR and _is_list(found):
        return _vectors(array, name, field)
    raise InvalidValue(name, f"is {field.type.value}, and the data has {_named(found)} in it")


def _widened(array: pa.Array | pa.ChunkedArray, name: str) -> pa.Array | pa.ChunkedArray:
    """The array without dictionaries, narrow numbers and other variants of the same type."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.cast(kind.value_type)
        kind = array.type
    if pa.types.is_timestamp(kind):
        if kind.tz is None:
            raise InvalidValue(name, "has no time zone; say which one, e.g. with .dt.tz_localize('UTC')")
        try:
            if kind.unit == "ns":
                # Cutting must not move an instant before 1970 into the future, as a plain cast would.
                array = pc.floor_temporal(array, unit="microsecond")
            return array.cast(pa.timestamp("us", "UTC"))
        except pa.ArrowInvalid:
            raise InvalidValue(name, "has an instant that microseconds in 64 bits cannot hold") from None
    if pa.types.is_date(kind):
        raise InvalidValue(name, "is a date; say at which time, in which zone")
    try:
        if pa.types.is_integer(kind):
            return array.cast(pa.int64())
        if pa.types.is_floating(kind):
            return _without_nan(array.cast(pa.float64()))
    except pa.ArrowInvalid:
        raise InvalidValue(name, "holds an integer that does not fit into 64 bits") from None
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.string())
    return array


def _without_nan(array: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    missing = pc.is_nan(array)
    return pc.if_else(missing, pa.scalar(None, pa.float64()), array) if pc.any(missing).as_py() else array


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _vectors(array: pa.Array | pa.ChunkedArray, name: str, field: Field) -> pa.Array:
    values = [None if v is None else np.asarray(v, np.float32) for v in array.to_pylist()]
    for vector in values:
        if vector is not None and vector.shape != (field.dimension,):
            raise InvalidValue(name, f"has a vector of {vector.size} numbers, not {field.dimension}")
    return pa.array(values, arrow_type(field))


def _named(kind: pa.DataType) -> str:
    if pa.types.is_string(kind):
        return "texts"
    if pa.types.is_boolean(kind):
        return "bools"
    if pa.types.is_timestamp(kind):
        return "instants"
    if pa.types.is_floating(kind):
        return "floats"
    return "integers" if pa.types.is_integer(kind) else f"values of the Arrow type {kind}"


def _is_pandas(data: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame)


def _is_polars(data: Any) -> bool:
    polars = sys.modules.get("polars")
    return polars is not None and isinstance(data, polars.DataFrame)
