"""Checks what a client asks against the view: every expected column once, of its type, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from foresight.values import Column, DataType, Field, InvalidValue, Violation
from services.predictor.plans import ViewPlan
from services.predictor.versions import ModelVersion
from services.runtime.errors import OutOfRange

ROWS_MAX = 1_024
SKEW_MAX = timedelta(minutes=5)
# Beyond this an integer loses digits as a double.
INTEGER_MAX = 2**53
_NAME_SHOWN_MAX = 63


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """n rows, valid for the view: keys and request features in its order and of its types.

    `given`: the caller gives what the model takes, in `request_features`, and nothing is looked up or transformed;
    `keys` then only say in the log whom it is about, and may be none.
    """

    rows: int
    keys: tuple[Column, ...]
    request_features: tuple[Column, ...]
    event_time: datetime
    given: bool = False


def check_question(
    plan: ViewPlan, columns: Mapping[str, Column], event_time: datetime | None, now: datetime
) -> Question:
    """The question that the columns ask; `event_time` None means now.

    Raises InvalidValue with one violation per column at fault, and OutOfRange for an event time too far ahead.
    """
    stranger = "neither an entity key nor a request feature"
    keys, request_features = _take(columns, plan.keys, plan.request_features, stranger)
    return Question(_rows_of(columns), keys, request_features, _time_of(event_time, now))


def check_given(
    plan: ViewPlan, version: ModelVersion, columns: Mapping[str, Column], event_time: datetime | None, now: datetime
) -> Question:
    """The question of columns that hold every feature that the model takes, and all entity keys or none of them.

    Raises as `check_question` does.
    """
    named = plan.keys if any(key.name in columns for key in plan.keys) else ()
    keys, features = _take(columns, named, version.inputs, "neither a feature that the model takes nor an entity key")
    return Question(_rows_of(columns), keys, features, _time_of(event_time, now), given=True)


def _take(
    columns: Mapping[str, Column], first: tuple[Field, ...], second: tuple[Field, ...], stranger: str
) -> tuple[tuple[Column, ...], tuple[Column, ...]]:
    """The columns of both lists of fields, which are all that there may be. Raises InvalidValue."""
    faults: list[Violation] = []
    taken = [[_checked(field, columns, faults) for field in fields] for fields in (first, second)]
    if len(columns) + len(faults) > len(first) + len(second):
        expected = {f.name for f in (*first, *second)}
        faults += [_fault(name, f"is {stranger}") for name in columns.keys() - expected]
    if faults:
        faults.sort(key=lambda fault: fault.field)
        raise InvalidValue(faults[0].field, faults[0].description, *faults[1:])
    return tuple(c for c in taken[0] if c is not None), tuple(c for c in taken[1] if c is not None)


def _rows_of(columns: Mapping[str, Column]) -> int:
    rows = len(next(iter(columns.values())))
    if not 1 <= rows <= ROWS_MAX:
        raise InvalidValue("columns", f"have {rows} rows, not 1 to {ROWS_MAX:,}")
    return rows


def _time_of(event_time: datetime | None, now: datetime) -> datetime:
    if event_time is None:
        return now
    if event_time > now + SKEW_MAX:
        raise OutOfRange(f"the event time lies more than {SKEW_MAX.seconds // 60} minutes ahead", field="event_time")
    return event_time


def _checked(field: Field, columns: Mapping[str, Column], faults: list[Violation]) -> Column | None:
    column = columns.get(field.name)
    if column is None:
        faults.append(_fault(field.name, "is missing"))
        return None
    if column.valid is not None and not column.valid.any():
        # A client that infers types from values cannot know the type of NULLs.
        return Column.nulls(field, len(column))
    if column.type is not field.type:
        if column.type is DataType.INT64 and field.type is DataType.FLOAT64:
            if not len(column) or -INTEGER_MAX <= column.values.min() <= column.values.max() <= INTEGER_MAX:
                return Column(field.name, field.type, column.values.astype(np.float64), column.valid)
            faults.append(_fault(field.name, "holds an integer beyond 2^53, which a float would change"))
        else:
            faults.append(_fault(field.name, f"is {column.type.value}, not {field.type.value}"))
        return None
    if field.type is DataType.FLOAT_VECTOR and column.values.shape[1] != field.dimension:
        faults.append(_fault(field.name, f"has vectors of {column.values.shape[1]}, not {field.dimension}"))
        return None
    return column


def _fault(name: str, description: str) -> Violation:
    # An unknown name is the client's own text: shown only as far as it is plain and short.
    shown = name[:_NAME_SHOWN_MAX] if name.isascii() and name.isprintable() else ascii(name)[:_NAME_SHOWN_MAX]
    return Violation(f"columns[{shown}]", description)
