"""Columns of Python values."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.values import Column, DataType, Field, InvalidValue, instant_from_micros, micros_from_instant
from foresight.values.instants import MICROS_MAX, MICROS_MIN
from tests.unit.values.columns import columns, same

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@given(columns())
def test_a_column_built_again_from_its_values_is_the_same(column: Column) -> None:
    again = Column.build(column.name, column.type, column.to_list(), column.field.dimension)
    assert same(column, again)
    assert len(column) == len(column.to_list())


@given(columns(rows=5), st.lists(st.integers(0, 4), max_size=8))
def test_taking_rows_takes_their_values_and_nulls(column: Column, rows: list[int]) -> None:
    taken = column.take(rows)
    assert taken.to_list() == [column.python(row) for row in rows]
    assert taken.renamed("other").equals(taken)


@given(columns(rows=5), st.lists(st.integers(0, 5), max_size=4))
def test_a_column_is_its_parts_joined(column: Column, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), 5]
    parts = [column.part(start, stop) for start, stop in itertools.pairwise(bounds)]
    assert same(Column.joined(parts), column)
    assert [value for part in parts for value in part.to_list()] == column.to_list()
    assert all(part.valid is None or not part.valid.all() for part in parts)


@given(columns(rows=3))
def test_columns_are_equal_only_when_nulls_and_bytes_agree(column: Column) -> None:
    assert column.equals(column.renamed("other"))
    assert not column.equals(column.take([0, 1]))
    nulls = Column.nulls(column.field, 3)
    assert column.equals(nulls) == (column.to_list() == [None] * 3)


@pytest.mark.parametrize(
    ("type", "value"),
    [
        (DataType.INT64, 2**63),
        (DataType.INT64, -(2**63) - 1),
        (DataType.INT64, True),
        (DataType.INT64, 1.0),
        (DataType.INT64, "1"),
        (DataType.FLOAT64, float("nan")),
        (DataType.FLOAT64, float("-inf")),
        (DataType.FLOAT64, 2**53 + 1),
        (DataType.FLOAT64, True),
        (DataType.FLOAT64, "1.0"),
        (DataType.BOOL, 1),
        (DataType.BOOL, "true"),
        (DataType.STRING, b"bytes"),
        (DataType.STRING, 1),
        (DataType.STRING, "a\0b"),
        (DataType.STRING, "e\u0301"),
        (DataType.STRING, "\ud800"),
        (DataType.STRING, "é" * 2_049),
        (DataType.TIMESTAMP, datetime(2026, 3, 1)),  # noqa: DTZ001 - naive on purpose
        (DataType.TIMESTAMP, MICROS_MAX + 1),
        (DataType.TIMESTAMP, MICROS_MIN - 1),
        (DataType.TIMESTAMP, True),
        (DataType.TIMESTAMP, "2026-03-01"),
        (DataType.TIMESTAMP, datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))),
        (DataType.FLOAT_VECTOR, [1.0]),
        (DataType.FLOAT_VECTOR, [1.0, float("nan")]),
        (DataType.FLOAT_VECTOR, [1.0, 1e300]),
        (DataType.FLOAT_VECTOR, ["a", "b"]),
        (DataType.FLOAT_VECTOR, [[1.0, 2.0]]),
        (DataType.FLOAT_VECTOR, [1.0, [2.0]]),
        (DataType.FLOAT_VECTOR, {"a": 1}),
    ],
)
def test_a_value_of_another_type_is_refused_by_the_columns_name(type: DataType, value: Any) -> None:
    with pytest.raises(InvalidValue) as refused:
        Column.build("wind", type, [value], dimension=2 if type is DataType.FLOAT_VECTOR else 0)
    assert refused.value.violations[0].field == "wind"
    assert len(refused.value.violations[0].description) < 150


@pytest.mark.parametrize(
    ("type", "value", "wanted"),
    [
        (DataType.INT64, np.int32(7), 7),
        (DataType.FLOAT64, 3, 3.0),
        (DataType.FLOAT64, np.float32(0.5), 0.5),
        (DataType.FLOAT64, 2**53, 2.0**53),
        (DataType.BOOL, np.bool_(True), True),
        (DataType.TIMESTAMP, NOON.astimezone(timezone(timedelta(hours=-5))), NOON),
        (DataType.TIMESTAMP, 0, datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_values_that_mean_the_same_are_taken(type: DataType, value: Any, wanted: Any) -> None:
    assert Column.build("x", type, [value]).to_list() == [wanted]


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=13, minutes=45))])))
def test_instants_keep_their_microseconds(instant: datetime) -> None:
    try:
        micros = micros_from_instant(instant)
    except InvalidValue:
        # Only what lies outside of the years 1 to 9999 in UTC.
        with pytest.raises(OverflowError):
            instant.astimezone(UTC)
        return
    assert instant_from_micros(micros) == instant
    assert instant_from_micros(micros).tzinfo is UTC


@pytest.mark.parametrize("micros", [MICROS_MIN - 1, MICROS_MAX + 1, 2**70])
def test_micros_outside_of_the_calendar_are_refused(micros: int) -> None:
    with pytest.raises(InvalidValue, match="observed_at"):
        instant_from_micros(micros, "observed_at")


@pytest.mark.parametrize(
    ("type", "dimension"),
    [(DataType.FLOAT_VECTOR, 0), (DataType.FLOAT_VECTOR, 4_097), (DataType.INT64, 1)],
)
def test_only_vectors_have_a_dimension(type: DataType, dimension: int) -> None:
    with pytest.raises(InvalidValue):
        Field("x", type, dimension)
