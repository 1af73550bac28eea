"""Tables in and out: every kind of frame gives the same Arrow table, and nothing is guessed."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.client.errors import DataLoss
from foresight.client.frames import EVENT_TIME, from_table, read_table, to_table
from foresight.tables import arrow_type, encode_table
from foresight.values import DataType, Field, InvalidValue

FIELDS = (
    Field("key", DataType.STRING),
    EVENT_TIME,
    Field("count", DataType.INT64),
    Field("ratio", DataType.FLOAT64),
    Field("flag", DataType.BOOL),
    Field("vector", DataType.FLOAT_VECTOR, 2),
)
SCHEMA = pa.schema([(field.name, arrow_type(field)) for field in FIELDS])
NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)
NAIVE = NOON.replace(tzinfo=None)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
zones = st.integers(-14, 14).map(lambda hours: timezone(timedelta(hours=hours)))
# pandas keeps nanoseconds in 64 bits for the instants of one column.
instants = st.integers(-(2**52), 2**52).flatmap(
    lambda micros: zones.map(lambda zone: (EPOCH + timedelta(microseconds=micros)).astimezone(zone))
)
floats = st.floats(allow_nan=False, allow_infinity=False)
halves = st.integers(-1000, 1000).map(lambda n: n / 2)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "key": st.text(max_size=5),
            "event_time": instants,
            "count": st.none() | st.integers(-(2**63), 2**63 - 1),
            "ratio": st.none() | floats,
            "flag": st.none() | st.booleans(),
            "vector": st.none() | st.tuples(halves, halves).map(list),
        }
    ),
    max_size=6,
)


def _frames(data: list[dict[str, Any]]) -> dict[str, Any]:
    columns = {field.name: [row[field.name] for row in data] for field in FIELDS}
    times = pd.Series([pd.Timestamp(t) for t in columns["event_time"]], dtype=object)
    nullable = {
        "count": pd.array(columns["count"], "Int64"),
        "ratio": pd.array([np.nan if v is None else v for v in columns["ratio"]], "float64"),
        "flag": pd.array(columns["flag"], "boolean"),
    }
    return {
        "dicts": data,
        "columns": columns,
        "pandas objects": pd.DataFrame({n: pd.Series(v, dtype=object) for n, v in columns.items()}),
        "pandas": pd.DataFrame(
            {
                "key": pd.Series(columns["key"], dtype="str"),
                "event_time": pd.to_datetime(times, utc=True),
                **nullable,
                "vector": pd.Series(columns["vector"], dtype=object),
            }
        ),
        "polars": pl.DataFrame(
            [
                pl.Series("key", columns["key"], dtype=pl.Categorical),
                pl.Series("event_time", [t.astimezone(UTC) for t in columns["event_time"]], pl.Datetime("us", "UTC")),
                pl.Series("count", columns["count"], dtype=pl.Int64),
                pl.Series("ratio", columns["ratio"], dtype=pl.Float64),
                pl.Series("flag", columns["flag"], dtype=pl.Boolean),
                pl.Series("vector", columns["vector"], dtype=pl.List(pl.Float64)),
            ]
        ),
    }


@given(rows)
def test_every_kind_of_frame_gives_the_same_table(data: list[dict[str, Any]]) -> None:
    expected = pa.Table.from_pylist([{**row, "event_time": row["event_time"].astimezone(UTC)} for row in data], SCHEMA)
    for name, frame in _frames(data).items():
        assert to_table(frame, FIELDS).select(SCHEMA.names).equals(expected), name


@given(rows)
def test_a_table_survives_each_kind_of_output(data: list[dict[str, Any]]) -> None:
    """Also 64-bit integers beside NULLs, which a float column of pandas would round."""
    table = to_table(data, FIELDS)
    assert to_table(from_table(table, "pandas"), FIELDS).equals(table)
    assert to_table(from_table(table, "polars"), FIELDS).equals(table)
    assert from_table(table, "arrow") is table


@given(rows)
def test_a_table_survives_the_chunks_of_a_download(data: list[dict[str, Any]]) -> None:
    table = to_table(data, FIELDS)
    assert read_table(encode_table(table)).equals(table)
    whole = b"".join(encode_table(table))
    assert read_table(bytes([byte]) for byte in whole).equals(table)


def test_a_download_that_was_cut_short_is_data_loss() -> None:
    whole = b"".join(encode_table(pa.table({"a": list(range(1000))})))
    with pytest.raises(DataLoss):
        read_table([whole[:2000]])
    with pytest.raises(DataLoss):
        read_table([])


def test_a_download_says_how_many_rows_have_come() -> None:
    heard: list[tuple[str, int]] = []
    table = pa.table({"a": list(range(150_000))})
    read_table(encode_table(table), lambda stage, count: heard.append((stage, count)))
    assert [stage for stage, _ in heard] == ["downloading"] * len(heard)
    assert heard[-1] == ("downloading", 150_000)
    assert len(heard) > 1


def test_nan_nat_and_na_are_null() -> None:
    frame = pd.DataFrame(
        {
            "ratio": [1.5, np.nan],
            "count": [3, np.nan],
            "key": ["a", None],
            "event_time": pd.Series([pd.Timestamp(NOON), pd.NaT]),
            "flag": pd.array([True, None], "boolean"),
        }
    )
    table = to_table(frame, FIELDS)
    assert table.to_pylist() == [
        {"ratio": 1.5, "count": 3, "key": "a", "event_time": NOON, "flag": True},
        {"ratio": None, "count": None, "key": None, "event_time": None, "flag": None},
    ]


def test_a_column_of_nulls_is_of_any_type() -> None:
    """pandas makes floats of a column without any value."""
    frame = pd.DataFrame({"key": [np.nan], "count": [None], "event_time": [pd.NaT], "other": [None]})
    table = to_table(frame, FIELDS)
    assert [str(kind) for kind in table.schema.types] == ["string", "int64", "timestamp[us, tz=UTC]", "double"]


def test_no_rows_still_have_their_columns() -> None:
    assert to_table([], FIELDS).schema == SCHEMA


@pytest.mark.parametrize(
    "times",
    [
        [NAIVE],
        [NOON, NAIVE],
        [NAIVE, NOON],
        pd.to_datetime(["2013-03-01"]),
        pd.Series([NOON, NAIVE], dtype=object),
        pl.Series([NAIVE]),
        [date(2013, 3, 1)],
        ["2013-03-01T00:00:00Z"],
    ],
)
def test_an_instant_without_a_zone_is_refused_never_guessed(times: Any) -> None:
    with pytest.raises(InvalidValue, match="event_time: "):
        to_table({"event_time": times}, FIELDS)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("count", [1.5], "fractions"),
        ("count", ["1"], "the data has texts"),
        ("count", [True], "the data has bools"),
        ("count", [2**64], "64 bits"),
        ("count", np.array([2**63], np.uint64), "64 bits"),
        ("count", [1, "a"], "do not make one column"),
        ("ratio", [2**53 + 1], "lose digits"),
        ("ratio", [Decimal("1.5")], "decimal"),
        ("key", [1], "the data has integers"),
        ("flag", [1], "the data has integers"),
        ("vector", [[1.0, 2.0, 3.0]], "3 numbers, not 2"),
        ("other", np.ones((2, 2)), "shape"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_column(name: str, values: Any, says: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        to_table({name: values}, FIELDS)
    [violation] = caught.value.violations
    assert violation.field == name
    assert says in violation.description


def test_an_unknown_column_keeps_its_own_type() -> None:
    table = to_table(pl.DataFrame({"x": pl.Series(["a"], dtype=pl.Categorical), "n": pl.Series([1], dtype=pl.Int8)}))
    assert table.schema == pa.schema([("x", pa.string()), ("n", pa.int64())])


def test_columns_of_different_lengths_and_names_given_twice_are_refused() -> None:
    with pytest.raises(InvalidValue, match="different lengths"):
        to_table({"a": [1], "b": [1, 2]})
    with pytest.raises(InvalidValue, match="name of two columns"):
        to_table(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(InvalidValue, match="names are texts"):
        to_table(pd.DataFrame([[1, 2]]))
    with pytest.raises(InvalidValue, match="data: is a int"):
        to_table(3)


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(InvalidValue, match="output"):
        from_table(pa.table({"a": [1]}), "excel")  # type: ignore[arg-type]
