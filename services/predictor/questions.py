"""Checks what a client asks against the view: every expected column once, of its type, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from foresight.values import Column, DataType, Field, InvalidValue, Violation
from services.predictor.plans import ViewPlan
from services.runtime.errors import OutOfRange

ROWS_MAX = 1_024
SKEW_MAX = timedelta(minutes=5)
# Beyond this an integer loses digits as a double.
INTEGER_MAX = 2**53
_NAME_SHOWN_MAX = 63


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """n rows, valid for the view: keys and request features in its order and of its types."""

    rows: int
    keys: tuple[Column, ...]
    request_features: tuple[Column, ...]
    event_time: datetime


def check_question(
    plan: ViewPlan, columns: Mapping[str, Column], event_time: datetime | None, now: datetime
) -> Question:
    """The question that the columns ask; `event_time` None means now.

    Raises InvalidValue with one violation per column at fault, and OutOfRange for an event time too far ahead.
    """
    faults: list[Violation] = []
    keys = [_checked(field, columns, faults) for field in plan.keys]
    request_features = [_checked(field, columns, faults) for field in plan.request_features]
    if len(columns) + len(faults) > len(keys) + len(request_features):
        expected = {f.name for f in (*plan.keys, *plan.request_features)}
        faults += [_fault(name, "is neither an entity key nor a request feature") for name in columns.keys() - expected]
    if faults:
        faults.sort(key=lambda fault: fault.field)
        raise InvalidValue(faults[0].field, faults[0].description, *faults[1:])
    rows = len(next(iter(columns.values())))
    if not 1 <= rows <= ROWS_MAX:
        raise InvalidValue("columns", f"have {rows} rows, not 1 to {ROWS_MAX:,}")
    if event_time is None:
        event_time = now
    elif event_time > now + SKEW_MAX:
        raise OutOfRange(f"the event time lies more than {SKEW_MAX.seconds // 60} minutes ahead", field="event_time")
    return Question(
        rows,
        tuple(c for c in keys if c is not None),
        tuple(c for c in request_features if c is not None),
        event_time,
    )


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
