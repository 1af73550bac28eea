"""Data types and fields."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from foresight.values.errors import InvalidValue
from foresight.values.names import check_name, check_text

VECTOR_DIMENSION_MAX = 4_096


class DataType(enum.Enum):
    """Type of a key, feature, request feature or label."""

    INT64 = "int64"
    FLOAT64 = "float64"
    BOOL = "bool"
    STRING = "string"
    TIMESTAMP = "timestamp"
    FLOAT_VECTOR = "float_vector"

    # Equal members are the same; Enum hashes their names, at ten times the cost.
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Field:
    """A named, typed field. `dimension` is the number of floats of a FLOAT_VECTOR, else 0."""

    name: str
    type: DataType
    dimension: int = 0
    description: str = ""

    def __post_init__(self) -> None:
        # Names are checked where a group or view is built: log-derived groups use reserved ones.
        check_name(self.name, "name", reserved=True)
        check_text(self.description, "description")
        if self.type is DataType.FLOAT_VECTOR:
            if not 1 <= self.dimension <= VECTOR_DIMENSION_MAX:
                raise InvalidValue("dimension", f"of {self.name} is not between 1 and {VECTOR_DIMENSION_MAX}")
        elif self.dimension != 0:
            raise InvalidValue("dimension", f"of {self.name} is only for float vectors")
