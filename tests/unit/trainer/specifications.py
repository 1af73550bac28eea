"""Short ways to write specifications in tests."""

from __future__ import annotations

from services.trainer.specification import Estimator, Listed, Value


def spec(class_name: str, **parameters: Value) -> Estimator:
    """`spec("linear_model.Ridge", alpha=1.0)`."""
    return Estimator(f"sklearn.{class_name}", tuple(parameters.items()))


def pipeline(*steps: tuple[str, Value]) -> Estimator:
    """A Pipeline of named steps."""
    return spec("pipeline.Pipeline", steps=Listed(steps))


def by_column(*parts: tuple[str, Value, list[str]]) -> Estimator:
    """A ColumnTransformer of (name, transformer, columns)."""
    return spec("compose.ColumnTransformer", transformers=Listed(tuple((n, t, Listed(tuple(c))) for n, t, c in parts)))


LOGISTIC = spec("linear_model.LogisticRegression")
RIDGE = spec("linear_model.Ridge")
