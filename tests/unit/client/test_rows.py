"""Rows of a prediction request: types follow from the values, missing is NULL, nothing is lost on the way."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.client.rows import encode_rows, encode_values
from foresight.values import Column, DataType, InvalidValue
from foresight.wire import decode_column

NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)
VALUES: dict[DataType, st.SearchStrategy[Any]] = {
    DataType.INT64: st.integers(-(2**63), 2**63 - 1),
    DataType.FLOAT64: st.floats(allow_nan=False, allow_infinity=False),
    DataType.BOOL: st.booleans(),
    DataType.STRING: st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=5),
    DataType.TIMESTAMP: st.datetimes(timezones=st.just(UTC)),
}
columns = st.sampled_from(list(VALUES)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.lists(st.none() | VALUES[kind], min_size=1, max_size=6))
)


def _decoded(rows: Any) -> dict[str, tuple[DataType, list[Any]]]:
    columns = [decode_column(message) for message in encode_rows(rows)]
    return {column.name: (column.type, column.to_list()) for column in columns}


@given(columns)
def test_values_arrive_with_their_type_and_their_nulls(column: tuple[DataType, list[Any]]) -> None:
    kind, values = column
    found = decode_column(encode_values("x", values))
    if all(value is None for value in values):
        kind = DataType.FLOAT64
    assert found.equals(Column.build("x", kind, values))


def test_every_way_to_give_rows_gives_the_same_columns() -> None:
    rows = [{"origin": "JFK", "hour": 17, "wind": 1.5}, {"origin": "LGA", "hour": 18, "wind": None}]
    expected = {
        "origin": (DataType.STRING, ["JFK", "LGA"]),
        "hour": (DataType.INT64, [17, 18]),
        "wind": (DataType.FLOAT64, [1.5, None]),
    }
    assert _decoded(rows) == expected
    assert _decoded({name: [row[name] for row in rows] for name in rows[0]}) == expected
    assert _decoded({name: np.array([row[name] for row in rows]) for name in ("origin", "hour")}) == {
        name: expected[name] for name in ("origin", "hour")
    }
    assert _decoded(pd.DataFrame(rows)) == expected
    assert _decoded(pl.DataFrame(rows)) == expected
    assert _decoded(pl.DataFrame(rows).to_arrow()) == expected


def test_a_dict_of_scalars_is_one_row() -> None:
    assert _decoded({"origin": "JFK", "hour": 17}) == {
        "origin": (DataType.STRING, ["JFK"]),
        "hour": (DataType.INT64, [17]),
    }


def test_a_field_that_only_some_rows_have_is_null_in_the_others() -> None:
    assert _decoded([{"a": 1}, {"b": "x"}]) == {
        "a": (DataType.INT64, [1, None]),
        "b": (DataType.STRING, [None, "x"]),
    }


@pytest.mark.parametrize("missing", [None, float("nan"), np.float64("nan"), pd.NA, pd.NaT])
def test_whatever_stands_for_missing_is_null(missing: Any) -> None:
    assert _decoded([{"x": "a"}, {"x": missing}]) == {"x": (DataType.STRING, ["a", None])}
    assert _decoded({"x": missing}) == {"x": (DataType.FLOAT64, [None])}


def test_numpy_values_pandas_instants_and_vectors_are_taken() -> None:
    row = {"i": np.int32(3), "f": np.float32(0.5), "b": np.bool_(True), "s": np.str_("x"), "t": pd.Timestamp(NOON)}
    assert _decoded([{**row, "v": np.array([1.0, 2.0])}]) == {
        "i": (DataType.INT64, [3]),
        "f": (DataType.FLOAT64, [0.5]),
        "b": (DataType.BOOL, [True]),
        "s": (DataType.STRING, ["x"]),
        "t": (DataType.TIMESTAMP, [NOON]),
        "v": (DataType.FLOAT_VECTOR, [[1.0, 2.0]]),
    }


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ([{"x": 1}, {"x": "a"}], "x"),
        ([{"x": True}, {"x": 1}], "x"),
        ([{"x": 2**63}], "x"),
        ([{"x": NOON.replace(tzinfo=None)}], "x"),
        ([{"x": [1.0]}, {"x": [1.0, 2.0]}], "x"),
        ([{"x": object()}], "x"),
        (pd.DataFrame({"x": pd.to_datetime(["2013-03-01"])}), "x"),
        ([], "rows"),
        ("text", "rows"),
        (17, "rows"),
    ],
)
def test_what_makes_no_column_is_refused_by_name(rows: Any, field: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        encode_rows(rows)
    assert caught.value.violations[0].field == field
