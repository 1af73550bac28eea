"""Metrics of predictions, in NumPy, with the definitions of scikit-learn 1.9 (whose import costs a second).

A metric that is not defined on the rows (ROC AUC of one class, anything of a NaN) is left out. Scores are float32,
so log loss clips probabilities at float32's epsilon, as scikit-learn does for float32 scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from foresight.scoring import ModelTask, Signature
from foresight.values import Column

LOWER_IS_BETTER = frozenset({"log_loss", "brier", "rmse", "mae"})
METRICS = LOWER_IS_BETTER | {"roc_auc", "accuracy", "r2"}


def measure(signature: Signature, raw: NDArray[Any], labels: Column) -> dict[str, float]:
    """Metrics of `OnnxModel.score_raw`'s result, (n, classes) or (n,), against n labels without NULL."""
    if signature.task is ModelTask.REGRESSION:
        found = _regression(raw.astype(np.float64), labels.values.astype(np.float64))
    else:
        found = _classification(raw, _codes(signature, labels), signature.task)
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def is_better(metric: str, challenger: float, champion: float, margin: float) -> bool:
    """Whether the challenger's value is better by more than the margin."""
    gain = champion - challenger if metric in LOWER_IS_BETTER else challenger - champion
    return gain > margin


def _codes(signature: Signature, labels: Column) -> NDArray[np.int64]:
    """Position of each label among the classes; -1 for one that the model does not know."""
    assert signature.classes is not None
    position = {value: i for i, value in enumerate(signature.classes.to_list())}
    return np.array([position.get(value, -1) for value in labels.values.tolist()], dtype=np.int64)


def _classification(raw: NDArray[Any], codes: NDArray[np.int64], task: ModelTask) -> dict[str, float]:
    if not len(codes) or np.isnan(raw).any():
        return {}
    found = {"accuracy": float((raw.argmax(axis=1) == codes).mean())}
    if (codes < 0).any():
        return found
    epsilon = np.finfo(np.float32).eps
    chosen = np.clip(raw.astype(np.float64), epsilon, 1 - epsilon)
    chosen /= chosen.sum(axis=1, keepdims=True)
    found["log_loss"] = float(-np.log(chosen[np.arange(len(codes)), codes]).mean())
    if task is ModelTask.BINARY_CLASSIFICATION:
        positive = raw[:, 1].astype(np.float64)
        found["brier"] = float(((positive - codes) ** 2).mean())
        found["roc_auc"] = _roc_auc(positive, codes)
    return found


def _roc_auc(scores: NDArray[np.float64], codes: NDArray[np.int64]) -> float:
    """Mann-Whitney U over the pairs; tied scores count half. NaN with one class only."""
    positives = int(codes.sum())
    negatives = len(codes) - positives
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[codes == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _regression(values: NDArray[np.float64], truth: NDArray[np.float64]) -> dict[str, float]:
    if not len(truth):
        return {}
    errors = values - truth
    found = {"rmse": float(np.sqrt((errors**2).mean())), "mae": float(np.abs(errors).mean())}
    spread = float(((truth - truth.mean()) ** 2).sum())
    if len(truth) > 1 and spread > 0:
        found["r2"] = float(1 - (errors**2).sum() / spread)
    return found
