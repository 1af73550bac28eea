"""Statistics in NumPy and Arrow, in one pass and in memory that depends on the columns only.

What a column gets, in which order and in which runs, depends on the rows alone, not on their batches, and nothing
depends on chance or on threads: the same rows give the same figures. `docs/decisions/0014` says why no database does
this. One thread is as fast as two: the time goes into memory, not into arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.feature_store.statistics.description import ColumnStatistics, Statistics
from services.feature_store.statistics.number_columns import NumberColumn
from services.feature_store.statistics.text_columns import EXACT_ROWS, BoolColumn, TextColumn
from services.feature_store.tables.conformance import is_text

# Numbers of one column that are sorted at once, and bytes that all columns together may keep waiting for that.
RUN_VALUES_MAX = 1 << 20
RUN_VALUES_MIN = 1 << 14
RUN_BYTES = 256 << 20
_VALUE_BYTES = 8
_UTC_MICROS = pa.timestamp("us", "UTC")


class Kind(Protocol):
    """Takes the values of a column that are not NULL, and answers its statistics."""

    def add(self, values: Any) -> None: ...

    def finish(self, name: str, type: str, rows: int, nulls: int) -> ColumnStatistics: ...


class SketchingEngine:
    """The engine; rows that fit into one run get exact figures. `run_values` and `block_rows` are powers of two."""

    def __init__(self, run_values: int | None = None, block_rows: int = EXACT_ROWS) -> None:
        self._run_values = run_values
        self._block_rows = block_rows

    def describe(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Statistics:
        """See StatisticsEngine.describe."""
        run_values = self._run_values or _run_values(len(schema))
        columns = [_Column(field, run_values, self._block_rows) for field in schema]
        rows = 0
        for batch in batches:
            rows += batch.num_rows
            for column, array in zip(columns, batch.columns, strict=True):
                column.add(array)
        return Statistics(rows, tuple(column.finish() for column in columns))


class _Column:
    """One column: how its Arrow values become what its kind takes, and its NULLs."""

    def __init__(self, field: pa.Field, run_values: int, block_rows: int) -> None:
        self._name = field.name
        self._encoded = pa.types.is_dictionary(field.type)
        type = field.type.value_type if self._encoded else field.type
        self.type, self._prepare, self._kind = _kind_of(type, run_values, block_rows)
        self._rows = 0
        self._values = 0

    def add(self, array: pa.Array) -> None:
        self._rows += len(array)
        if self._encoded:
            # NULLs may be in the dictionary too.
            array = array.dictionary_decode()
        values = array.drop_null() if array.null_count else array
        if self._kind is not None and len(values):
            prepared = self._prepare(values)
            self._values += len(prepared)
            self._kind.add(prepared)
        else:
            self._values += len(values)

    def finish(self) -> ColumnStatistics:
        nulls = self._rows - self._values
        if self._kind is None:
            return ColumnStatistics(self._name, self.type, self._rows, nulls)
        return self._kind.finish(self._name, self.type, self._rows, nulls)


def _kind_of(type: pa.DataType, run_values: int, block_rows: int) -> tuple[str, Callable[[pa.Array], Any], Kind | None]:
    """Name of a type, what makes plain values of it, and what takes those."""
    if pa.types.is_boolean(type):
        return "bool", lambda array: array, BoolColumn()
    if pa.types.is_integer(type) and type != pa.uint64():
        name = "int64" if type == pa.int64() else str(type)
        return name, _integers, NumberColumn(run_values)
    if pa.types.is_floating(type):
        name = "float64" if type == pa.float64() else str(type)
        return name, _floats, NumberColumn(run_values)
    if pa.types.is_timestamp(type) and type.tz is not None:
        return "timestamp", _instants, NumberColumn(run_values)
    if is_text(type):
        return "string", _texts, TextColumn(block_rows)
    if pa.types.is_fixed_size_list(type) and pa.types.is_floating(type.value_type) and type.list_size:
        return "float_vector", _norms, NumberColumn(run_values, counted=False)
    return str(type), lambda array: array, None


def _integers(array: pa.Array) -> NDArray[np.int64]:
    return np.asarray(array if array.type == pa.int64() else array.cast(pa.int64()))


def _floats(array: pa.Array) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.asarray(array if array.type == pa.float64() else array.cast(pa.float64()))
    # The sum is finite when all values are, unless they are huge; a sum takes a fraction of the time.
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(values.sum())
    return values if finite else values[np.isfinite(values)]


def _instants(array: pa.Array) -> NDArray[np.int64]:
    if array.type != _UTC_MICROS:
        array = array.cast(_UTC_MICROS, safe=False)
    return np.asarray(array.view(pa.int64()))


def _texts(array: pa.Array) -> pa.Array:
    return array.cast(pa.large_string())


def _norms(array: pa.Array) -> NDArray[np.float64]:
    flat = array.flatten()
    vectors = np.asarray(flat.fill_null(np.nan) if flat.null_count else flat).astype(np.float64)
    vectors = vectors.reshape(-1, array.type.list_size)
    norms: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return norms[np.isfinite(norms)]


def _run_values(columns: int) -> int:
    """Values per run, a power of two, so that all columns' waiting values stay within RUN_BYTES."""
    fitting = RUN_BYTES // (_VALUE_BYTES * max(columns, 1))
    return min(RUN_VALUES_MAX, max(RUN_VALUES_MIN, 1 << (fitting.bit_length() - 1)))
