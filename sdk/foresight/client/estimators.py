"""Unfitted scikit-learn estimators as specifications: a class name and plain parameters, never code or pickle.

    spec = specify(make_pipeline(StandardScaler(), LogisticRegression(C=0.5)))
    spec.class_name   # 'sklearn.pipeline.Pipeline'

Only parameters that differ from the defaults of the class travel. What has no plain form (functions, classes,
arrays, random generators, dicts, fitted estimators) is refused with the name of the parameter.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from foresight.trainer.v1 import training_pb2
from foresight.values import InvalidValue

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class Estimator:
    """An unfitted estimator: public class name and constructor parameters that are not the defaults.

    A parameter is None, bool, int, float, str, another Estimator, or a list or tuple of these.
    """

    class_name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))


def specify(estimator: Any, where: str = "pipeline") -> Estimator:
    """The specification of an unfitted scikit-learn estimator (or of one that is a specification already).

    Raises InvalidValue, naming the parameter, for what cannot be sent.
    """
    if isinstance(estimator, Estimator):
        return Estimator(estimator.class_name, {n: _plain(v, f"{where}.{n}") for n, v in estimator.parameters.items()})
    if isinstance(estimator, type):
        raise InvalidValue(where, f"is the class {estimator.__name__}; give an instance: {estimator.__name__}()")
    if not _is_estimator(estimator):
        raise InvalidValue(where, f"is of type {type(estimator).__name__}, not a scikit-learn estimator")
    if any(name.endswith("_") and not name.startswith("_") for name in vars(estimator)):
        raise InvalidValue(
            where, "is fitted, and fitting happens in the trainer; pass sklearn.base.clone(...) of it instead"
        )
    defaults = _defaults(type(estimator))
    parameters = {
        name: _plain(value, f"{where}.{name}")
        for name, value in estimator.get_params(deep=False).items()
        if name not in defaults or not _same(value, defaults[name])
    }
    return Estimator(public_name(type(estimator)), parameters)


def public_name(kind: type) -> str:
    """The name under which a class is imported, e.g. `sklearn.linear_model.LogisticRegression`."""
    public: list[str] = []
    for part in kind.__module__.split("."):
        if part.startswith("_"):
            break
        public.append(part)
    module = ".".join(public)
    if module and getattr(importlib.import_module(module), kind.__name__, None) is kind:
        return f"{module}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def encode_estimator(spec: Estimator) -> training_pb2.Estimator:
    """The message of a specification."""
    return training_pb2.Estimator(
        class_name=spec.class_name,
        parameters=[training_pb2.Parameter(name=n, value=_encode(v)) for n, v in spec.parameters.items()],
    )


def decode_estimator(message: training_pb2.Estimator) -> Estimator:
    """The specification of a message."""
    return Estimator(message.class_name, {p.name: _decode(p.value) for p in message.parameters})


def _is_estimator(value: Any) -> bool:
    return hasattr(value, "get_params") and hasattr(value, "fit") and not isinstance(value, type)


def _defaults(kind: type) -> dict[str, Any]:
    parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _same(value: Any, default: Any) -> bool:
    """Whether a parameter is its default; 1, 1.0 and True differ."""
    if value is default:
        return True
    if type(value) is not type(default) or not isinstance(value, bool | int | float | str | list | tuple):
        return False
    if isinstance(value, float) and math.isnan(value):
        return math.isnan(default)
    if isinstance(value, list | tuple):
        return len(value) == len(default) and all(map(_same, value, default))
    return bool(value == default)


def _plain(value: Any, where: str) -> Any:
    """The value with NumPy scalars as Python's and estimators as specifications. Raises InvalidValue."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        if not _INT64_MIN <= value <= _INT64_MAX:
            raise InvalidValue(where, "does not fit into 64 bits")
        return value
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Estimator) or _is_estimator(value):
        return specify(value, where)
    raise InvalidValue(where, f"is {_described(value)}, which cannot be sent to the trainer{_hint(value)}")


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value):
        return f"the function {getattr(value, '__name__', type(value).__name__)}"
    return f"a {type(value).__name__}"


def _hint(value: Any) -> str:
    if callable(value):
        return "; compute it in a feature pipeline or an on-demand transform instead"
    if hasattr(value, "tolist"):
        return "; pass a list"
    return "; only None, bool, int, float, str, lists, tuples and estimators can"


def _encode(value: Any) -> training_pb2.ParameterValue:
    match value:
        case None:
            return training_pb2.ParameterValue(null_value=True)
        case bool():
            return training_pb2.ParameterValue(bool_value=value)
        case int():
            return training_pb2.ParameterValue(int_value=value)
        case float():
            return training_pb2.ParameterValue(float_value=value)
        case str():
            return training_pb2.ParameterValue(string_value=value)
        case Estimator():
            return training_pb2.ParameterValue(estimator_value=encode_estimator(value))
    items = training_pb2.ParameterList(values=[_encode(item) for item in value])
    if isinstance(value, list):
        return training_pb2.ParameterValue(list_value=items)
    return training_pb2.ParameterValue(tuple_value=items)


def _decode(message: training_pb2.ParameterValue) -> Any:
    arm = message.WhichOneof("value")
    match arm:
        case None | "null_value":
            return None
        case "estimator_value":
            return decode_estimator(message.estimator_value)
        case "list_value":
            return [_decode(item) for item in message.list_value.values]
        case "tuple_value":
            return tuple(_decode(item) for item in message.tuple_value.values)
    return getattr(message, arm)
