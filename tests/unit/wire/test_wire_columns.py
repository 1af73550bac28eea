"""Columns, fields, groups and views on the wire."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from foresight.feature_store.v1 import registry_pb2
from foresight.types.v1 import types_pb2
from foresight.values import (
    Column,
    DataType,
    FeatureGroup,
    FeatureView,
    Field,
    InvalidValue,
    MissingPolicy,
    Transform,
    ViewFeature,
    ViewSource,
    Violation,
)
from foresight.wire import (
    check_columns,
    decode_column,
    decode_columns,
    decode_field,
    decode_group,
    decode_instant,
    decode_view,
    encode_column,
    encode_field,
    encode_group,
    encode_instant,
    encode_view,
)
from tests.unit.values.columns import columns, same


@given(columns())
def test_a_column_comes_back_as_it_was(column: Column) -> None:
    message = types_pb2.Column.FromString(encode_column(column).SerializeToString())
    assert same(decode_column(message), column)


@given(st.lists(columns(rows=3), max_size=5))
def test_checking_columns_finds_what_decoding_finds(given_columns: list[Column]) -> None:
    messages = [encode_column(column) for column in given_columns]
    decoded = outcome(lambda: len(decode_columns(messages, "features", 3)))
    assert outcome(lambda: check_columns(messages, "features", 3)) == decoded


def outcome(call: Callable[[], int]) -> int | tuple[Violation, ...]:
    """What a call answers, or the violations that it raises."""
    try:
        return call()
    except InvalidValue as error:
        return error.violations


def message(**fields: object) -> types_pb2.Column:
    return types_pb2.Column(name="x", **fields)  # type: ignore[arg-type]  # one arm each


FLOATS = types_pb2.Float64Values
BAD_COLUMNS: dict[str, tuple[types_pb2.Column, str]] = {
    "no name": (types_pb2.Column(int64_values=types_pb2.Int64Values(values=[1])), "features"),
    "no values": (message(), "features[x]"),
    "NaN": (message(float64_values=FLOATS(values=[1.0, float("nan")])), "features[x]"),
    "infinity": (message(float64_values=FLOATS(values=[float("inf"), 1.0])), "features[x]"),
    "infinities that cancel": (message(float64_values=FLOATS(values=[float("inf"), float("-inf")])), "features[x]"),
    "a short validity": (message(float64_values=FLOATS(values=[1.0, 2.0]), validity=b"\1"), "features[x]"),
    "a validity of 2": (message(float64_values=FLOATS(values=[1.0, 2.0]), validity=b"\1\2"), "features[x]"),
    "validity of no rows": (message(int64_values=types_pb2.Int64Values(), validity=b"\1"), "features[x]"),
    "NUL": (message(string_values=types_pb2.StringValues(values=["a", "\0"])), "features[x]"),
    "not NFC": (message(string_values=types_pb2.StringValues(values=["a", "e\u0301"])), "features[x]"),
    "a long text": (message(string_values=types_pb2.StringValues(values=["a", "x" * 4_097])), "features[x]"),
    "a late instant": (message(timestamp_values=types_pb2.TimestampValues(micros=[0, 2**62])), "features[x]"),
    "an early instant": (message(timestamp_values=types_pb2.TimestampValues(micros=[0, -(2**62)])), "features[x]"),
    "no dimension": (message(vector_values=types_pb2.VectorValues(values=[1.0, 2.0])), "features[x]"),
    "a ragged vector": (message(vector_values=types_pb2.VectorValues(dimension=2, values=[1.0])), "features[x]"),
    "NaN in a vector": (
        message(vector_values=types_pb2.VectorValues(dimension=1, values=[float("nan")])),
        "features[x]",
    ),
}


@pytest.mark.parametrize("what", BAD_COLUMNS)
@pytest.mark.parametrize(
    "read", [lambda m: decode_columns([m], "features"), lambda m: check_columns([m], "features", 2)]
)
def test_a_bad_column_is_refused_by_its_name(what: str, read: Callable[[types_pb2.Column], object]) -> None:
    bad, field = BAD_COLUMNS[what]
    with pytest.raises(InvalidValue) as refused:
        read(bad)
    assert refused.value.violations[0].field == field


def test_finite_numbers_whose_sum_is_not_are_taken() -> None:
    large = message(float64_values=FLOATS(values=[1e308, 1e308]))
    assert check_columns([large], "features", 2) == 1


def test_columns_of_one_message_have_names_of_their_own_and_the_same_length() -> None:
    one = encode_column(Column.build("x", DataType.INT64, [1, 2]))
    two = encode_column(Column.build("y", DataType.INT64, [1]))
    for messages, words in (([one, one], "twice"), ([one, two], "1 rows, not 2")):
        with pytest.raises(InvalidValue, match=words):
            decode_columns(messages, "entity_keys")
        with pytest.raises(InvalidValue, match=words):
            check_columns(messages, "entity_keys", 2)
    with pytest.raises(InvalidValue, match="not 3"):
        decode_columns([one], "entity_keys", 3)


@pytest.mark.parametrize(
    "garbled",
    [
        message(float64_values=FLOATS(values=[float("nan"), 1.0]), validity=b"\0\1"),
        message(string_values=types_pb2.StringValues(values=["left over", "b"]), validity=b"\0\1"),
        message(int64_values=types_pb2.Int64Values(values=[2**60, 1]), validity=b"\0\1"),
        message(bool_values=types_pb2.BoolValues(values=[True, True]), validity=b"\0\1"),
        message(vector_values=types_pb2.VectorValues(dimension=1, values=[5.0, 1.0]), validity=b"\0\1"),
    ],
)
def test_what_a_client_leaves_in_a_null_row_is_forgotten(garbled: types_pb2.Column) -> None:
    column = decode_column(garbled)
    assert column.python(0) is None
    assert np.asarray(column.values[0]).any() == False  # noqa: E712 - a NumPy bool, also of an empty text


def test_a_validity_of_ones_means_no_null() -> None:
    assert decode_column(message(int64_values=types_pb2.Int64Values(values=[1]), validity=b"\1")).valid is None


@given(st.datetimes(timezones=st.just(UTC)))
def test_instants_come_back(instant: datetime) -> None:
    assert decode_instant(encode_instant(instant)) == instant


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [(0, -1), (0, 10**9), (253_402_300_800, 0), (-62_135_596_801, 0), (2**63 - 1, 0), (-(2**63), 0)],
)
def test_instants_outside_of_the_rules_are_refused(seconds: int, nanos: int) -> None:
    with pytest.raises(InvalidValue, match="observed_at"):
        decode_instant(Timestamp(seconds=seconds, nanos=nanos), "observed_at")


def test_nanoseconds_below_a_microsecond_are_cut_off() -> None:
    assert decode_instant(Timestamp(seconds=1, nanos=1_999)) == datetime(1970, 1, 1, 0, 0, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("type", list(DataType))
def test_fields_come_back(type: DataType) -> None:
    field = Field("wind", type, 3 if type is DataType.FLOAT_VECTOR else 0, "in knots")
    assert decode_field(encode_field(field), "features") == field


@pytest.mark.parametrize("type", [0, 7, 99])
def test_an_unknown_type_is_refused(type: int) -> None:
    bad = types_pb2.Field(name="wind", type=type)  # type: ignore[arg-type]  # as a newer or broken client would
    with pytest.raises(InvalidValue, match=r"features\.type"):
        decode_field(bad, "features")


GROUP = FeatureGroup(
    "weather",
    (Field("origin", DataType.STRING),),
    (Field("wind", DataType.FLOAT64), Field("seen", DataType.FLOAT_VECTOR, 2)),
    strict_event_time=True,
    description="hourly",
    version=3,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)
VIEW = FeatureView(
    "delay",
    Field("late", DataType.BOOL),
    (
        ViewSource(
            "weather",
            (
                ViewFeature("wind", "wind_speed"),
                ViewFeature(
                    "gust", missing=MissingPolicy.DEFAULT, default=Column.build("gust", DataType.FLOAT64, [0.0])
                ),
                ViewFeature("rain", missing=MissingPolicy.FAIL),
                ViewFeature(
                    "fog", missing=MissingPolicy.LAST_KNOWN, last_known_max_age=timedelta(minutes=5, microseconds=1)
                ),
                ViewFeature(
                    "ice",
                    missing=MissingPolicy.LAST_KNOWN,
                    default=Column.build("ice", DataType.BOOL, [False]),
                    last_known_max_age=timedelta(days=36_525),
                ),
            ),
            timedelta(hours=3, microseconds=1),
            {"origin": "departure"},
            "w_",
            2,
        ),
        ViewSource("planes", (ViewFeature("seats"),)),
    ),
    (Field("hour", DataType.INT64),),
    (Transform(Field("rush", DataType.BOOL), "flights.transforms:rush", "ab" * 32, ("hour",)),),
    "asked early",
    4,
    datetime(2026, 1, 1, tzinfo=UTC),
    (Field("departure", DataType.STRING),),
)


def test_groups_and_views_come_back() -> None:
    assert decode_group(encode_group(GROUP)) == GROUP
    decoded = decode_view(encode_view(VIEW))
    for mine, theirs in zip(VIEW.sources[0].features, decoded.sources[0].features, strict=True):
        assert (mine.feature, mine.name, mine.missing) == (theirs.feature, theirs.name, theirs.missing)
        assert mine.last_known_max_age == theirs.last_known_max_age
        assert (mine.default is None) == (theirs.default is None)
        if mine.default is not None and theirs.default is not None:
            assert mine.default.equals(theirs.default)
    assert encode_view(decoded) == encode_view(VIEW)
    assert decoded.sources[0].max_age == timedelta(hours=3, microseconds=1)


Change = Callable[[registry_pb2.FeatureView], object]
BAD_VIEWS: dict[str, Change] = {
    "a group key mapped twice": lambda v: v.sources[0].keys.add(group_key="origin", view_key="x"),
    "an unknown policy": lambda v: setattr(v.sources[0].features[0], "missing", 9),
    "a last known value without an age": lambda v: setattr(v.sources[0].features[0], "missing", 4),
    "an age without the policy": lambda v: setattr(v.sources[0].features[3], "missing", 1),
    "a last known age of nothing": lambda v: setattr(v.sources[0].features[4].last_known_max_age, "seconds", 0),
    "a last known age over 100 years": lambda v: setattr(v.sources[0].features[4].last_known_max_age, "nanos", 1_000),
    "a last known age of no duration": lambda v: setattr(v.sources[0].features[4].last_known_max_age, "nanos", 2**30),
    "a negative max age": lambda v: setattr(v.sources[0].max_age, "seconds", -1),
    "a max age of 101 years": lambda v: setattr(v.sources[0].max_age, "seconds", 101 * 366 * 86_400),
    "a max age of no duration": lambda v: setattr(v.sources[0].max_age, "nanos", 2**31 - 1),
    "a max age beyond all": lambda v: setattr(v.sources[0].max_age, "seconds", 2**63 - 1),
    "a default without the policy": lambda v: setattr(v.sources[0].features[1], "missing", 1),
    "a default of two values": lambda v: v.sources[0].features[1].default_value.float64_values.values.append(1.0),
    "no label": lambda v: v.ClearField("label"),
    "a label of vectors": lambda v: v.label.CopyFrom(encode_field(Field("l", DataType.FLOAT_VECTOR, 2))),
    "a name in capitals": lambda v: setattr(v, "name", "Delay"),
    "a reserved name": lambda v: setattr(v, "name", "log_delay"),
    "the same request feature twice": lambda v: v.request_features.append(v.request_features[0]),
    "a transform without inputs": lambda v: v.transforms[0].ClearField("inputs"),
    "a function that is none": lambda v: setattr(v.transforms[0], "function", "os.system"),
    "a hash that is none": lambda v: setattr(v.transforms[0], "source_sha256", "AB" * 32),
    "no features at all": lambda v: [v.ClearField("sources"), v.ClearField("request_features")],  # type: ignore[func-returns-value]
    "33 sources": lambda v: v.sources.extend([v.sources[1]] * 31),
}


@pytest.mark.parametrize("what", BAD_VIEWS)
def test_a_bad_view_is_refused(what: str) -> None:
    bad = encode_view(VIEW)
    BAD_VIEWS[what](bad)
    with pytest.raises(InvalidValue):
        decode_view(bad)
