"""From a fitted scikit-learn estimator to an ONNX artifact that scores the same. Only the worker imports this module.

The graph has one input per feature, as `foresight.scoring` feeds it; its last output holds probabilities or values.
The artifact carries an example: some of the training rows with the scores that it gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from foresight.scoring import EXAMPLE_KEY, Example, ModelTask, OnnxModel, Signature, encode_example, example_rows
from foresight.values import DataType, Field
from services.runtime.errors import FailedPrecondition

PARITY_ROWS_MAX = 2_000
PROBABILITY_DIFFERENCE_MAX = 1e-4
VALUE_DIFFERENCE_MAX = 1e-3
# Rows scored in batches of these sizes, to see whether a score depends on its company or on its place there.
INVARIANCE_ROWS_MAX = 256
INVARIANCE_SIZES = (1, 2, 3, 5, 8, 17, 64)


@dataclass(frozen=True, slots=True)
class Conversion:
    """An artifact and how close it is to the estimator."""

    artifact: bytes
    parity_max_difference: float
    parity_rows: int
    batch_invariant: bool


def convert(
    estimator: Any, signature: Signature, frame: pd.DataFrame, rows: NDArray[np.intp], *, by_name: bool
) -> Conversion:
    """Converts, and compares on these rows of the frame.

    `by_name` says that the estimator itself selects columns; otherwise the graph joins its inputs to one matrix
    first. Raises FailedPrecondition when ONNX has no equal of a step or the scores differ too much.
    """
    graph = _to_onnx(estimator, signature, frame, by_name=by_name)
    artifact: bytes = graph.SerializeToString()
    model = _load(artifact, signature)
    sample = frame.iloc[rows]
    inputs = {f.name: sample[f.name].to_numpy() for f in signature.inputs}
    together = _score(model, inputs)
    difference = _difference(estimator, signature, sample, together)
    taken = _example_inputs(signature, frame)
    example = Example(taken, _score(model, taken))
    # Whoever loads the artifact compares the example row by row.
    invariant = _is_invariant(model, inputs, together) and model.scores_like(example)
    if not invariant:
        example = Example(taken, _score(OnnxModel(artifact, signature, batch_invariant=False), taken))
    return Conversion(_with_example(graph, example), difference, len(rows), invariant)


def parity_rows(frame: pd.DataFrame) -> NDArray[np.intp]:
    """Up to PARITY_ROWS_MAX row positions: evenly spread ones, and of those with a missing value as many again."""
    n = len(frame)
    spread = np.linspace(0, n - 1, min(n, PARITY_ROWS_MAX // 2)).astype(np.intp)
    missing = np.zeros(n, np.bool_)
    for name in frame.columns:
        column = frame[name].to_numpy()
        missing |= (column == "") if column.dtype == object else np.isnan(column)
    positions = np.flatnonzero(missing)
    if len(positions) > PARITY_ROWS_MAX // 2:
        positions = positions[np.linspace(0, len(positions) - 1, PARITY_ROWS_MAX // 2).astype(np.intp)]
    return np.union1d(spread, positions).astype(np.intp)


def _example_inputs(signature: Signature, frame: pd.DataFrame) -> dict[str, NDArray[Any]]:
    inputs = {f.name: frame[f.name].to_numpy() for f in signature.inputs}
    rows = example_rows(inputs)
    return {name: values[rows] for name, values in inputs.items()}


def _with_example(graph: Any, example: Example) -> bytes:
    """The artifact of a graph, with the example if any of its rows fits."""
    if (text := encode_example(example)) is not None:
        graph.metadata_props.add(key=EXAMPLE_KEY, value=text)
    artifact: bytes = graph.SerializeToString()
    return artifact


def _to_onnx(estimator: Any, signature: Signature, frame: pd.DataFrame, *, by_name: bool) -> Any:
    """The graph as a protobuf message."""
    texts = [f.type is DataType.STRING for f in signature.inputs]
    if not by_name:
        if any(texts) and not all(texts):
            raise FailedPrecondition(
                "the view has text and number features: let the pipeline begin with a ColumnTransformer that says "
                "which step takes which"
            )
        join = ColumnTransformer([("inputs", "passthrough", list(frame.columns))]).fit(frame.head(2))
        estimator = Pipeline([("inputs", join), ("model", estimator)])
    types = [(f.name, _onnx_type(f)) for f in signature.inputs]
    options = None if signature.task is ModelTask.REGRESSION else {"zipmap": False}
    try:
        return to_onnx(estimator, initial_types=types, options=options)
    except Exception as error:
        raise FailedPrecondition(f"the pipeline cannot be converted to ONNX: {_first_sentence(error)}") from error


def _onnx_type(field: Field) -> Any:
    return StringTensorType([None, 1]) if field.type is DataType.STRING else FloatTensorType([None, 1])


def _load(artifact: bytes, signature: Signature) -> OnnxModel:
    try:
        return OnnxModel(artifact, signature)
    except Exception as error:
        raise FailedPrecondition("the converted pipeline is not a graph that ONNX Runtime can run") from error


def _score(model: OnnxModel, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    try:
        return model.score_raw(inputs)
    except Exception as error:
        raise FailedPrecondition("ONNX Runtime cannot run the converted pipeline on the training rows") from error


def _difference(estimator: Any, signature: Signature, sample: pd.DataFrame, actual: NDArray[Any]) -> float:
    """The largest difference: absolute for probabilities, relative to max(|value|, mean |value|) for values."""
    if signature.task is ModelTask.REGRESSION:
        expected = np.asarray(estimator.predict(sample), dtype=np.float64).reshape(-1)
        scale: Any = np.maximum(np.abs(expected), max(np.abs(expected).mean(), 1e-9))
        limit = VALUE_DIFFERENCE_MAX
    else:
        expected = np.asarray(estimator.predict_proba(sample), dtype=np.float64)
        scale, limit = 1.0, PROBABILITY_DIFFERENCE_MAX
    if expected.shape != actual.shape:
        raise FailedPrecondition("the converted pipeline gives another number of outputs than scikit-learn")
    difference = float((np.abs(expected - actual) / scale).max())
    # Written so that a NaN fails, too.
    if not difference <= limit:
        raise FailedPrecondition(
            f"the converted pipeline scores differently from scikit-learn: by up to {difference:.3g}, allowed are "
            f"{limit:g}; a step may lose digits in 32-bit floats or treat missing values in another way",
            difference=f"{difference:.6g}",
        )
    return difference


def _is_invariant(model: OnnxModel, inputs: dict[str, NDArray[Any]], together: NDArray[Any]) -> bool:
    """Whether rows have bitwise the scores that they have together when they come in batches of any size.

    Sizes without a common divisor put each row in many places of a batch. What runs here is padded as in serving.
    """
    n = min(len(together), INVARIANCE_ROWS_MAX)
    for size in INVARIANCE_SIZES:
        starts: Sequence[int] = range(0, n, size)
        parts = [model.score_raw({k: v[i : min(i + size, n)] for k, v in inputs.items()}) for i in starts]
        if np.concatenate(parts).tobytes() != together[:n].tobytes():
            return False
    return True


def _first_sentence(error: Exception) -> str:
    """What a converter says, without the Python types and advice that follow."""
    text = " ".join(str(error).split()).split(". ")[0].split(" You may ")[0]
    return text.replace("<class '", "").replace("'>", "")[:200]
