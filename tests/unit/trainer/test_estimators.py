"""Every class that the table allows is fitted, converted to ONNX and compared with scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from foresight.scoring import ModelTask, OnnxModel
from foresight.scoring.examples import EXAMPLE_ROWS_MAX
from foresight.values import Column, DataType, Field, InvalidValue
from services.runtime.errors import FailedPrecondition
from services.trainer.construction import build
from services.trainer.estimators import ALLOWED
from services.trainer.fitting import fit
from services.trainer.specification import Estimator, Listed, Value
from tests.unit.trainer.specifications import LOGISTIC, RIDGE, by_column, pipeline, spec

NUMBERS = (Field("a", DataType.FLOAT64), Field("b", DataType.INT64), Field("c", DataType.FLOAT64))
TEXT = Field("s", DataType.STRING)
BOOL_LABEL = Field("late", DataType.BOOL)
REAL_LABEL = Field("delay", DataType.FLOAT64)
TREE = spec("tree.DecisionTreeClassifier", max_depth=3)
REGRESSION_TREE = spec("tree.DecisionTreeRegressor", max_depth=3)


def _rows(n: int = 240) -> pa.Table:
    rng = np.random.default_rng(7)
    a, b, c = rng.normal(size=n), rng.integers(0, 9, n), rng.gamma(2.0, 2.0, n)
    score = a + 0.3 * b - c / 3 + rng.normal(size=n) * 0.5
    missing = rng.random(n) < 0.1
    return pa.table(
        {
            "a": a,
            "b": b,
            "c": c,
            "s": rng.choice(["JFK", "LGA", "EWR"], n),
            "holes": pa.array(a, mask=missing),
            "late": score > 0,
            "kind": np.array(["early", "late", "on time"])[np.digitize(score, [-1, 1])],
            "delay": score - score.min() + 1,
        }
    )


ROWS = _rows()
PAIR = (("one", LOGISTIC), ("two", TREE))
REAL_PAIR = (("one", RIDGE), ("two", REGRESSION_TREE))
SMALL = (
    *("RandomForestClassifier", "ExtraTreesClassifier", "GradientBoostingClassifier", "AdaBoostClassifier"),
    *("RandomForestRegressor", "ExtraTreesRegressor", "GradientBoostingRegressor", "AdaBoostRegressor"),
    *("BaggingClassifier", "BaggingRegressor"),
)
# Parameters that a class needs to be of use here: small ensembles, probabilities, nested estimators.
PARAMETERS: dict[str, dict[str, Value]] = {
    "RadiusNeighborsClassifier": {"radius": 20.0},
    "RadiusNeighborsRegressor": {"radius": 20.0},
    "SGDClassifier": {"loss": "log_loss"},
    "SVC": {"probability": True},
    "NuSVC": {"probability": True},
    "CalibratedClassifierCV": {"estimator": spec("svm.LinearSVC")},
    "OneVsRestClassifier": {"estimator": LOGISTIC},
    "VotingClassifier": {"estimators": Listed(PAIR), "voting": "soft"},
    "StackingClassifier": {"estimators": Listed(PAIR), "cv": 2},
    "VotingRegressor": {"estimators": Listed(REAL_PAIR)},
    "StackingRegressor": {"estimators": Listed(REAL_PAIR), "cv": 2},
    "SelectKBest": {"k": 2},
    "SelectPercentile": {"percentile": 70},
    "OneHotEncoder": {"handle_unknown": "ignore"},
    "OrdinalEncoder": {"handle_unknown": "use_encoded_value", "unknown_value": -1},
    "GaussianRandomProjection": {"n_components": 2},
    **{name: {"n_components": 2} for name in ("PCA", "TruncatedSVD", "IncrementalPCA", "KernelPCA")},
    **{name: {"max_iter": 30} for name in ("MLPClassifier", "MLPRegressor")},
    **{name: {"max_iter": 10} for name in ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")},
    **{name: {"n_estimators": 5} for name in SMALL},
}
# Classifiers without probabilities: only inside CalibratedClassifierCV.
WITHOUT_PROBABILITIES = ("RidgeClassifier", "Perceptron", "LinearSVC")
ENCODERS = ("OneHotEncoder", "OrdinalEncoder", "TargetEncoder")
IMPUTERS = ("SimpleImputer",)
COMPOSED = ("Pipeline", "FeatureUnion", "ColumnTransformer")
TRANSFORMERS = tuple(
    name
    for module in ("preprocessing", "impute", "decomposition", "random_projection", "feature_selection")
    for name in ALLOWED
    if name.startswith(f"sklearn.{module}.")
)
MODELS = tuple(n for n in ALLOWED if n not in TRANSFORMERS and n.rpartition(".")[2] not in COMPOSED)


def _spec(name: str) -> Estimator:
    parameters = PARAMETERS.get(name.rpartition(".")[2], {})
    return Estimator(name, tuple(parameters.items()))


def _is_regressor(name: str) -> bool:
    from sklearn.base import is_regressor

    try:
        return bool(is_regressor(build(_spec(name))))
    except InvalidValue:
        return False


@pytest.mark.parametrize("name", MODELS)
def test_an_allowed_model_scores_in_onnx_as_in_scikit_learn(name: str) -> None:
    """Fit, conversion and parity succeed, for two classes or a number; the artifact scores its own example again."""
    estimator = _spec(name)
    if name.rpartition(".")[2] in WITHOUT_PROBABILITIES:
        estimator = spec("calibration.CalibratedClassifierCV", estimator=estimator)
    label = REAL_LABEL if _is_regressor(name) else BOOL_LABEL
    fitted = fit(estimator, NUMBERS, label, ROWS, lambda _: None)
    assert fitted.conversion.parity_rows == ROWS.num_rows
    assert fitted.signature.inputs == NUMBERS
    conversion = fitted.conversion
    model = OnnxModel(conversion.artifact, fitted.signature, batch_invariant=conversion.batch_invariant)
    example = model.example()
    assert example is not None
    assert example.rows == EXAMPLE_ROWS_MAX
    assert model.scores_like(example)


def test_an_artifact_carries_rows_as_the_model_was_given_them() -> None:
    """Spread over the training data, with NaN for NULL, texts as they are and no label."""
    inputs = (Field("holes", DataType.FLOAT64), TEXT)
    encoder = by_column(
        ("text", _spec("sklearn.preprocessing.OrdinalEncoder"), ["s"]), ("rest", "passthrough", ["holes"])
    )
    fitted = fit(
        pipeline(("first", encoder), ("model", _spec("sklearn.ensemble.HistGradientBoostingClassifier"))),
        inputs,
        BOOL_LABEL,
        ROWS,
        lambda _: None,
    )
    example = OnnxModel(fitted.conversion.artifact, fitted.signature).example()
    assert example is not None
    rows = np.linspace(0, ROWS.num_rows - 1, EXAMPLE_ROWS_MAX).astype(int)
    assert set(example.inputs) == {"holes", "s"}
    assert example.inputs["s"].tolist() == np.array(ROWS["s"].to_pylist())[rows].tolist()
    holes = np.array(ROWS["holes"].to_numpy(), np.float32)[rows]
    assert np.isnan(holes).any()
    assert example.inputs["holes"].tobytes() == holes.tobytes()
    assert example.outputs.shape == (EXAMPLE_ROWS_MAX, 2)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_an_allowed_transformer_converts_before_a_model(name: str) -> None:
    """Also as the first step of a pipeline without a ColumnTransformer, and of columns selected by name."""
    short = name.rpartition(".")[2]
    if short in ENCODERS:
        parts = by_column(("text", _spec(name), ["s"]), ("numbers", "passthrough", ["a", "b", "c"]))
        estimators = [parts]
        inputs: tuple[Field, ...] = (*NUMBERS, TEXT)
    else:
        columns = ["holes", "b"] if short in IMPUTERS else ["a", "b", "c"]
        inputs = tuple(Field(c, DataType.INT64 if c == "b" else DataType.FLOAT64) for c in columns)
        estimators = [_spec(name), by_column(("part", _spec(name), columns))]
    for first in estimators:
        fitted = fit(pipeline(("first", first), ("model", LOGISTIC)), inputs, BOOL_LABEL, ROWS, lambda _: None)
        assert fitted.conversion.parity_rows > 0


def test_a_union_of_columns_selected_by_name_converts() -> None:
    union = spec(
        "pipeline.FeatureUnion",
        transformer_list=Listed(
            (
                ("numbers", by_column(("scale", spec("preprocessing.StandardScaler"), ["a", "b"]))),
                ("text", by_column(("encode", _spec("sklearn.preprocessing.OneHotEncoder"), ["s"]))),
            )
        ),
    )
    fitted = fit(pipeline(("all", union), ("model", LOGISTIC)), (*NUMBERS, TEXT), BOOL_LABEL, ROWS, lambda _: None)
    assert fitted.signature.classes is not None
    assert fitted.signature.classes.to_list() == [False, True]


def test_classes_keep_their_values_and_order() -> None:
    """Text labels come back from the artifact as themselves, ascending, one probability each."""
    label = Field("kind", DataType.STRING)
    fitted = fit(spec("ensemble.RandomForestClassifier", n_estimators=5), NUMBERS, label, ROWS, lambda _: None)
    assert fitted.signature.task is ModelTask.MULTICLASS_CLASSIFICATION
    assert fitted.signature.classes is not None
    assert fitted.signature.classes.to_list() == ["early", "late", "on time"]
    model = OnnxModel(fitted.conversion.artifact, fitted.signature)
    features = {f.name: Column.build(f.name, f.type, ROWS[f.name].to_pylist()) for f in NUMBERS}
    probabilities, labels = model.score(features)
    assert probabilities.values.shape == (ROWS.num_rows, 3)
    assert np.mean(np.array(labels.to_list()) == np.array(ROWS["kind"].to_pylist())) > 0.9


def test_a_random_training_repeats_to_the_byte() -> None:
    """random_state is 0 where none is given."""
    forest = spec("ensemble.RandomForestClassifier", n_estimators=5, n_jobs=-1)
    first, second = (fit(forest, NUMBERS, BOOL_LABEL, ROWS, lambda _: None) for _ in range(2))
    assert first.conversion.artifact == second.conversion.artifact


@pytest.mark.parametrize(
    ("estimator", "label", "invariant"),
    [
        (TREE, BOOL_LABEL, True),
        (LOGISTIC, BOOL_LABEL, True),
        (spec("neighbors.KNeighborsRegressor"), Field("delay", DataType.FLOAT64), False),
    ],
)
def test_a_row_scores_the_same_bits_in_any_batch(estimator: Any, label: Field, *, invariant: bool) -> None:
    """Nearest neighbours add up differently by place, which registration sees; scored as marked, nothing differs."""
    conversion = (fitted := fit(estimator, NUMBERS, label, ROWS, lambda _: None)).conversion
    assert conversion.batch_invariant is invariant
    model = OnnxModel(conversion.artifact, fitted.signature, batch_invariant=conversion.batch_invariant)
    inputs = {f.name: np.asarray(ROWS[f.name], np.float32)[:100] for f in NUMBERS}
    together = model.score_raw(inputs)
    for size in (1, 2, 7, 32):
        parts = [model.score_raw({k: v[i : i + size] for k, v in inputs.items()}) for i in range(0, 100, size)]
        assert np.concatenate(parts).tobytes() == together.tobytes()


@pytest.mark.parametrize(
    ("estimator", "label", "says"),
    [
        (spec("svm.LinearSVC"), BOOL_LABEL, "gives no probabilities"),
        (pipeline(("only", spec("preprocessing.StandardScaler"))), BOOL_LABEL, "neither a classifier nor"),
        (pipeline(("m", LOGISTIC), ("end", "passthrough")), BOOL_LABEL, "neither a classifier nor"),
        (spec("linear_model.LogisticRegression", C=-1.0), BOOL_LABEL, "'C' parameter"),
        (spec("linear_model.LogisticRegression", X=1), BOOL_LABEL, "no such parameter"),
        (spec("linear_model.LogisticRegression", C="os.system"), BOOL_LABEL, "'C' parameter"),
        (spec("ensemble.BaggingClassifier", estimator="os.system"), BOOL_LABEL, "estimator"),
        (
            spec("ensemble.HistGradientBoostingClassifier", categorical_features=Listed((1,))),
            *(BOOL_LABEL, "ONNX has no equal"),
        ),
    ],
)
def test_a_bad_pipeline_is_refused_before_fitting(estimator: Estimator, label: Field, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        fit(estimator, NUMBERS, label, ROWS, lambda _: None)


@pytest.mark.parametrize(
    ("estimator", "inputs", "label", "says"),
    [
        (RIDGE, NUMBERS, BOOL_LABEL, "the pipeline is a regressor"),
        (LOGISTIC, NUMBERS, REAL_LABEL, "the pipeline is a classifier"),
        (LOGISTIC, (*NUMBERS, TEXT), BOOL_LABEL, "cannot fit the pipeline: could not convert"),
        (LOGISTIC, (Field("holes", DataType.FLOAT64),), BOOL_LABEL, "NaN"),
        (
            pipeline(
                ("fill", spec("impute.SimpleImputer", add_indicator=True, strategy="median")), ("model", LOGISTIC)
            ),
            *((Field("holes", DataType.FLOAT64), NUMBERS[1]), BOOL_LABEL, "scores differently|cannot"),
        ),
        (spec("calibration.CalibratedClassifierCV", method="isotonic"), NUMBERS, BOOL_LABEL, "scores differently"),
    ],
)
def test_what_cannot_become_a_faithful_model_is_refused(
    estimator: Estimator, inputs: tuple[Field, ...], label: Field, says: str
) -> None:
    with pytest.raises(FailedPrecondition, match=says):
        fit(estimator, inputs, label, ROWS, lambda _: None)


@pytest.mark.parametrize("rows", [ROWS.slice(0, 0), ROWS.filter(ROWS["late"])])
def test_no_rows_and_one_class_are_refused(rows: pa.Table) -> None:
    with pytest.raises(FailedPrecondition, match=r"no rows|same label"):
        fit(LOGISTIC, NUMBERS, BOOL_LABEL, rows, lambda _: None)
