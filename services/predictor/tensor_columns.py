"""Tensors as typed columns and back, without silent loss: what does not fit exactly is refused.

NULL has no form in a tensor. Where a tensor holds what a model takes, NaN stands for it as it does in the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foresight.values import Column, DataType, Field, InvalidValue
from foresight.values.instants import MICROS_MAX, MICROS_MIN
from foresight.values.names import STRING_BYTES_MAX, check_text
from services.predictor.questions import INTEGER_MAX
from services.predictor.tensors import BYTES, Tensor

INT64_MAX = 2**63 - 1
# What is declared; inputs take all that go for the type.
DATATYPES: dict[DataType, str] = {
    DataType.INT64: "INT64",
    DataType.FLOAT64: "FP64",
    DataType.BOOL: "BOOL",
    DataType.STRING: BYTES,
    DataType.TIMESTAMP: "INT64",
    DataType.FLOAT_VECTOR: "FP32",
}
NUMBERS = (DataType.INT64, DataType.FLOAT64, DataType.BOOL)
_INTEGERS = frozenset({"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"})
_FLOATS = frozenset({"FP32", "FP64"})
_TAKEN: dict[DataType, frozenset[str]] = {
    DataType.INT64: _INTEGERS,
    DataType.FLOAT64: _FLOATS | _INTEGERS,
    DataType.BOOL: frozenset({"BOOL"}),
    DataType.STRING: frozenset({BYTES}),
    DataType.TIMESTAMP: _INTEGERS,
    DataType.FLOAT_VECTOR: frozenset({"FP32"}),
}


def place_of(tensor: Tensor) -> str:
    """How errors name an input; `tensor.name` is known to be a plain one."""
    return f"inputs[{tensor.name}]"


def column_of(tensor: Tensor, field: Field, *, for_model: bool = False) -> Column:
    """The column of a field from a tensor of [n], [n, 1] or, for vectors, [n, dimension]. Raises InvalidValue.

    `for_model`: the tensor holds what a model takes, so that floats go for every number and NaN is NULL.
    """
    where = place_of(tensor)
    if for_model and tensor.datatype in _FLOATS and field.type in NUMBERS:
        return _number(field, _scalars(tensor), where)
    if tensor.datatype not in _TAKEN[field.type]:
        expected = DATATYPES[field.type]
        raise InvalidValue(f"{where}.datatype", f"is {tensor.datatype}, where {field.type.value} takes {expected}")
    if field.type is DataType.FLOAT_VECTOR:
        _check_vectors(tensor, field)
        return Column(field.name, field.type, tensor.values)
    values = _scalars(tensor)
    match field.type:
        case DataType.STRING:
            return Column(field.name, field.type, _texts(values, where))
        case DataType.BOOL:
            return Column(field.name, field.type, values)
        case DataType.FLOAT64:
            return _floats(field, values, where)
        case DataType.TIMESTAMP:
            if not _within(values, MICROS_MIN, MICROS_MAX):
                raise InvalidValue(where, "has an instant outside of the years 1 to 9999")
        case _:
            if not _within(values, -INT64_MAX - 1, INT64_MAX):
                raise InvalidValue(where, "holds an integer that does not fit into 64 bits with a sign")
    return Column(field.name, field.type, values.astype(np.int64))


def columns_of_matrix(tensor: Tensor, fields: Sequence[Field]) -> list[Column]:
    """The columns of numeric fields from one tensor of [n, fields], NaN being NULL. Raises InvalidValue."""
    where = place_of(tensor)
    if tensor.datatype not in _FLOATS:
        raise InvalidValue(f"{where}.datatype", f"is {tensor.datatype}, not FP32 or FP64")
    if tensor.values.ndim != 2 or tensor.values.shape[1] != len(fields):
        raise InvalidValue(f"{where}.shape", f"is {_shape(tensor)}, not [n, {len(fields)}]")
    return [
        _number(field, tensor.values[:, position], f"{where}[{field.name}]") for position, field in enumerate(fields)
    ]


def tensor_of(column: Column) -> Tensor:
    """The tensor of an output: [n, 1], or [n, dimension] for vectors. Outputs have no NULLs."""
    values = column.values
    if column.type is DataType.STRING:
        texts = np.empty(len(column), np.object_)
        texts[:] = [text.encode() for text in values]
        values = texts
    return Tensor(column.name, DATATYPES[column.type], values.reshape(len(column), -1) if len(column) else values)


def row_shape(field: Field) -> int:
    """Elements of one row."""
    return field.dimension if field.type is DataType.FLOAT_VECTOR else 1


def _scalars(tensor: Tensor) -> NDArray[Any]:
    values = tensor.values
    if values.ndim > 2 or (values.ndim == 2 and values.shape[1] != 1):
        raise InvalidValue(f"{place_of(tensor)}.shape", f"is {_shape(tensor)}, not [n] or [n, 1]")
    return values.reshape(-1)


def _check_vectors(tensor: Tensor, field: Field) -> None:
    values = tensor.values
    if values.ndim != 2 or values.shape[1] != field.dimension:
        raise InvalidValue(f"{place_of(tensor)}.shape", f"is {_shape(tensor)}, not [n, {field.dimension}]")
    if not np.isfinite(values).all():
        raise InvalidValue(place_of(tensor), "contains NaN or infinity")


def _texts(values: NDArray[Any], where: str) -> NDArray[Any]:
    texts = np.empty(len(values), np.object_)
    for row, data in enumerate(values):
        try:
            texts[row] = check_text(data.decode(), where, STRING_BYTES_MAX)
        except UnicodeDecodeError:
            raise InvalidValue(where, f"row {row} is not UTF-8") from None
    return texts


def _floats(field: Field, values: NDArray[Any], where: str) -> Column:
    if values.dtype.kind != "f":
        if not _within(values, -INTEGER_MAX, INTEGER_MAX):
            raise InvalidValue(where, "holds an integer beyond 2^53, which a float would change")
        return Column(field.name, field.type, values.astype(np.float64))
    if not np.isfinite(values).all():
        raise InvalidValue(where, "contains NaN or infinity")
    return Column(field.name, field.type, values.astype(np.float64))


def _number(field: Field, numbers: NDArray[Any], where: str) -> Column:
    """A column from floats, NaN being NULL: whole numbers for int64, 0 and 1 for bool."""
    valid = ~np.isnan(numbers)
    values = np.where(valid, numbers, 0).astype(np.float64)
    if not np.isfinite(values).all():
        raise InvalidValue(where, "contains an infinity")
    if field.type is DataType.INT64:
        if (values != np.floor(values)).any() or not _within(values, -INTEGER_MAX, INTEGER_MAX):
            raise InvalidValue(where, "holds something else than integers up to 2^53, as the feature is int64")
        values = values.astype(np.int64)
    elif field.type is DataType.BOOL:
        if not ((values == 0) | (values == 1)).all():
            raise InvalidValue(where, "holds something else than 0 and 1, as the feature is bool")
        values = values.astype(np.bool_)
    return Column(field.name, field.type, values, None if valid.all() else valid)


def _within(values: NDArray[Any], least: int, most: int) -> bool:
    # As Python's integers: NumPy compares uint64 with int64 as floats.
    return not len(values) or (least <= values.min().item() and values.max().item() <= most)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.values.shape))
