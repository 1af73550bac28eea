"""Fits a pipeline on a table and converts it. Only the worker imports this module."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import joblib  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
import pyarrow as pa
import sklearn
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.utils._param_validation import InvalidParameterError

from foresight.scoring import ModelTask, Signature, model_input
from foresight.tables import column_from_arrow
from foresight.values import Column, DataType, Field
from services.runtime.errors import FailedPrecondition
from services.trainer.construction import build
from services.trainer.conversion import Conversion, convert, parity_rows
from services.trainer.specification import Estimator, selects_columns

# Trees of a forest that are grown at once; they share no sums, so their number changes no model.
FOREST_THREADS = 2
CLASSES_MAX = 1_000
WARNINGS_MAX = 10


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A fitted and converted pipeline; `warnings` are what scikit-learn had to say."""

    signature: Signature
    conversion: Conversion
    sklearn_version: str
    warnings: tuple[str, ...]


def fit(
    pipeline: Estimator,
    inputs: tuple[Field, ...],
    label: Field,
    table: pa.Table,
    progress: Callable[[str], None],
) -> Fitted:
    """Fits on a table that has the inputs and the label (without NULL), and converts.

    Raises InvalidValue for a bad specification, FailedPrecondition for rows that it cannot be fitted on, labels of
    the wrong kind, and a pipeline that cannot be converted.
    """
    estimator = build(pipeline)
    labels = column_from_arrow(table[label.name], label)
    signature, target = _target(is_classifier(estimator), inputs, label, labels)
    frame = to_frame([column_from_arrow(table[f.name], f) for f in inputs])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _fit(estimator, frame, target)
        progress("converting")
        conversion = convert(estimator, signature, frame, parity_rows(frame), by_name=selects_columns(pipeline))
    texts = dict.fromkeys(f"{w.category.__name__}: {str(w.message).splitlines()[0][:200]}" for w in caught)
    return Fitted(signature, conversion, sklearn.__version__, tuple(texts)[:WARNINGS_MAX])


def to_frame(columns: list[Column]) -> pd.DataFrame:
    """The DataFrame that scikit-learn gets: float32 with NaN, or objects with '', one column per feature."""
    arrays: dict[str, pd.Series[Any]] = {}
    for column in columns:
        values = model_input(column)
        arrays[column.name] = pd.Series(values, dtype=object if column.type is DataType.STRING else np.float32)
    return pd.DataFrame(arrays)


def _target(
    classifier: bool, inputs: tuple[Field, ...], label: Field, labels: Column
) -> tuple[Signature, NDArray[Any]]:
    """The signature, and what to fit to: values, or positions among the classes in ascending order."""
    if not len(labels):
        raise FailedPrecondition("there are no rows with a label to train on")
    if label.type is DataType.FLOAT64:
        if classifier:
            raise FailedPrecondition(f"the label {label.name} is a number, the pipeline is a classifier")
        return Signature(ModelTask.REGRESSION, inputs, label), labels.values
    if not classifier:
        raise FailedPrecondition(f"the label {label.name} is {label.type.value}, the pipeline is a regressor")
    classes, codes = np.unique(labels.values, return_inverse=True)
    if len(classes) < 2:
        raise FailedPrecondition("all rows have the same label: there is nothing to learn")
    if len(classes) > CLASSES_MAX:
        raise FailedPrecondition(f"the label has {len(classes)} values; a classifier takes at most {CLASSES_MAX}")
    task = ModelTask.BINARY_CLASSIFICATION if len(classes) == 2 else ModelTask.MULTICLASS_CLASSIFICATION
    column = Column.build(label.name, label.type, classes.tolist())
    return Signature(task, inputs, label, column), codes.astype(np.int64)


def _fit(estimator: Any, frame: pd.DataFrame, target: NDArray[Any]) -> None:
    try:
        # Threads, never processes: a worker that is killed must leave nothing behind.
        with joblib.parallel_config(backend="threading", n_jobs=FOREST_THREADS):
            estimator.fit(frame, target)
    except InvalidParameterError as error:
        raise FailedPrecondition(f"scikit-learn refuses the pipeline: {_first_line(error)}") from error
    except MemoryError:
        raise FailedPrecondition("the pipeline needs more memory than the trainer has") from None
    except Exception as error:
        raise FailedPrecondition(f"scikit-learn cannot fit the pipeline: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
