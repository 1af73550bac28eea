"""Rows of JSON as columns: the same bits that typed columns have, and a clear refusal of everything else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from hypothesis import given
from hypothesis import strategies as st

from foresight.values import Column, DataType, Field, InvalidValue
from services.predictor.struct_codec import FAULTS_MAX, FIELDS_MAX, decode_rows, encode_rows

DIMENSION = 3
FIELDS = (
    Field("count", DataType.INT64),
    Field("ratio", DataType.FLOAT64),
    Field("flag", DataType.BOOL),
    Field("text", DataType.STRING),
    Field("at", DataType.TIMESTAMP),
    Field("vector", DataType.FLOAT_VECTOR, DIMENSION),
)
RIGHT: dict[str, Any] = {
    "count": 7,
    "ratio": 0.5,
    "flag": True,
    "text": "a",
    "at": "2026-03-01T12:00:00Z",
    "vector": [1, 2.5, -3],
}


def struct(values: dict[str, Any]) -> Struct:
    """The row of values; a message stands for itself."""
    message = Struct()
    for name, value in values.items():
        if isinstance(value, Value):
            message.fields[name].CopyFrom(value)
        else:
            message.update({name: value})
    return message


def decoded(**changes: Any) -> dict[str, Column]:
    return decode_rows([struct(RIGHT | changes)], FIELDS)


def faults(rows: list[Struct]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidValue) as caught:
        decode_rows(rows, FIELDS)
    return [(v.field, v.description) for v in caught.value.violations]


# What a caller may mean by a value of each type, and the way in which JSON says it.
instants = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001 - made aware
texts = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=20).map(
    lambda text: "".join(c for c in text if c.isascii())
)
VALUES: dict[str, Any] = {
    "count": st.integers(-(2**63), 2**63 - 1).map(lambda n: (n, n if abs(n) < 2**53 else str(n)))
    | st.integers(-(2**63), 2**63 - 1).map(lambda n: (n, str(n))),
    "ratio": st.floats(allow_nan=False, allow_infinity=False).map(lambda x: (x, x)),
    "flag": st.booleans().map(lambda b: (b, b)),
    "text": texts.map(lambda t: (t, t)),
    "at": st.tuples(instants, st.integers(-14 * 60, 14 * 60)).map(
        lambda pair: (pair[0], pair[0].astimezone(timezone(timedelta(minutes=pair[1]))).isoformat())
    ),
    "vector": st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3).map(
        lambda v: (v, v)
    ),
}
MEANT_AND_SAID = st.fixed_dictionaries({name: st.none().map(lambda _: (None, None)) | v for name, v in VALUES.items()})


@given(st.lists(MEANT_AND_SAID, min_size=1, max_size=5))
def test_rows_give_the_columns_that_their_values_give(rows: list[dict[str, tuple[Any, Any]]]) -> None:
    """To the bit, NULLs among them."""
    found = decode_rows([struct({name: said for name, (_, said) in row.items()}) for row in rows], FIELDS)
    assert list(found) == [field.name for field in FIELDS]
    for field in FIELDS:
        column = Column.build(field.name, field.type, [row[field.name][0] for row in rows], field.dimension)
        assert found[field.name].equals(column)
        assert found[field.name].values.dtype == column.values.dtype
        assert found[field.name].values.tolist() == column.values.tolist()
        assert (found[field.name].valid is None) == (column.valid is None)


@given(st.lists(MEANT_AND_SAID, min_size=1, max_size=5))
def test_columns_come_back_as_the_rows_that_give_them(rows: list[dict[str, tuple[Any, Any]]]) -> None:
    """What an answer says can be asked again."""
    columns = [
        Column.build(f.name, f.type, [row[f.name][0] for row in rows], f.dimension) for f in FIELDS if f.name != "at"
    ]
    again = decode_rows(encode_rows(columns, len(rows)), [c.field for c in columns])
    assert all(again[column.name].equals(column) for column in columns)


@given(instants)
def test_an_instant_is_answered_as_rfc_3339(instant: datetime) -> None:
    """In UTC, to the microsecond."""
    field = Field("at", DataType.TIMESTAMP)
    [row] = encode_rows([Column.build("at", field.type, [instant])], 1)
    assert row.fields["at"].string_value.endswith("Z")
    assert decode_rows([row], [field])["at"].to_list() == [instant]


WRONG: dict[str, tuple[str, Any, str]] = {
    "a fraction": ("count", 1.5, "fraction"),
    "what 2^53 + 1 becomes": ("count", float(2**53 + 1), "decimal string"),
    "what -2^53 - 1 becomes": ("count", float(-(2**53) - 1), "decimal string"),
    "a huge integer": ("count", 1e300, "decimal string"),
    "NaN as an integer": ("count", float("nan"), "NaN"),
    "an infinite integer": ("count", float("-inf"), "NaN"),
    "a text that is no integer": ("count", "7.0", "decimal integer"),
    "an empty text": ("count", "", "decimal integer"),
    "a plus": ("count", "+7", "decimal integer"),
    "a leading zero": ("count", "07", "decimal integer"),
    "a minus zero": ("count", "-0", "decimal integer"),
    "digits of another script": ("count", "\u0667", "decimal integer"),
    "a line after the digits": ("count", "7\n", "decimal integer"),
    "an underscore": ("count", "1_000", "decimal integer"),
    "2^63": ("count", str(2**63), "64 bits"),
    "a million digits": ("count", "1" * 1_000_000, "decimal integer"),
    "a bool for an integer": ("count", True, "is a bool, not an integer or a decimal string"),
    "an object": ("count", {"a": {"b": [1]}}, "is an object"),
    "a list for a number": ("ratio", [1.0], "is a list, not a number"),
    "a text for a number": ("ratio", "0.5", "is a text, not a number"),
    "NaN": ("ratio", float("nan"), "NaN"),
    "an infinity": ("ratio", float("inf"), "NaN"),
    "a number for a bool": ("flag", 1, "is a number, not a bool"),
    "a text for a bool": ("flag", "true", "is a text"),
    "a number for a text": ("text", 5, "is a number, not a text"),
    "a NUL": ("text", "a\0b", "NUL"),
    "not NFC": ("text", "e\u0301", "normal form C"),
    "a long text": ("text", "x" * 4_097, "longer"),
    "a naive instant": ("at", "2026-03-01T12:00:00", "RFC 3339"),
    "a date": ("at", "2026-03-01", "RFC 3339"),
    "a week": ("at", "2026-W09-7T12:00:00Z", "RFC 3339"),
    "a second month of 30 days": ("at", "2026-02-30T12:00:00Z", "exists"),
    "a leap second": ("at", "2026-12-31T23:59:60Z", "exists"),
    "a nanosecond": ("at", "2026-03-01T12:00:00.000000001Z", "RFC 3339"),
    "the year 0": ("at", "0000-01-01T00:00:00Z", "exists"),
    "the year 10000": ("at", "10000-01-01T00:00:00Z", "RFC 3339"),
    "beyond the year 9999": ("at", "9999-12-31T23:59:59-01:00", "years"),
    "before the year 1": ("at", "0001-01-01T00:00:00+01:00", "years"),
    "a number for an instant": ("at", 1_700_000_000, "is a number"),
    "a short vector": ("vector", [1, 2], "has 2 values, not 3"),
    "an empty vector": ("vector", [], "has 0 values"),
    "a vector of a text": ("vector", [1, 2, "3"], "a text at 2"),
    "a vector with a null": ("vector", [1, None, 3], "at 1, not a number"),
    "a vector of vectors": ("vector", [[1], [2], [3]], "a list at 0"),
    "NaN in a vector": ("vector", [1, 2, float("nan")], "NaN"),
    "a number beyond 32-bit floats": ("vector", [1, 2, 1e39], "32-bit"),
    "what rounds to an infinite 32-bit float": ("vector", [1, 2, float(2**128 - 2**103)], "32-bit"),
    "a value of no kind": ("flag", Value(), "is no value"),
    "a null of another enum": ("flag", Value(null_value=5), "null of another enum"),  # type: ignore[arg-type]
    "a vector with a value of no kind": ("vector", Value(list_value=ListValue(values=[Value()] * 3)), "no value at 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_value_that_cannot_be_meant_names_its_row_and_field(case: str) -> None:
    """Whatever is right beside it."""
    name, value, why = WRONG[case]
    ((field, description),) = faults([struct(RIGHT), struct(RIGHT | {name: value})])
    assert field == f"rows[1].{name}"
    assert why in description
    assert len(description) < 200


def test_a_missing_name_and_an_unknown_one_are_told_together() -> None:
    """A name that is missing is not a null."""
    row = {name: value for name, value in RIGHT.items() if name != "flag"} | {"flags": True, "\u202eevil": 1}
    assert faults([struct(row)]) == [
        ("rows[0].flag", "is missing"),
        ("rows[0].flags", "is neither an entity key nor a request feature"),
        ("rows[0].'\\u202eevil'", "is neither an entity key nor a request feature"),
    ]
    assert faults([struct(RIGHT | {"late": True})])[0][0] == "rows[0].late"


@pytest.mark.parametrize("count", [0, 1_025])
def test_there_are_1_to_1024_rows(count: int) -> None:
    """None and one too many are refused, before a value is read."""
    assert faults([Struct()] * count)[0][0] == "rows"


def test_the_most_rows_are_read() -> None:
    """All of them."""
    assert {len(column) for column in decode_rows([struct(RIGHT)] * 1_024, FIELDS).values()} == {1_024}


def test_what_is_told_of_many_faults_is_bounded() -> None:
    """As is the number of fields of a row."""
    assert len(faults([struct({f"x{i}": 1 for i in range(100)})] * 1_000)) == FAULTS_MAX
    wide = struct({f"x{i}": None for i in range(FIELDS_MAX + 1)})
    assert faults([struct(RIGHT), wide]) == [("rows[1]", f"has {FIELDS_MAX + 1} fields, more than {FIELDS_MAX}")]


def test_a_vector_is_rounded_as_a_client_rounds_it() -> None:
    """To the nearest 32-bit float, subnormal ones among them."""
    values = [0.1, 1e-45, 3.4028235e38]
    assert decoded(vector=values)["vector"].values.tobytes() == np.array([values], np.float32).tobytes()


def test_integers_beyond_doubles_are_answered_as_text() -> None:
    """From 2^53 on in size."""
    column = Column.build("count", DataType.INT64, [2**53 - 1, 2**53, -(2**63), None])
    numbers = [row.fields["count"] for row in encode_rows([column], 4)]
    assert [n.WhichOneof("kind") for n in numbers] == ["number_value", "string_value", "string_value", "null_value"]
    assert [n.string_value for n in numbers[1:3]] == [str(2**53), str(-(2**63))]
