"""What the worker can be asked: `check` a specification, `fit` it. Both sides of the frames' content are here.

The trainer's side imports no scikit-learn: `warm_up` and `answer`, which do, are called in the worker only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from foresight.scoring import Signature
from foresight.values import DataType, Field, InvalidValue, Violation
from services.runtime.errors import FailedPrecondition, ServiceError
from services.trainer import signatures
from services.trainer.estimators import ALLOWED
from services.trainer.specification import Estimator, from_json, to_json

Frame = tuple[dict[str, Any], list[bytes]]


@dataclass(frozen=True, slots=True, eq=False)
class FitTask:
    """A pipeline to fit on a table with the inputs and the label, no label NULL."""

    pipeline: Estimator
    inputs: tuple[Field, ...]
    label: Field
    table: pa.Table


@dataclass(frozen=True, slots=True, eq=False)
class FitResult:
    """A fitted pipeline as an artifact."""

    signature: Signature
    artifact: bytes
    parity_max_difference: float
    parity_rows: int
    batch_invariant: bool
    sklearn_version: str
    warnings: tuple[str, ...]


def encode_check(pipeline: Estimator) -> tuple[dict[str, Any], list[bytes | memoryview]]:
    """The frame that asks to check a specification."""
    return {"task": "check", "pipeline": to_json(pipeline)}, []


def encode_fit(task: FitTask) -> tuple[dict[str, Any], list[bytes | memoryview]]:
    """The frame that asks to fit."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, task.table.schema) as writer:
        writer.write_table(task.table)
    head = {
        "task": "fit",
        "pipeline": to_json(task.pipeline),
        "inputs": [signatures.field_to_json(f) for f in task.inputs],
        "label": signatures.field_to_json(task.label),
    }
    return head, [memoryview(sink.getvalue())]


def decode_fit(head: dict[str, Any], blobs: list[bytes]) -> FitResult:
    """The result in a frame."""
    return FitResult(
        signature=signatures.from_json(head["signature"]),
        artifact=blobs[0],
        parity_max_difference=head["parity_max_difference"],
        parity_rows=head["parity_rows"],
        batch_invariant=head["batch_invariant"],
        sklearn_version=head["sklearn_version"],
        warnings=tuple(head["warnings"]),
    )


def raise_error(head: dict[str, Any]) -> None:
    """Raises the error that a frame carries, if it does."""
    if "invalid" in head:
        first, *more = [Violation(field, description) for field, description in head["invalid"]]
        raise InvalidValue(first.field, first.description, *more)
    if "failed" in head:
        raise FailedPrecondition(head["failed"], **head["metadata"])
    if "bug" in head:
        raise RuntimeError(f"the training worker failed: {head['bug']}")


def warm_up() -> None:
    """Loads everything that a training may need, by training something. Called in the worker."""
    from services.trainer.fitting import fit

    for module in {module for module, _ in ALLOWED.values()}:
        importlib.import_module(module)
    rows = pa.table({"x": [float(i) for i in range(8)], "y": [i % 2 == 0 for i in range(8)]})
    few = (("max_iter", 2), ("min_samples_leaf", 1))
    pipeline = Estimator("sklearn.ensemble.HistGradientBoostingClassifier", few)
    fit(pipeline, (Field("x", DataType.FLOAT64),), Field("y", DataType.BOOL), rows, lambda _: None)


def answer(head: dict[str, Any], blobs: Sequence[bytes], progress: Callable[[str], None]) -> Frame:
    """Does what a frame asks and answers the frame of the result or of the error. Called in the worker."""
    from services.trainer.construction import build
    from services.trainer.fitting import fit

    pipeline = from_json(head["pipeline"])
    assert isinstance(pipeline, Estimator)
    try:
        if head["task"] == "check":
            build(pipeline)
            return {}, []
        with pa.ipc.open_stream(pa.py_buffer(blobs[0])) as reader:
            table = reader.read_all()
        inputs = tuple(signatures.field_from_json(f) for f in head["inputs"])
        fitted = fit(pipeline, inputs, signatures.field_from_json(head["label"]), table, progress)
    except InvalidValue as error:
        return {"invalid": [[v.field, v.description] for v in error.violations]}, []
    except ServiceError as error:
        return {"failed": error.message, "metadata": error.metadata}, []
    except Exception as error:  # noqa: BLE001 - the worker's one boundary: a bug must not cost the warm process
        return {"bug": f"{type(error).__name__}: {error}"[:500]}, []
    conversion = fitted.conversion
    result = {
        "signature": signatures.to_json(fitted.signature),
        "parity_max_difference": conversion.parity_max_difference,
        "parity_rows": conversion.parity_rows,
        "batch_invariant": conversion.batch_invariant,
        "sklearn_version": fitted.sklearn_version,
        "warnings": list(fitted.warnings),
    }
    return result, [conversion.artifact]
