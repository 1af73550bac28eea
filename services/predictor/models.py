"""Loaded models, shared by everything that scores with the same artifact and signature.

A model that carries an example is used only when it scores the example's rows to the bit as it did where it was
registered, together and one by one: another runtime or processor, or a flaw in either, shows before it has traffic.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Mapping

import numpy as np
import structlog

from foresight.scoring import Example, OnnxModel
from foresight.values import Column, DataType, Field, InvalidValue
from services.predictor.artifacts import ArtifactCache
from services.predictor.versions import ModelVersion
from services.runtime.errors import FailedPrecondition

log = structlog.get_logger()

WARM_UP_ROWS = 2
# The first one allocates; the last one is measured.
WARM_UP_RUNS = 2
# More at once would only compete for the same cores.
LOADS_AT_ONCE = 2

# How much a new measurement counts against those before.
EXPLAIN_WEIGHT = 0.3

ModelKey = tuple[object, ...]


class LoadedModel:
    """An ONNX model in memory; its methods may run in several threads.

    `example`: rows that it carries, if it does; `background`: those of them that it has a finite score for.
    """

    def __init__(self, onnx: OnnxModel, sha256: str, example: Example | None = None) -> None:
        self.onnx = onnx
        self.sha256 = sha256
        self.example = example
        self.background = None if example is None else _with_finite_scores(example)
        # Time of one row, measured when it is warmed up; 0 before.
        self.row_s = 0.0
        # Time that explaining a row takes, as lately measured; 0 before the first.
        self.explain_row_s = 0.0

    @property
    def seed(self) -> int:
        """What is random about explanations of this model; the same wherever it is loaded."""
        return int(self.sha256[:16], 16)

    def explained_row_in(self, seconds: float) -> None:
        """A row was explained in this time."""
        known = self.explain_row_s or seconds
        self.explain_row_s = known + EXPLAIN_WEIGHT * (seconds - known)

    def score(self, features: Mapping[str, Column]) -> tuple[Column, ...]:
        """The outputs for n rows.

        Raises FailedPrecondition when the model has no finite answer for a row or cannot take its values, and
        InvalidValue for an integer beyond 2^53.
        """
        try:
            # A double beyond the range of float32 becomes an infinity, which trees take well.
            with np.errstate(over="ignore"):
                outputs = tuple(self.onnx.score(features))
        except (InvalidValue, KeyError):
            raise
        except Exception as error:  # ONNX Runtime has no public base of its errors, and a pipeline may refuse any text.
            log.warning("scoring_failed", error=str(error)[:500])
            raise FailedPrecondition("the model cannot score these values") from error
        for output in outputs:
            if output.type in (DataType.FLOAT64, DataType.FLOAT_VECTOR):
                finite = np.isfinite(output.values)
                if not finite.all():
                    row = int((~finite.reshape(len(output), -1).all(axis=1)).argmax())
                    raise FailedPrecondition(
                        f"the model has no finite {output.name} for row {row}; a feature that it needs is NULL",
                        row=str(row),
                    )
        return outputs


class ModelCache:
    """Loads models; one that is in use anywhere is not loaded twice, one in use nowhere is let go."""

    def __init__(self, artifacts: ArtifactCache) -> None:
        self._artifacts = artifacts
        self._loaded: weakref.WeakValueDictionary[ModelKey, LoadedModel] = weakref.WeakValueDictionary()
        self._locks: weakref.WeakValueDictionary[ModelKey, asyncio.Lock] = weakref.WeakValueDictionary()
        self._permits = asyncio.Semaphore(LOADS_AT_ONCE)

    @property
    def loaded(self) -> int:
        """Models in memory."""
        return len(self._loaded)

    async def load(self, version: ModelVersion, label: Field) -> LoadedModel:
        """The model of a version, warm. Raises what fetching the artifact raises, and FailedPrecondition."""
        key = _key_of(version, label)
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:
            if (model := self._loaded.get(key)) is not None:
                return model
            artifact = await self._artifacts.fetch(version.artifact_sha256)
            async with self._permits:
                model = await asyncio.to_thread(_load, artifact, version, label)
            self._loaded[key] = model
            return model


def _key_of(version: ModelVersion, label: Field) -> ModelKey:
    classes = None if version.classes is None else tuple(version.classes.to_list())
    return (version.artifact_sha256, version.batch_invariant, version.task, version.inputs, label.type, classes)


def _load(artifact: bytes, version: ModelVersion, label: Field) -> LoadedModel:
    try:
        onnx = OnnxModel(artifact, version.signature(label), batch_invariant=version.batch_invariant)
    except Exception as error:  # ONNX Runtime has no public base of its errors.
        log.warning("artifact_not_loadable", model=str(version.model), error=str(error)[:500])
        raise FailedPrecondition(f"the artifact of {version.model} does not load") from error
    try:
        example = onnx.example()
    except InvalidValue as error:
        raise FailedPrecondition(f"the example in the artifact of {version.model} cannot be read: {error}") from error
    model = LoadedModel(onnx, version.artifact_sha256, example)
    try:
        if example is None:
            _warm_up(model, version)
        else:
            _check(model, example, version)
    except KeyError as error:
        raise FailedPrecondition(f"the artifact of {version.model} takes an input that its version lacks") from error
    return model


def _warm_up(model: LoadedModel, version: ModelVersion) -> None:
    """Runs an artifact of before there were examples on rows of NULLs."""
    nulls = {field.name: Column.nulls(field, WARM_UP_ROWS) for field in version.inputs}
    for _ in range(WARM_UP_RUNS):
        started = time.perf_counter()
        try:
            model.score(nulls)
        except FailedPrecondition as error:
            # A linear model has no answer for NULLs; the run has warmed it all the same.
            log.info("warm_up_without_answer", model=str(version.model), reason=error.message)
        model.row_s = (time.perf_counter() - started) / WARM_UP_ROWS


def _check(model: LoadedModel, example: Example, version: ModelVersion) -> None:
    """Runs the model on its example, which warms it. Raises FailedPrecondition when the scores are others."""
    onnx = model.onnx
    known = {field.name for field in version.inputs}
    if (unknown := next((name for name in onnx.names if name not in known), None)) is not None:
        raise KeyError(unknown)
    try:
        same = onnx.scores_like(example)
        few = {name: values[:WARM_UP_ROWS] for name, values in example.inputs.items()}
        started = time.perf_counter()
        onnx.decode(onnx.score_raw(few))
        model.row_s = (time.perf_counter() - started) / min(WARM_UP_ROWS, example.rows)
    except Exception as error:  # ONNX Runtime has no public base of its errors, and damage has any shape.
        log.warning("example_not_scored", model=str(version.model), error=str(error)[:500])
        raise FailedPrecondition(f"the artifact of {version.model} cannot score its own example") from error
    if not same:
        raise FailedPrecondition(
            f"the artifact of {version.model} scores its example otherwise than when it was registered: another "
            "version of ONNX Runtime or another kind of processor may be why; train it again"
        )


def _with_finite_scores(example: Example) -> Example | None:
    finite = np.flatnonzero(np.isfinite(example.outputs).reshape(example.rows, -1).all(axis=1))
    return example.take(finite) if len(finite) else None
