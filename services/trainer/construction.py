"""From a specification to an unfitted scikit-learn object. Only the worker imports this module."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.linear_model import LogisticRegression
from sklearn.utils._param_validation import InvalidParameterError

from foresight.values import InvalidValue
from foresight.values.errors import quoted
from services.trainer.estimators import ALLOWED, FORCED_PARAMETERS, FORCED_VALUES
from services.trainer.specification import Estimator, Listed, Value, check


def build(specification: Estimator) -> Any:
    """The unfitted estimator; a random one that names no random_state gets 0, so that training repeats exactly.

    Raises InvalidValue for an unknown parameter, a value that the class refuses, and a pipeline that ends in
    something other than a regressor or a classifier with probabilities.
    """
    check(specification)
    estimator = _build(specification, "pipeline")
    forced: dict[str, Any] = {}
    for name, value in estimator.get_params(deep=True).items():
        leaf = name.rpartition("__")[2]
        if leaf == "random_state" and value is None:
            forced[name] = 0
        elif leaf in FORCED_PARAMETERS:
            forced[name] = FORCED_PARAMETERS[leaf]
        elif isinstance(value, str) and (leaf, value) in FORCED_VALUES:
            forced[name] = FORCED_VALUES[leaf, value]
    estimator.set_params(**forced)
    if not _is_kind(is_classifier, estimator) and not _is_kind(is_regressor, estimator):
        raise InvalidValue("pipeline", "ends in neither a classifier nor a regressor")
    if _is_kind(is_classifier, estimator) and not hasattr(estimator, "predict_proba"):
        raise InvalidValue(
            "pipeline", "ends in a classifier that gives no probabilities; CalibratedClassifierCV can wrap it"
        )
    return estimator


def _is_kind(test: Any, estimator: Any) -> bool:
    """`test` of a pipeline whose last step is a word raises instead of answering."""
    try:
        return bool(test(estimator))
    except (AttributeError, TypeError, ValueError):
        return False


def _build(specification: Estimator, path: str) -> Any:
    module, name = ALLOWED[specification.class_name]
    cls: type[BaseEstimator] = getattr(importlib.import_module(module), name)
    known = inspect.signature(cls).parameters
    arguments: dict[str, Any] = {}
    for parameter, value in specification.parameters:
        if parameter not in known:
            raise InvalidValue(f"{path}.{parameter}", f"{specification.class_name} has no such parameter")
        arguments[parameter] = _value(value, f"{path}.{parameter}")
    if name == "StackingClassifier" and arguments.get("final_estimator") is None:
        # What scikit-learn takes when it fits; it must be there before for us to see that it gives probabilities.
        arguments["final_estimator"] = LogisticRegression()
    try:
        estimator = cls(**arguments)
        # What fit would check first, now: before any data is read. FeatureUnion has nothing to check.
        if hasattr(cls, "_parameter_constraints"):
            estimator._validate_params()
    except InvalidParameterError as error:
        raise InvalidValue(path, _first_line(error)) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidValue(path, f"{specification.class_name} refuses its parameters: {_first_line(error)}") from None
    return estimator


def _value(value: Value, path: str) -> Any:
    match value:
        case Estimator():
            return _build(value, path)
        case Listed():
            return [_value(v, f"{path}[{i}]") for i, v in enumerate(value.values)]
        case tuple():
            return tuple(_value(v, f"{path}[{i}]") for i, v in enumerate(value))
    return value


def _first_line(error: Exception) -> str:
    return quoted((str(error).splitlines() or [type(error).__name__])[0], 300).strip("'\"")
