"""Explanations of pipelines as the trainer converts them: texts, bools, NULLs, classes, and any kind of model."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from foresight.scoring import OnnxModel, model_input
from foresight.values import Column, DataType, Field
from services.predictor.artifacts import ArtifactCache
from services.predictor.explaining import Explanation, Explanations
from services.predictor.models import LoadedModel, ModelCache
from services.predictor.shapley import Background
from services.predictor.versions import ModelVersion, VersionRef
from services.trainer.fitting import Fitted, fit
from tests.unit.predictor.test_shapley import by_definition
from tests.unit.trainer.specifications import by_column, pipeline, spec

INPUTS = (
    Field("wind", DataType.FLOAT64),
    Field("hour", DataType.INT64),
    Field("night", DataType.BOOL),
    Field("sky", DataType.STRING),
)
NUMBERS = INPUTS[:3]
N = 300
ENCODED = by_column(
    ("text", spec("preprocessing.OrdinalEncoder", handle_unknown="use_encoded_value", unknown_value=-1), ["sky"]),
    ("numbers", "passthrough", ["wind", "hour", "night"]),
)
TREES = pipeline(("first", ENCODED), ("model", spec("ensemble.HistGradientBoostingClassifier", max_iter=10)))
LATE, KIND, DELAY = Field("late", DataType.BOOL), Field("kind", DataType.STRING), Field("delay", DataType.FLOAT64)


def rows() -> pa.Table:
    random = np.random.default_rng(1)
    wind, hour, night = random.normal(10, 5, N), random.integers(0, 24, N), random.random(N) < 0.4
    sky = np.array(["blue", "grey", "black"])[random.integers(0, 3, N)]
    delay = wind + hour / 4 + 5 * night * (sky == "black") + random.normal(size=N)
    return pa.table(
        {
            "wind": pa.array(wind, mask=random.random(N) < 0.2),
            "hour": hour,
            "night": night,
            "sky": sky,
            "late": delay > 15,
            "kind": np.array(["early", "fine", "late"])[np.digitize(delay, [11, 16])],
            "delay": delay,
        }
    )


ROWS = rows()
ASKED = {
    "wind": Column.build("wind", DataType.FLOAT64, [30.0, None, 4.5]),
    "hour": Column.build("hour", DataType.INT64, [23, 5, None]),
    "night": Column.build("night", DataType.BOOL, [True, None, False]),
    "sky": Column.build("sky", DataType.STRING, ["black", "never seen", None]),
}
WITHOUT_NULLS = ASKED | {
    "wind": Column.build("wind", DataType.FLOAT64, [30.0, 1.0, 4.5]),
    "hour": Column.build("hour", DataType.INT64, [23, 5, 11]),
    "night": Column.build("night", DataType.BOOL, [True, False, False]),
}


class Shelf:
    """One artifact."""

    def __init__(self, artifact: bytes) -> None:
        self._artifact = artifact

    async def download(self, sha256: str) -> AsyncIterator[bytes]:
        yield self._artifact


async def loaded(fitted: Fitted, folder: Path) -> LoadedModel:
    artifact, signature = fitted.conversion.artifact, fitted.signature
    digest, ref = hashlib.sha256(artifact).hexdigest(), VersionRef("late", 1)
    task, invariant = signature.task, fitted.conversion.batch_invariant
    version = ModelVersion(ref, ref, task, signature.inputs, signature.classes, digest, len(artifact), invariant)
    return await ModelCache(ArtifactCache(folder, Shelf(artifact))).load(version, signature.label)


async def explained(model: LoadedModel, asked: dict[str, Column], rows: range) -> tuple[Explanation, list[Column]]:
    outputs = [c.part(rows.start, rows.stop) for c in model.score(asked)]
    with Explanations().begin(model, len(rows), None) as explaining:
        explaining.take(asked, rows, outputs)
        made = await explaining.made()
    assert made is not None
    return made, outputs


def expected(model: LoadedModel, asked: dict[str, Column], row: int, output: int | None) -> dict[str, float]:
    """By definition, over all sets of inputs."""
    onnx: OnnxModel = model.onnx

    def score(inputs: Any) -> Any:
        raw = onnx.score_raw(inputs)
        return (raw if output is None else raw[:, output]).astype(np.float64)

    assert model.example is not None
    inputs = {name: model.example.inputs[name] for name in onnx.names}
    taken = {name: model_input(asked[name])[row : row + 1] for name in onnx.names}
    return by_definition(score, Background(inputs, score(inputs)), taken, float(score(taken)[0]))


@pytest.mark.parametrize(
    ("estimator", "label", "inputs", "asked"),
    [
        (TREES, LATE, INPUTS, ASKED),
        (TREES, KIND, INPUTS, ASKED),
        (spec("ensemble.HistGradientBoostingRegressor", max_iter=10), DELAY, NUMBERS, ASKED),
        (
            pipeline(("fill", spec("impute.SimpleImputer")), ("model", spec("linear_model.LogisticRegression"))),
            *(LATE, NUMBERS, ASKED),
        ),
        (
            pipeline(
                ("fill", spec("impute.SimpleImputer")), ("model", spec("neural_network.MLPRegressor", max_iter=500))
            ),
            *(DELAY, NUMBERS, WITHOUT_NULLS),
        ),
    ],
)
async def test_a_trained_model_is_explained_by_its_shapley_values(
    estimator: Any, label: Field, inputs: tuple[Field, ...], asked: dict[str, Column], tmp_path: Path
) -> None:
    """Each row as by definition, in any company to the bit, and in the order of the model's inputs."""
    model = await loaded(fit(estimator, inputs, label, ROWS, lambda _: None), tmp_path)
    together, outputs = await explained(model, asked, range(3))
    assert [c.name for c in together.contributions] == [f.name for f in inputs]
    for row in range(3):
        alone, _ = await explained(model, asked, range(row, row + 1))
        for mine, theirs in zip(alone.contributions, together.contributions, strict=True):
            assert mine.values[0] == theirs.values[row]
        scores = outputs[0].values[row]
        output = None if label is DELAY else 1 if label is LATE else int(scores.argmax())
        assert together.score.values[row] == (scores.max() if label is KIND else scores)
        found = {c.name: c.values[row] for c in together.contributions}
        assert found == pytest.approx(expected(model, asked, row, output), rel=1e-9, abs=1e-9)
        assert together.base.values[row] + sum(found.values()) == pytest.approx(together.score.values[row], rel=1e-9)


async def test_a_linear_model_is_explained_by_its_weights(tmp_path: Path) -> None:
    """What its input adds is the weight times the distance from the example's mean, as far as 32 bits go."""
    estimator = pipeline(("fill", spec("impute.SimpleImputer")), ("model", spec("linear_model.LinearRegression")))
    fitted = fit(estimator, NUMBERS, DELAY, ROWS.filter(ROWS["wind"].is_valid()), lambda _: None)
    model = await loaded(fitted, tmp_path)
    made, _ = await explained(model, WITHOUT_NULLS, range(3))
    assert model.example is not None
    for column in made.contributions:
        given = model_input(WITHOUT_NULLS[column.name]).astype(np.float64)
        steps = given - model.example.inputs[column.name].astype(np.float64).mean()
        weights = column.values / steps
        assert weights == pytest.approx(weights[0], rel=1e-4)
