"""Expectations: rules that the rows of a group have to keep when they are written.

NULL fulfils every rule but `NotNull`.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

from foresight.values.columns import Column
from foresight.values.errors import InvalidValue
from foresight.values.fields import DataType, Field
from foresight.values.names import check_name

EXPECTATIONS_MAX = 256
VALUES_MAX = 1_000
FRESH_MAX = timedelta(days=36_525)


class FailurePolicy(enum.IntEnum):
    """What happens to rows that break an expectation; the numbers are those of the wire enum."""

    REJECT = 1
    QUARANTINE = 2


@dataclass(frozen=True, slots=True)
class Range:
    """An int64 or float64 lies between two numbers, both included; None: no bound on that side."""

    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.min, self.max) if bound is not None]
        if not bounds:
            raise InvalidValue("range", "has neither min nor max")
        if not all(map(math.isfinite, bounds)):
            raise InvalidValue("range", "has a bound that is NaN or infinite; leave it out instead")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise InvalidValue("range", "has a min above its max")


@dataclass(frozen=True, slots=True)
class OneOf:
    """An int64, bool or string is one of the values, 1 to VALUES_MAX of them."""

    values: Column

    def __post_init__(self) -> None:
        if not 1 <= len(self.values) <= VALUES_MAX:
            raise InvalidValue("one_of", f"has {len(self.values)} values, not 1 to {VALUES_MAX}")
        if self.values.valid is not None:
            raise InvalidValue("one_of", "has a NULL, which fulfils every rule but not_null anyway")


@dataclass(frozen=True, slots=True)
class NotNull:
    """A feature is not NULL."""


@dataclass(frozen=True, slots=True)
class Unique:
    """A value is different in every row of a write; every row that shares one breaks it."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """The event time is not older than `max_age` when the row is written; an age equal to it is still fresh."""

    max_age: timedelta

    def __post_init__(self) -> None:
        if not timedelta(0) < self.max_age <= FRESH_MAX:
            raise InvalidValue("fresh", "is not positive and at most 100 years")


Rule: TypeAlias = Range | OneOf | NotNull | Unique | Fresh
_TYPES: dict[type, tuple[DataType, ...]] = {
    Range: (DataType.INT64, DataType.FLOAT64),
    OneOf: (DataType.INT64, DataType.BOOL, DataType.STRING),
    NotNull: tuple(DataType),
    Unique: (DataType.INT64, DataType.FLOAT64, DataType.BOOL, DataType.STRING, DataType.TIMESTAMP),
}
_WORDS = {Range: "range", OneOf: "one_of", NotNull: "not_null", Unique: "unique", Fresh: "fresh"}


@dataclass(frozen=True, slots=True)
class Expectation:
    """A rule about a column, or (`Fresh`) about the event time. `name` '' becomes `<column>_<rule>`, or `fresh`."""

    rule: Rule
    column: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        word = _WORDS[type(self.rule)]
        if isinstance(self.rule, Fresh):
            if self.column:
                raise InvalidValue("column", "does not go with fresh, which is about the event time")
        else:
            check_name(self.column, "column", reserved=True)
        if not self.name:
            # Cut, for a column may have as many bytes as a name.
            made = f"{self.column[: 62 - len(word)]}_{word}" if self.column else word
            object.__setattr__(self, "name", made)
        check_name(self.name, "name")

    @property
    def rule_name(self) -> str:
        """The rule in a word, such as `not_null`."""
        return _WORDS[type(self.rule)]

    def check_fits(self, fields: dict[str, Field]) -> None:
        """Raises InvalidValue unless the column is among the group's `fields` and has a type that the rule takes."""
        if isinstance(self.rule, Fresh):
            return
        field = fields.get(self.column)
        if field is None:
            raise InvalidValue(f"expectations.{self.name}", f"is about {self.column}, which the group does not have")
        if field.type not in _TYPES[type(self.rule)]:
            raise InvalidValue(f"expectations.{self.name}", f"does not go with {field.type.value}")
        if isinstance(self.rule, OneOf) and self.rule.values.type is not field.type:
            raise InvalidValue(f"expectations.{self.name}", f"has values that are not {field.type.value}")
