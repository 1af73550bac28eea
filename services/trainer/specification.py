"""Estimator specifications: which scikit-learn object a client wants, as plain values.

A specification never names code: its classes are those of a closed table, its parameters plain values and further
specifications. Everything that can be judged without scikit-learn is judged here, so that a bad specification is
refused before any data is read; the worker checks the parameters against the classes themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from foresight.values import InvalidValue
from foresight.values.errors import quoted
from foresight.values.names import STRING_BYTES_MAX, check_text
from services.trainer.estimators import ALLOWED, REFUSED_PARAMETERS

DEPTH_MAX = 16
VALUES_MAX = 10_000
_PARAMETER = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}\Z")
_PIPELINE = "sklearn.pipeline.Pipeline"
_UNION = "sklearn.pipeline.FeatureUnion"
_COLUMNS = "sklearn.compose.ColumnTransformer"
# The parameter that holds named parts, per class that has one.
_PARTS = {
    _PIPELINE: "steps",
    _UNION: "transformer_list",
    _COLUMNS: "transformers",
    "sklearn.ensemble.VotingClassifier": "estimators",
    "sklearn.ensemble.VotingRegressor": "estimators",
    "sklearn.ensemble.StackingClassifier": "estimators",
    "sklearn.ensemble.StackingRegressor": "estimators",
}
# Words that stand for an estimator.
_WORDS = {
    _PIPELINE: ("passthrough",),
    _UNION: ("drop", "passthrough"),
    _COLUMNS: ("drop", "passthrough"),
}


@dataclass(frozen=True, slots=True)
class Listed:
    """A Python list; a tuple stays a tuple."""

    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Estimator:
    """An allowed class and its constructor parameters."""

    class_name: str
    parameters: tuple[tuple[str, Value], ...] = ()

    def get(self, name: str) -> Value:
        """The parameter's value, None when it is not given."""
        return dict(self.parameters).get(name)


Value: TypeAlias = "bool | int | float | str | Listed | tuple[Value, ...] | Estimator | None"


def check(estimator: Estimator, field: str = "pipeline") -> None:
    """Raises InvalidValue, naming the place, for classes not allowed, wrong shapes and too much of anything."""
    for count, (path, depth, value) in enumerate(_walk(estimator, field, 0), 1):
        if count > VALUES_MAX:
            raise InvalidValue(field, f"has more than {VALUES_MAX} values")
        if depth > DEPTH_MAX:
            raise InvalidValue(field, f"is nested more than {DEPTH_MAX} levels deep")
        if isinstance(value, str):
            check_text(value, path, STRING_BYTES_MAX)
        elif isinstance(value, Estimator):
            _check_estimator(value, path)


def columns_used(estimator: Estimator) -> list[str] | None:
    """The columns that a pipeline takes when it begins with a ColumnTransformer that drops the rest; else None."""
    while estimator.class_name == _PIPELINE:
        first = next(_parts(estimator), None)
        if first is None or not isinstance(first[1], Estimator):
            return None
        estimator = first[1]
    if estimator.class_name != _COLUMNS or estimator.get("remainder") not in (None, "drop"):
        return None
    used: dict[str, None] = {}
    for _, transformer, columns in _parts(estimator):
        if transformer != "drop" and isinstance(columns, Listed):
            used.update(dict.fromkeys(str(name) for name in columns.values))
    return list(used)


def selects_columns(estimator: Estimator) -> bool:
    """Whether the estimator itself takes its columns by name, so that it needs them one by one."""
    if estimator.class_name == _PIPELINE:
        first = next(_parts(estimator), None)
        return first is not None and isinstance(first[1], Estimator) and selects_columns(first[1])
    if estimator.class_name == _UNION:
        members = [m for _, m, *_ in _parts(estimator)]
        return bool(members) and all(isinstance(m, Estimator) and selects_columns(m) for m in members)
    return estimator.class_name == _COLUMNS


def to_json(value: Value) -> Any:
    """The value as JSON: floats as text (they may be NaN), lists, tuples and estimators tagged."""
    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return {"float": repr(value)}
        case Listed():
            return {"list": [to_json(v) for v in value.values]}
        case tuple():
            return {"tuple": [to_json(v) for v in value]}
        case Estimator():
            parameters = {name: to_json(v) for name, v in value.parameters}
            return {"class": value.class_name, "parameters": parameters}


def from_json(data: Any) -> Value:
    """The inverse of `to_json`."""
    if not isinstance(data, Mapping):
        plain: bool | int | str | None = data
        return plain
    if "float" in data:
        return float(data["float"])
    if "list" in data:
        return Listed(tuple(from_json(v) for v in data["list"]))
    if "tuple" in data:
        return tuple(from_json(v) for v in data["tuple"])
    return Estimator(data["class"], tuple((name, from_json(v)) for name, v in data["parameters"].items()))


def _walk(value: Value, path: str, depth: int) -> Iterator[tuple[str, int, Value]]:
    """Every value with its path and depth, parents first, without descending below the deepest level allowed."""
    yield path, depth, value
    if depth > DEPTH_MAX:
        return
    if isinstance(value, Estimator):
        for name, inner in value.parameters:
            yield from _walk(inner, f"{path}.{name}", depth + 1)
    elif isinstance(value, Listed | tuple):
        for i, inner in enumerate(value.values if isinstance(value, Listed) else value):
            yield from _walk(inner, f"{path}[{i}]", depth + 1)


def _check_estimator(estimator: Estimator, path: str) -> None:
    if estimator.class_name not in ALLOWED:
        raise InvalidValue(f"{path}.class_name", f"{quoted(estimator.class_name)} is not an estimator allowed here")
    seen: set[str] = set()
    for name, value in estimator.parameters:
        if not _PARAMETER.match(name):
            raise InvalidValue(path, f"{quoted(name)} is not the name of a parameter")
        if name in seen:
            raise InvalidValue(f"{path}.{name}", "is given twice")
        harmless, reason = REFUSED_PARAMETERS.get(name, ((value,), ""))
        if value not in harmless:
            raise InvalidValue(f"{path}.{name}", f"is not allowed: {reason}")
        seen.add(name)
    if estimator.class_name in _PARTS:
        _check_parts(estimator, path)


def _check_parts(estimator: Estimator, path: str) -> None:
    """Parts are (name, estimator), of a ColumnTransformer (name, estimator, [columns]); names are unique."""
    where = f"{path}.{_PARTS[estimator.class_name]}"
    size = 3 if estimator.class_name == _COLUMNS else 2
    words = _WORDS.get(estimator.class_name, ())
    parts = list(_parts(estimator))
    if not parts:
        raise InvalidValue(where, "is not a list with at least one part")
    names: set[str] = set()
    for part in parts:
        if len(part) != size or not isinstance(part[0], str):
            raise InvalidValue(where, f"has a part that is not a tuple of {size} that begins with a name")
        name, inner = part[0], part[1]
        if not name or "__" in name or name in names:
            raise InvalidValue(where, f"the name {quoted(name)} is empty, used twice or contains '__'")
        names.add(name)
        if not isinstance(inner, Estimator) and not (isinstance(inner, str) and inner in words):
            raise InvalidValue(f"{where}.{name}", "is not an estimator")
        if size == 3:
            columns = part[2]
            if not isinstance(columns, Listed) or not all(isinstance(c, str) for c in columns.values):
                raise InvalidValue(f"{where}.{name}", "takes columns that are not a list of names")


def _parts(estimator: Estimator) -> Iterator[tuple[Any, ...]]:
    value = estimator.get(_PARTS[estimator.class_name])
    for part in value.values if isinstance(value, Listed) else ():
        yield part if isinstance(part, tuple) else (part.values if isinstance(part, Listed) else ())
