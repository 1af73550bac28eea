"""Values that clients and services share: types, fields, columns, feature groups and feature views.

Everything here is plain Python and NumPy: no gRPC, no protobuf, no SQL. A value is valid once it is built;
its constructor raises `InvalidValue`, which names the field at fault.
"""

from foresight.values.columns import Column
from foresight.values.errors import ExpectationsBroken, InvalidValue, Violation
from foresight.values.expectations import Expectation, FailurePolicy, Fresh, NotNull, OneOf, Range, Unique
from foresight.values.features import (
    FeatureGroup,
    FeatureView,
    MissingPolicy,
    Transform,
    ViewFeature,
    ViewSource,
)
from foresight.values.fields import DataType, Field
from foresight.values.instants import instant_from_micros, micros_from_instant
from foresight.values.names import check_name
from foresight.values.statuses import FeatureStatus

__all__ = [
    "Column",
    "DataType",
    "Expectation",
    "ExpectationsBroken",
    "FailurePolicy",
    "FeatureGroup",
    "FeatureStatus",
    "FeatureView",
    "Field",
    "Fresh",
    "InvalidValue",
    "MissingPolicy",
    "NotNull",
    "OneOf",
    "Range",
    "Transform",
    "Unique",
    "ViewFeature",
    "ViewSource",
    "Violation",
    "check_name",
    "instant_from_micros",
    "micros_from_instant",
]
