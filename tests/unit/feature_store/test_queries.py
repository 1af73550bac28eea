"""Queries: what they may hold, what they become against a group, and their JSON."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.values import Column, DataType, FeatureGroup, Field, InvalidValue
from services.feature_store.groups import Reference
from services.feature_store.reads.histories import EventTimes
from services.feature_store.reads.queries import (
    Condition,
    GroupQuery,
    Operator,
    SpineQuery,
    dump_spine_query,
    load_spine_query,
)

T0 = datetime(2026, 2, 1, tzinfo=UTC)
GROUP = FeatureGroup(
    "flights",
    (Field("flight", DataType.STRING), Field("leg", DataType.INT64)),
    (
        Field("origin", DataType.STRING),
        Field("departure", DataType.TIMESTAMP),
        Field("delayed", DataType.BOOL),
        Field("minutes", DataType.FLOAT64),
        Field("route", DataType.FLOAT_VECTOR, 2),
    ),
    version=3,
)
FLIGHTS = Reference("flights")


def values(type: DataType, *given: Any) -> Column:
    """A column of values."""
    return Column.build("value", type, given)


def keys(**columns: tuple[DataType, list[Any]]) -> tuple[Column, ...]:
    """Key columns."""
    return tuple(Column.build(name, type, rows) for name, (type, rows) in columns.items())


@pytest.mark.parametrize(
    ("operator", "given_values", "fault"),
    [
        (Operator.EQUAL, None, "takes one value"),
        (Operator.LESS, values(DataType.INT64, 1, 2), "takes one value"),
        (Operator.IS_NULL, values(DataType.INT64, 1), "takes no value"),
        (Operator.IN, values(DataType.INT64), "1 to 10000 values"),
        (Operator.IN, values(DataType.INT64, *range(10_001)), "1 to 10000 values"),
        (Operator.EQUAL, values(DataType.INT64, None), "NULL"),
    ],
)
def test_a_condition_has_the_values_that_its_operator_takes(
    operator: Operator, given_values: Column | None, fault: str
) -> None:
    """One, some, or none; never NULL."""
    with pytest.raises(InvalidValue, match=fault):
        Condition("leg", operator, given_values)


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        (GroupQuery(FLIGHTS, where=(Condition("absent", Operator.IS_NULL),)), "not a key, a feature or event_time"),
        (GroupQuery(FLIGHTS, where=(Condition("leg", Operator.EQUAL, values(DataType.STRING, "1")),)), "not int64"),
        (
            GroupQuery(FLIGHTS, where=(Condition("route", Operator.EQUAL, values(DataType.FLOAT64, 1.0)),)),
            "with NULL only",
        ),
        (
            GroupQuery(FLIGHTS, where=(Condition("delayed", Operator.LESS, values(DataType.BOOL, True)),)),
            "has no order",
        ),
        (GroupQuery(FLIGHTS, keys=keys(flight=(DataType.STRING, ["a"]))), "leg is missing"),
        (
            GroupQuery(FLIGHTS, keys=keys(flight=(DataType.STRING, ["a"]), leg=(DataType.STRING, ["1"]))),
            "and int64 in flights",
        ),
        (
            GroupQuery(FLIGHTS, keys=keys(flight=(DataType.STRING, ["a"]), origin=(DataType.STRING, ["1"]))),
            "'origin' is not a key",
        ),
    ],
)
def test_a_query_has_to_fit_its_group(query: GroupQuery, fault: str) -> None:
    """Columns and types."""
    with pytest.raises(InvalidValue, match=fault):
        query.check_fits(GROUP)


def test_a_query_is_checked_when_it_is_built() -> None:
    """Bounds of times, keys and conditions."""
    for make, fault in (
        (lambda: GroupQuery(FLIGHTS, EventTimes(T0, T0)), "not before"),
        (lambda: GroupQuery(FLIGHTS, where=(Condition("leg", Operator.IS_NULL),) * 33), "33 conditions"),
        (lambda: GroupQuery(FLIGHTS, keys=keys(flight=(DataType.STRING, []))), "1 to 100000"),
        (lambda: GroupQuery(FLIGHTS, keys=keys(flight=(DataType.STRING, ["a", None]))), "NULL"),
        (
            lambda: GroupQuery(FLIGHTS, keys=keys(flight=(DataType.STRING, ["a"]), leg=(DataType.INT64, [1, 2]))),
            "different lengths",
        ),
        (lambda: SpineQuery(GroupQuery(FLIGHTS), (("leg", "a"), ("flight", "a"))), "same name"),
        (lambda: SpineQuery(GroupQuery(FLIGHTS), (("departure", "event_time"),), at=T0), "`at` sets"),
        (lambda: SpineQuery(GroupQuery(FLIGHTS, EventTimes(T0)), at=T0 - timedelta(seconds=1)), "before"),
        (lambda: SpineQuery(GroupQuery(FLIGHTS), at=datetime(2026, 1, 1)), "time zone"),  # noqa: DTZ001
    ):
        with pytest.raises(InvalidValue, match=fault):
            make()


def test_keys_come_in_the_order_of_the_group() -> None:
    """Whatever order they were given in."""
    query = GroupQuery(FLIGHTS, keys=keys(leg=(DataType.INT64, [1]), flight=(DataType.STRING, ["a"])))
    query.check_fits(GROUP)
    assert [column.name for column in query.key_columns(GROUP)] == ["flight", "leg"]


def test_a_spine_has_keys_event_time_and_what_is_wanted_or_mapped() -> None:
    """In that order; a key under another name is there once."""
    query = SpineQuery(GroupQuery(FLIGHTS), (("flight", "id"), ("departure", "event_time"), ("delayed", "late")))
    assert query.spine_columns(GROUP, ["origin", "late", "temperature"]) == [
        ("flight", "id"),
        ("leg", "leg"),
        ("departure", "event_time"),
        ("origin", "origin"),
        ("delayed", "late"),
    ]
    with pytest.raises(InvalidValue, match="'absent' is not a column"):
        SpineQuery(GroupQuery(FLIGHTS), (("absent", "late"),)).spine_columns(GROUP, [])


instants = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda t: t.replace(tzinfo=UTC))  # noqa: DTZ001
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8).map(
    lambda text: unicodedata.normalize("NFC", text)
)
columns = st.one_of(
    st.lists(texts, min_size=1, max_size=4).map(lambda v: values(DataType.STRING, *v)),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4).map(lambda v: values(DataType.INT64, *v)),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4).map(
        lambda v: values(DataType.FLOAT64, *v)
    ),
    st.lists(instants, min_size=1, max_size=4).map(lambda v: values(DataType.TIMESTAMP, *v)),
    st.lists(st.booleans(), min_size=1, max_size=4).map(lambda v: values(DataType.BOOL, *v)),
)
conditions = st.one_of(
    columns.map(lambda column: Condition("minutes", Operator.IN, column)),
    columns.map(lambda column: Condition("leg", Operator.AT_LEAST, column.take([0]))),
    st.just(Condition("origin", Operator.NOT_NULL)),
)
queries = st.builds(
    SpineQuery,
    st.builds(
        GroupQuery,
        st.builds(Reference, st.sampled_from(["flights", "log_predictions_delays_v1"]), st.integers(0, 9)),
        st.builds(EventTimes, st.none() | st.just(T0), st.none() | st.just(T0 + timedelta(microseconds=1))),
        st.just(()) | columns.map(lambda column: (column.renamed("flight"),)),
        st.lists(conditions, max_size=3).map(tuple),
        st.booleans(),
    ),
    st.just(()) | st.just((("departure", "left_at"),)),
    st.none() | st.just(T0 + timedelta(days=1)),
)


@given(query=queries)
def test_json_keeps_every_query_and_equal_queries_have_equal_json(query: SpineQuery) -> None:
    """To the bit of every value."""
    loaded = load_spine_query(dump_spine_query(query))
    assert loaded == query
    assert hash(loaded) == hash(query)
    for mine, theirs in zip(query.query.where, loaded.query.where, strict=True):
        assert (mine.values is None) == (theirs.values is None)
        if mine.values is not None and theirs.values is not None:
            assert mine.values.equals(theirs.values)
    assert loaded.pinned(12) != query.pinned(13)
