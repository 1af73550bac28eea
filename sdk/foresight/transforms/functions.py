"""Loading, checking and applying transform functions."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foresight.transforms.row_wise import are_row_wise
from foresight.values import Column, DataType, Field, Transform
from foresight.values.instants import MICROS_MAX, MICROS_MIN

Function = Callable[..., NDArray[Any]]


class Untrusted(Exception):
    """A transform cannot be used here: its module is not trusted, does not load, or has another source."""


def source_sha256(function: Function) -> str:
    """SHA-256 of a function's source, without indentation, as 64 hex digits."""
    source = textwrap.dedent(inspect.getsource(function)).strip()
    return hashlib.sha256(source.encode()).hexdigest()


class TransformSet:
    """The transforms that one process may run; `modules` are the only ones ever imported."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._modules = frozenset(modules)
        self._functions: dict[tuple[str, str], Function] = {}

    def check(self, transforms: Sequence[Transform]) -> None:
        """Loads every function and compares its source. Raises Untrusted."""
        for transform in transforms:
            self._load(transform)

    def apply(self, transforms: Sequence[Transform], columns: Mapping[str, Column]) -> list[Column]:
        """The outputs, in order; each transform sees `columns` and the outputs before it.

        Raises Untrusted as `check` does, and ValueError when a result has another shape or type than declared.
        """
        known = dict(columns)
        outputs: list[Column] = []
        for transform in transforms:
            function = self._load(transform)
            arguments = {name: as_array(known[name]) for name in transform.inputs}
            n = len(known[transform.inputs[0]])
            output = as_column(function(**arguments), transform.output, n)
            known[output.name] = output
            outputs.append(output)
        return outputs

    def are_row_wise(self, transforms: Sequence[Transform], fields: Iterable[Field]) -> bool:
        """Whether the transforms treat each row by itself, see `row_wise`; `fields` has all that they take from a view.

        Raises Untrusted as `check` does.
        """
        self.check(transforms)
        if not transforms:
            return True
        made = {t.output.name for t in transforms}
        taken = {name for t in transforms for name in t.inputs} - made
        with np.errstate(all="ignore"):
            return are_row_wise(lambda columns: self.apply(transforms, columns), [f for f in fields if f.name in taken])

    def _load(self, transform: Transform) -> Function:
        key = (transform.function, transform.source_sha256)
        if (found := self._functions.get(key)) is not None:
            return found
        module_name, _, name = transform.function.partition(":")
        if module_name not in self._modules:
            raise Untrusted(f"the module {module_name} is not among the trusted transform modules")
        try:
            function = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError):
            raise Untrusted(f"{transform.function} does not exist here") from None
        except Exception as error:
            raise Untrusted(f"the module {module_name} does not load here") from error
        try:
            actual = source_sha256(function)
        except (OSError, TypeError) as error:
            raise Untrusted(f"{transform.function} is not a function with a source") from error
        if actual != transform.source_sha256:
            raise Untrusted(
                f"{transform.function} has source {actual[:12]}…, the view was registered with "
                f"{transform.source_sha256[:12]}…; register the view again or restore the function"
            )
        self._functions[key] = function
        return function  # type: ignore[no-any-return]


def as_array(column: Column) -> NDArray[Any]:
    """The array that a transform sees for a column."""
    invalid = None if column.valid is None else ~column.valid
    match column.type:
        case DataType.INT64 | DataType.BOOL | DataType.FLOAT64:
            array: NDArray[Any] = column.values.astype(np.float64)
            missing: Any = np.nan
        case DataType.TIMESTAMP:
            array, missing = column.values.astype("datetime64[us]"), np.datetime64("NaT")
        case DataType.FLOAT_VECTOR:
            array, missing = column.values.copy(), np.nan
        case DataType.STRING:
            array, missing = column.values.copy(), None
    if invalid is not None:
        array[invalid] = missing
    return array


def as_column(result: Any, output: Field, n: int) -> Column:
    """The column of a transform's result. Raises ValueError when shape or type do not fit the declaration."""
    array = np.asarray(result)
    shape = (n, output.dimension) if output.type is DataType.FLOAT_VECTOR else (n,)
    if array.shape != shape:
        raise ValueError(f"the transform {output.name} gave shape {array.shape}, not {shape}")
    match output.type:
        case DataType.STRING:
            texts = [None if isinstance(v, float) and math.isnan(v) else v for v in array.tolist()]
            return Column.build(output.name, output.type, texts)
        case DataType.TIMESTAMP:
            instants = array.astype("datetime64[us]")
            missing = np.isnat(instants)
            micros = np.where(missing, 0, instants.astype(np.int64))
            if len(micros) and not MICROS_MIN <= micros.min() <= micros.max() <= MICROS_MAX:
                raise ValueError(f"the transform {output.name} gave an instant outside of the years 1 to 9999")
            return _masked(output, micros, missing)
        case DataType.FLOAT_VECTOR:
            missing = np.isnan(array).any(axis=1)
            if np.isinf(array.astype(np.float32)).any():
                raise ValueError(f"the transform {output.name} gave an infinity")
            return _masked(output, np.where(missing[:, None], 0, array).astype(np.float32), missing)
    if output.type is DataType.INT64 and array.dtype.kind in "iu":
        # Not by way of float64, which would lose digits beyond 2^53.
        if array.dtype.kind == "u" and (array > np.uint64(2**63 - 1)).any():
            raise ValueError(f"the transform {output.name} gave a number that does not fit into 64 bits")
        return Column(output.name, output.type, array.astype(np.int64))
    try:
        numbers = array.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"the transform {output.name} gave something that is no number") from None
    missing = np.isnan(numbers)
    present = numbers[~missing]
    if np.isinf(present).any():
        raise ValueError(f"the transform {output.name} gave an infinity")
    if output.type is DataType.INT64 and (np.abs(present) >= 2.0**63).any():
        raise ValueError(f"the transform {output.name} gave a number that does not fit into 64 bits")
    if output.type is DataType.INT64 and (present != np.floor(present)).any():
        raise ValueError(f"the transform {output.name} gave a fraction where int64 was declared")
    if output.type is DataType.BOOL and not ((present == 0) | (present == 1)).all():
        raise ValueError(f"the transform {output.name} gave a number that is neither 0 nor 1")
    dtype = {DataType.INT64: np.int64, DataType.BOOL: np.bool_, DataType.FLOAT64: np.float64}[output.type]
    return _masked(output, np.where(missing, 0, numbers).astype(dtype), missing)


def _masked(output: Field, values: NDArray[Any], missing: NDArray[np.bool_]) -> Column:
    return Column(output.name, output.type, values, ~missing if missing.any() else None)
