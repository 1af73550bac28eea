"""An ONNX model with named feature columns in and typed output columns out.

The graph has one input per feature, named as the feature, of shape (n, 1): float32 for numbers and bools with NaN
for NULL, strings with '' for NULL. Its last output holds a classifier's probabilities (n, classes) or a regressor's
values (n, 1).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from foresight.scoring.examples import EXAMPLE_KEY, Example, decode_example
from foresight.values import Column, DataType, Field, InvalidValue

# Beyond this an integer loses digits as a double, see "Model inputs" in `docs/semantics.md`.
INTEGER_MAX = 2**53
# No model runs on fewer rows: a linear one has other last bits for a row alone than for the same row in company.
PADDED_ROWS = 2
# Up to so many, Python is faster than an array operation.
FEW_ROWS_MAX = 16


class ModelTask(enum.IntEnum):
    """What a model computes; the numbers are those of the wire enum."""

    BINARY_CLASSIFICATION = 1
    MULTICLASS_CLASSIFICATION = 2
    REGRESSION = 3


@dataclass(frozen=True, slots=True, eq=False)
class Signature:
    """What goes in and what comes out; `classes` are a classifier's, in the order of its probabilities."""

    task: ModelTask
    inputs: tuple[Field, ...]
    label: Field
    classes: Column | None = None

    @property
    def outputs(self) -> tuple[Field, ...]:
        """Names and types of the outputs."""
        match self.task:
            case ModelTask.BINARY_CLASSIFICATION:
                return Field("probability", DataType.FLOAT64), Field("label", self.label.type)
            case ModelTask.MULTICLASS_CLASSIFICATION:
                assert self.classes is not None
                vector = Field("probabilities", DataType.FLOAT_VECTOR, len(self.classes))
                return vector, Field("label", self.label.type)
            case ModelTask.REGRESSION:
                return (Field("value", DataType.FLOAT64),)


def takes(field: Field) -> bool:
    """Whether a model can take the feature: timestamps and vectors are for transforms only."""
    return field.type in (DataType.INT64, DataType.FLOAT64, DataType.BOOL, DataType.STRING)


def model_input(column: Column) -> NDArray[Any]:
    """What a model sees of a column: (n,) float32 with NaN for NULL, or (n,) object with '' for NULL.

    Raises InvalidValue for an integer beyond 2^53.
    """
    if column.type is DataType.STRING:
        return column.values
    if column.type is DataType.INT64 and not _fit_into_doubles(column.values):
        raise InvalidValue(column.name, "holds an integer beyond 2^53, which a model cannot take without losing digits")
    values = column.values.astype(np.float32)
    if column.valid is not None:
        values[~column.valid] = np.nan
    return values


def _fit_into_doubles(integers: NDArray[np.int64]) -> bool:
    if len(integers) <= FEW_ROWS_MAX:
        return all(-INTEGER_MAX <= value <= INTEGER_MAX for value in integers.tolist())
    # Not by np.abs: the absolute of the least integer is negative.
    return bool(integers.min() >= -INTEGER_MAX and integers.max() <= INTEGER_MAX)


class OnnxModel:
    """A loaded model; `score` may be called from several threads.

    A row's scores are the same bits whatever other rows are scored with it. `batch_invariant` says that the graph gives
    that by itself from PADDED_ROWS rows on, as nearly all do (the trainer measures it); any other graph runs once per
    row, at one shape and with the row in one place.
    """

    def __init__(self, artifact: bytes, signature: Signature, *, batch_invariant: bool = True) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # Each of a hundred models would keep what its largest batch took (3 MiB for a small network and 1,024 rows) to
        # save at most 2 us in a run; both measured.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        self._session = ort.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
        # The session would keep the artifact for loading it again with other providers, and there are none.
        self._session._model_bytes = None
        # Unused features may be left out of the graph by the converter.
        self._names = [i.name for i in self._session.get_inputs()]
        self._output = self._session.get_outputs()[-1].name
        self._row_by_row = not batch_invariant
        self.signature = signature

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs of the graph: those of the signature, less what no score depends on."""
        return tuple(self._names)

    def example(self) -> Example | None:
        """The rows that the artifact carries; None for one without. Raises InvalidValue for damaged ones."""
        text = self._session.get_modelmeta().custom_metadata_map.get(EXAMPLE_KEY)
        return None if text is None else decode_example(text)

    def scores_like(self, example: Example) -> bool:
        """Whether the example's rows have to the bit its outputs here, all at once and each alone.

        Raises KeyError when it lacks an input, and what ONNX Runtime raises.
        """
        together = self.score_raw(example.inputs)
        if not _same_bits(together, example.outputs):
            return False
        alone = [self.score_raw({n: v[i : i + 1] for n, v in example.inputs.items()}) for i in range(example.rows)]
        return _same_bits(np.concatenate(alone), example.outputs)

    def score(self, features: Mapping[str, Column]) -> list[Column]:
        """The outputs for n rows; `features` has at least every input of the signature, n rows each."""
        raw = self.score_raw({name: model_input(features[name]) for name in self._names})
        return self.decode(raw)

    def score_raw(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Probabilities (n, classes) or values (n,) of prepared inputs, see `model_input`."""
        feed = {name: inputs[name].reshape(-1, 1) for name in self._names}
        n = len(next(iter(feed.values())))
        if n == 1:
            result = self._run_padded(feed)
        elif self._row_by_row:
            rows = [{name: values[i : i + 1] for name, values in feed.items()} for i in range(n)]
            result = np.concatenate([self._run_padded(row) for row in rows]) if rows else self._run(feed)
        else:
            result = self._run(feed)
        return result if self.signature.task is not ModelTask.REGRESSION else result.reshape(-1)

    def _run_padded(self, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The result for one row, run beside copies of itself."""
        return self._run({name: values.repeat(PADDED_ROWS, axis=0) for name, values in feed.items()})[:1]

    def _run(self, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = self._session.run([self._output], feed)[0]
        return result

    def decode(self, raw: NDArray[np.float32]) -> list[Column]:
        """The output columns of `score_raw`'s result."""
        names = self.signature.outputs
        if self.signature.task is ModelTask.REGRESSION:
            return [Column(names[0].name, DataType.FLOAT64, raw.astype(np.float64))]
        classes = self.signature.classes
        assert classes is not None
        labels = classes.take(raw.argmax(axis=1)).renamed(names[1].name)
        if self.signature.task is ModelTask.BINARY_CLASSIFICATION:
            return [Column(names[0].name, DataType.FLOAT64, raw[:, 1].astype(np.float64)), labels]
        return [Column(names[0].name, DataType.FLOAT_VECTOR, np.ascontiguousarray(raw)), labels]


def _same_bits(these: NDArray[np.float32], others: NDArray[np.float32]) -> bool:
    """Whether shapes and bits agree; NaN is NaN, of which a processor has several."""
    if these.shape != others.shape:
        return False
    same = np.ascontiguousarray(these).view(np.uint32) == np.ascontiguousarray(others).view(np.uint32)
    return bool((same | (np.isnan(these) & np.isnan(others))).all())
