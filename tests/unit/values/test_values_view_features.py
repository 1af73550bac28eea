"""What a view says of a feature: its default is a plain value, or a column that holds one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from foresight.values import Column, DataType, InvalidValue, MissingPolicy, ViewFeature


@pytest.mark.parametrize(
    ("value", "type"),
    [
        (3, DataType.INT64),
        (np.int64(3), DataType.INT64),
        (1.5, DataType.FLOAT64),
        (True, DataType.BOOL),
        ("other", DataType.STRING),
        (datetime(2026, 3, 1, tzinfo=UTC), DataType.TIMESTAMP),
    ],
)
def test_a_default_is_written_as_a_plain_value(value: Any, type: DataType) -> None:
    feature = ViewFeature("wind", missing=MissingPolicy.DEFAULT, default=value)
    assert feature.default is not None
    assert feature.default.equals(Column.build("wind", type, [value]))


def test_a_vector_is_a_default() -> None:
    feature = ViewFeature("place", missing=MissingPolicy.DEFAULT, default=[1.0, 2.0])
    assert feature.default is not None
    assert feature.default.equals(Column.build("place", DataType.FLOAT_VECTOR, [[1.0, 2.0]], 2))


def test_a_column_is_taken_as_it_is() -> None:
    column = Column.build("wind", DataType.FLOAT64, [2])
    feature = ViewFeature("wind", missing=MissingPolicy.DEFAULT, default=column)
    assert feature.default is column
    assert replace(feature, name="gusts").default is column


@pytest.mark.parametrize("value", [object(), b"bytes", {"a": 1}, [[1.0]], ["a"], float("nan"), 2**63])
def test_what_no_feature_can_be_is_no_default(value: Any) -> None:
    with pytest.raises(InvalidValue, match="wind"):
        ViewFeature("wind", missing=MissingPolicy.DEFAULT, default=value)


def test_a_default_is_exactly_one_value() -> None:
    with pytest.raises(InvalidValue, match="is not one value"):
        ViewFeature("wind", missing=MissingPolicy.DEFAULT, default=Column.build("wind", DataType.FLOAT64, [1, 2]))
