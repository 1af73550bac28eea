"""Metrics agree with scikit-learn's definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from foresight.scoring import ModelTask, Signature
from foresight.values import Column, DataType, Field
from services.trainer.measures import is_better, measure

LATE = Field("late", DataType.BOOL)
DELAY = Field("delay", DataType.FLOAT64)
BINARY = Signature(ModelTask.BINARY_CLASSIFICATION, (), LATE, Column.build("late", DataType.BOOL, [False, True]))
REGRESSION = Signature(ModelTask.REGRESSION, (), DELAY)
# Few distinct scores, so that ties happen.
SCORES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1, width=32)


@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_classification_metrics_are_scikit_learns(rows: list[tuple[float, bool]]) -> None:
    positive = np.array([score for score, _ in rows], np.float32)
    raw = np.column_stack([1 - positive, positive])
    truth = [label for _, label in rows]
    found = measure(BINARY, raw, Column.build("late", DataType.BOOL, truth))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, raw.argmax(axis=1) == 1))
    assert found["brier"] == pytest.approx(np.mean((positive.astype(float) - np.array(truth)) ** 2))
    expected = metrics.log_loss(truth, np.clip(raw, np.finfo(np.float32).eps, 1), labels=[False, True])
    assert found["log_loss"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    if len(set(truth)) == 2:
        assert found["roc_auc"] == pytest.approx(metrics.roc_auc_score(truth, positive))
    else:
        assert "roc_auc" not in found


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_regression_metrics_are_scikit_learns(rows: list[tuple[float, float]]) -> None:
    values, truth = np.array([v for v, _ in rows]), np.array([t for _, t in rows])
    found = measure(REGRESSION, values, Column.build("delay", DataType.FLOAT64, truth.tolist()))
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(truth, values))
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(truth, values))
    if "r2" in found:
        assert found["r2"] == pytest.approx(metrics.r2_score(truth, values), rel=1e-6, abs=1e-6)


def test_a_label_that_the_model_does_not_know_counts_as_wrong_and_leaves_log_loss_undefined() -> None:
    label = Field("kind", DataType.STRING)
    classes = Column.build("kind", DataType.STRING, ["a", "b", "c"])
    signature = Signature(ModelTask.MULTICLASS_CLASSIFICATION, (), label, classes)
    raw = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], np.float32)
    found = measure(signature, raw, Column.build("kind", DataType.STRING, ["a", "new"]))
    assert found == {"accuracy": 0.5}


def test_nothing_is_defined_without_rows_or_with_a_nan() -> None:
    none = Column.build("late", DataType.BOOL, [])
    assert measure(BINARY, np.zeros((0, 2), np.float32), none) == {}
    one = Column.build("late", DataType.BOOL, [True])
    assert measure(BINARY, np.full((1, 2), np.nan, np.float32), one) == {}


@pytest.mark.parametrize(
    ("metric", "challenger", "champion", "margin", "better"),
    [
        ("log_loss", 0.4, 0.5, 0.0, True),
        ("log_loss", 0.5, 0.5, 0.0, False),
        ("log_loss", 0.45, 0.5, 0.1, False),
        ("roc_auc", 0.7, 0.6, 0.0, True),
        ("roc_auc", 0.6, 0.6, 0.0, False),
    ],
)
def test_better_means_by_more_than_the_margin(
    metric: str, challenger: float, champion: float, margin: float, better: bool
) -> None:
    assert is_better(metric, challenger, champion, margin) is better
