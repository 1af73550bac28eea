"""Logged predictions and outcomes as rows of derived feature groups.

Per view version there is `log_predictions_<view>_v<version>` (key `prediction_id`; where it came from, entity keys,
the features as the model got them, the outputs) and `log_outcomes_<view>_v<version>` (key `prediction_id`, the
label; its event time is when the outcome was observed). Both are strict in event time: a log row is visible only to
times after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from foresight.tables import arrow_type
from foresight.values import Column, DataType, FeatureGroup, FeatureView, Field
from services.feature_store.groups import Reference

PREDICTIONS, OUTCOMES = "log_predictions", "log_outcomes"
PREDICTION_ID = "prediction_id"
SHADOW = "log_shadow"
DEGRADED = "log_degraded"
EXACT_FLOAT_MAX = 2**53
_ORIGIN = (
    Field("log_deployment", DataType.STRING),
    Field("log_model", DataType.STRING),
    Field("log_model_version", DataType.INT64),
    Field("log_caller", DataType.STRING),
    Field("log_served_at", DataType.TIMESTAMP),
    # Of deployments with one arm, and of rows from before there were several: as the defaults say.
    Field("log_arm", DataType.STRING),
    Field("log_arm_probability", DataType.FLOAT64),
    Field("log_arm_forced", DataType.BOOL),
    Field(SHADOW, DataType.BOOL),
    # Made without the feature store, as it did not answer.
    Field(DEGRADED, DataType.BOOL),
)
_DEFAULTS = {
    column.name: column
    for column in (
        Column.build("log_arm", DataType.STRING, [""]),
        Column.build("log_arm_probability", DataType.FLOAT64, [1.0]),
        Column.build("log_arm_forced", DataType.BOOL, [False]),
        Column.build(SHADOW, DataType.BOOL, [False]),
        Column.build(DEGRADED, DataType.BOOL, [False]),
    )
}
_EVENT_TIME = Field("event_time", DataType.TIMESTAMP)


@dataclass(frozen=True, slots=True)
class LoggedColumn:
    """Logged values: int, float, bool, str, microseconds, lists of floats; None for NULL."""

    field: Field
    values: list[Any]


@dataclass(frozen=True, slots=True)
class PredictionEntry:
    """One record of the log: predictions that share deployment, model and event time."""

    view: Reference
    prediction_ids: list[str]
    deployment: str
    model: str
    model_version: int
    caller: str
    event_time_us: int
    served_at_us: int
    columns: dict[str, LoggedColumn]
    outputs: dict[str, LoggedColumn]
    # '' where the deployment has one arm only, which everybody gets.
    arm: str = ""
    arm_probability: float = 1.0
    arm_forced: bool = False
    shadow: bool = False
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class OutcomeEntry:
    """An outcome that belongs to a logged prediction."""

    view: Reference
    prediction_id: str
    observed_at_us: int
    value: LoggedColumn


@dataclass(frozen=True, slots=True)
class LogPage:
    """A part of the log in its order; `cursor` is where it goes on and `head` its present end."""

    entries: list[PredictionEntry | OutcomeEntry]
    cursor: int
    head: int


class LogSource(Protocol):
    """The log, read by cursor. Nothing appears later below a cursor that was answered."""

    async def read(self, cursor: int, limit: int) -> LogPage:
        """At most `limit` entries after a cursor. Raises Unavailable."""
        ...


def group_name(kind: str, view: str, version: int) -> str:
    """Name of a derived group."""
    return f"{kind}_{view}_v{version}"


def view_of_group(group: FeatureGroup) -> Reference | None:
    """The view version whose log fills a group; None for a group that is not derived."""
    if not group.derived:
        return None
    kind = next(kind for kind in (PREDICTIONS, OUTCOMES) if group.name.startswith(f"{kind}_"))
    view, _, version = group.name.removeprefix(f"{kind}_").rpartition("_v")
    return Reference(view, int(version))


def predictions_group(
    view: FeatureView, entries: Iterable[PredictionEntry], existing: FeatureGroup | None
) -> FeatureGroup:
    """The group that can hold these predictions of a view version, beside those that the `existing` one holds."""
    before = existing.features if existing is not None else ()
    outputs = {f.name: f for f in before if f.name.startswith("prediction_")}
    for entry in entries:
        for column in entry.outputs.values():
            name = output_name(column.field, outputs)
            outputs[name] = Field(name, column.field.type, column.field.dimension)
    features = (*_ORIGIN, *view.entity_keys, *view.features, *outputs.values())
    return replace(_derived(PREDICTIONS, view, features), defaults=_DEFAULTS)


def outcomes_group(view: FeatureView) -> FeatureGroup:
    """The group that holds the outcomes of a view version's predictions."""
    return _derived(OUTCOMES, view, (view.label,))


def output_name(output: Field, known: dict[str, Field]) -> str:
    """Column of a model's output; models whose outputs of one name differ in type get columns of their own."""
    name = f"prediction_{output.name}"
    taken = known.get(name)
    clashes = name == PREDICTION_ID or (taken is not None and (taken.type, taken.dimension) != _shape(output))
    return f"{name}_{output.type.value}{output.dimension or ''}" if clashes else name


def prediction_rows(group: FeatureGroup, entries: Sequence[PredictionEntry]) -> pa.Table:
    """The rows of predictions, with all columns of the group; what an entry lacks is NULL."""
    known = {f.name: f for f in group.features}
    columns: dict[str, list[Any]] = {f.name: [] for f in (*group.entity_keys, _EVENT_TIME, *group.features)}
    for entry in entries:
        n = len(entry.prediction_ids)
        values: dict[str, list[Any]] = {
            PREDICTION_ID: entry.prediction_ids,
            "event_time": [entry.event_time_us] * n,
            "log_deployment": [entry.deployment] * n,
            "log_model": [entry.model] * n,
            "log_model_version": [entry.model_version] * n,
            "log_caller": [entry.caller] * n,
            "log_served_at": [entry.served_at_us] * n,
            "log_arm": [entry.arm] * n,
            "log_arm_probability": [entry.arm_probability] * n,
            "log_arm_forced": [entry.arm_forced] * n,
            SHADOW: [entry.shadow] * n,
            DEGRADED: [entry.degraded] * n,
        }
        for name, column in entry.columns.items():
            if name in known:
                values[name] = fitted(column, known[name])
        for column in entry.outputs.values():
            name = output_name(column.field, known)
            values[name] = fitted(column, known[name])
        for name, taken in columns.items():
            taken.extend(values.get(name) or [None] * n)
    return _table(group, columns)


def outcome_rows(group: FeatureGroup, entries: Sequence[OutcomeEntry]) -> list[pa.Table]:
    """The rows of outcomes that fit the label, in one table, or in more where a prediction's outcome was corrected at
    the same instant: rows of one commit never share key and event time, and the correction has to come later."""
    label = group.features[0]
    waves: list[dict[tuple[str, int], Any]] = []
    for entry in entries:
        (value,) = fitted(entry.value, label)
        if value is None:
            continue
        key = (entry.prediction_id, entry.observed_at_us)
        wave = next((i for i in range(len(waves) - 1, -1, -1) if key in waves[i]), -1) + 1
        if wave == len(waves):
            waves.append({})
        waves[wave][key] = value
    return [
        _table(
            group,
            {
                PREDICTION_ID: [prediction_id for prediction_id, _ in wave],
                "event_time": [observed_at for _, observed_at in wave],
                label.name: list(wave.values()),
            },
        )
        for wave in waves
    ]


def fitted(column: LoggedColumn, field: Field) -> list[Any]:
    """The values as those of a field: 0 and 1 and bools stand for each other, integers for floats when exact.

    What does not fit becomes NULL: one strange record must not stop the log.
    """
    if _shape(column.field) == (field.type, field.dimension):
        return column.values
    cast = _CASTS.get((column.field.type, field.type))
    return [None if cast is None or value is None else cast(value) for value in column.values]


def _exact_float(value: int) -> float | None:
    return float(value) if abs(value) <= EXACT_FLOAT_MAX else None


def _exact_bool(value: int | float) -> bool | None:
    return bool(value) if value in (0, 1) else None


def _exact_int(value: float) -> int | None:
    return int(value) if value.is_integer() and abs(value) <= EXACT_FLOAT_MAX else None


_CASTS: dict[tuple[DataType, DataType], Callable[[Any], Any]] = {
    (DataType.INT64, DataType.FLOAT64): _exact_float,
    (DataType.INT64, DataType.BOOL): _exact_bool,
    (DataType.FLOAT64, DataType.BOOL): _exact_bool,
    (DataType.FLOAT64, DataType.INT64): _exact_int,
    (DataType.BOOL, DataType.INT64): int,
    (DataType.BOOL, DataType.FLOAT64): float,
}


def _derived(kind: str, view: FeatureView, features: tuple[Field, ...]) -> FeatureGroup:
    return FeatureGroup(
        name=group_name(kind, view.name, view.version),
        entity_keys=(Field(PREDICTION_ID, DataType.STRING),),
        features=features,
        strict_event_time=True,
        description=f"Reingested from the log of {view.name} version {view.version}",
        derived=True,
    )


def _table(group: FeatureGroup, columns: dict[str, list[Any]]) -> pa.Table:
    fields = {f.name: f for f in (*group.entity_keys, _EVENT_TIME, *group.features)}
    return pa.table({name: pa.array(values, arrow_type(fields[name])) for name, values in columns.items()})


def _shape(field: Field) -> tuple[DataType, int]:
    return field.type, field.dimension
