"""What is about a group or view (tags, expectations, defaults, ...) on the wire."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.feature_store.v1 import registry_pb2
from foresight.types.v1 import types_pb2
from foresight.values import (
    Column,
    DataType,
    Expectation,
    FailurePolicy,
    FeatureGroup,
    FeatureView,
    Field,
    Fresh,
    InvalidValue,
    NotNull,
    OneOf,
    Range,
    Unique,
)
from foresight.values.expectations import FRESH_MAX, Rule
from foresight.wire import decode_duration, decode_group, decode_view, encode_duration, encode_group, encode_view
from tests.unit.values.columns import SCALARS, columns

FIELDS = {f"x_{type.value}": Field(f"x_{type.value}", type, 2 * (type is DataType.FLOAT_VECTOR)) for type in DataType}
TAGS = st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True), st.text("aä 0", max_size=9), max_size=4)
AGES = st.timedeltas(timedelta(microseconds=1), FRESH_MAX)
TEXTS = st.text("aä 0:/", max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    """Bounds in order, one of them perhaps missing."""
    least, most = sorted((draw(finite), draw(finite)))
    return draw(st.sampled_from([Range(least, most), Range(min=least), Range(max=most)]))


@st.composite
def expectations(draw: st.DrawFn, name: str) -> Expectation:
    """A rule that fits some column of FIELDS."""
    field = draw(st.sampled_from(list(FIELDS.values())))
    options: list[st.SearchStrategy[Rule]] = [st.just(NotNull()), AGES.map(Fresh)]
    if field.type is not DataType.FLOAT_VECTOR:
        options.append(st.just(Unique()))
    if field.type in (DataType.INT64, DataType.FLOAT64):
        options.append(ranges())
    if field.type in (DataType.INT64, DataType.BOOL, DataType.STRING):
        values = st.lists(SCALARS[field.type], min_size=1, max_size=5)
        options.append(values.map(lambda v: OneOf(Column.build("values", field.type, v))))
    rule = draw(st.one_of(options))
    return Expectation(rule, "" if isinstance(rule, Fresh) else field.name, name)


@st.composite
def groups(draw: st.DrawFn) -> FeatureGroup:
    """A group with anything about it."""
    names = draw(st.lists(st.sampled_from([f"rule_{i}" for i in range(6)]), unique=True))
    made = draw(st.lists(columns(rows=1).filter(lambda c: c.valid is None), max_size=3))
    defaults = {f"added_{i}": column.renamed(f"added_{i}") for i, column in enumerate(made)}
    added = [column.field for column in defaults.values()]
    return FeatureGroup(
        "weather",
        (Field("place", DataType.STRING),),
        (*FIELDS.values(), *added),
        description=draw(TEXTS),
        owner=draw(TEXTS),
        tags=draw(TAGS),
        source=draw(TEXTS),
        deprecation=draw(TEXTS),
        expectations=tuple(draw(expectations(name)) for name in names),
        failure_policy=draw(st.sampled_from(FailurePolicy)),
        defaults=defaults,
        etag=draw(st.text("0123456789abcdef-", max_size=36)),
    )


@given(groups())
def test_what_is_about_a_group_comes_back(group: FeatureGroup) -> None:
    sent = registry_pb2.FeatureGroup.FromString(encode_group(group).SerializeToString())
    decoded = decode_group(sent)
    plain = ("description", "owner", "tags", "source", "deprecation", "failure_policy", "etag")
    for name in plain:
        assert getattr(decoded, name) == getattr(group, name)
    assert [(e.name, e.column, type(e.rule)) for e in decoded.expectations] == [
        (e.name, e.column, type(e.rule)) for e in group.expectations
    ]
    for mine, theirs in zip(group.expectations, decoded.expectations, strict=True):
        if isinstance(mine.rule, OneOf):
            assert isinstance(theirs.rule, OneOf)
            assert mine.rule.values.equals(theirs.rule.values)
        else:
            assert mine.rule == theirs.rule
    assert decoded.defaults.keys() == group.defaults.keys()
    assert all(group.defaults[name].equals(decoded.defaults[name]) for name in group.defaults)


@given(tags=TAGS, owner=TEXTS, deprecation=TEXTS)
def test_what_is_about_a_view_comes_back(tags: dict[str, str], owner: str, deprecation: str) -> None:
    view = FeatureView(
        "judged",
        Field("late", DataType.BOOL),
        request_features=(Field("hour", DataType.INT64),),
        owner=owner,
        tags=tags,
        deprecation=deprecation,
        etag="0123",
    )
    assert decode_view(registry_pb2.FeatureView.FromString(encode_view(view).SerializeToString())) == view


@given(st.timedeltas(-timedelta(days=36_525), timedelta(days=36_525)))
def test_durations_come_back(duration: timedelta) -> None:
    assert decode_duration(encode_duration(duration), "max_age") == duration


@pytest.mark.parametrize("unset", [0, 1])
def test_rows_that_break_a_rule_are_refused_unless_said_otherwise(unset: int) -> None:
    message = encode_group(plain_group())
    message.failure_policy = unset  # type: ignore[assignment]  # as a client sends it
    assert decode_group(message).failure_policy is FailurePolicy.REJECT


def test_the_values_of_a_set_need_no_name() -> None:
    message = encode_group(plain_group())
    values = types_pb2.Column(string_values=types_pb2.StringValues(values=["a", "b"]))
    message.expectations.add(column="place").one_of.values.CopyFrom(values)
    (expectation,) = decode_group(message).expectations
    assert isinstance(expectation.rule, OneOf)
    assert expectation.rule.values.to_list() == ["a", "b"]
    assert expectation.name == "place_one_of"


def plain_group() -> FeatureGroup:
    """A group with nothing about it."""
    return FeatureGroup("weather", (Field("place", DataType.STRING),), (Field("wind", DataType.FLOAT64),))


def number(*values: float) -> types_pb2.Column:
    """A column named wind."""
    return types_pb2.Column(name="wind", float64_values=types_pb2.Float64Values(values=values))


Change = Callable[[registry_pb2.FeatureGroup], object]
BAD_GROUPS: dict[str, tuple[Change, str]] = {
    "a tag twice": (lambda g: g.tags.extend([registry_pb2.Tag(key="team", value=v) for v in "ab"]), "tags"),
    "a tag in capitals": (lambda g: g.tags.add(key="Team"), "tags"),
    "a tag without a key": (lambda g: g.tags.add(value="a"), "tags"),
    "a long tag": (lambda g: g.tags.add(key="team", value="x" * 256), "tags"),
    "a tag with a line break": (lambda g: g.tags.add(key="team", value="a\nb"), "tags"),
    "65 tags": (lambda g: g.tags.extend([registry_pb2.Tag(key=f"t{i}") for i in range(65)]), "tags"),
    "a long owner": (lambda g: setattr(g, "owner", "x" * 256), "owner"),
    "a long source": (lambda g: setattr(g, "source", "x" * 256), "source"),
    "a NUL in a deprecation": (lambda g: setattr(g, "deprecation", "a\0"), "deprecation"),
    "an unknown policy": (lambda g: setattr(g, "failure_policy", 3), "failure_policy"),
    "no rule": (lambda g: g.expectations.add(column="wind"), "expectations[0].rule"),
    "a range without bounds": (
        lambda g: g.expectations.add(column="wind").range.SetInParent(),
        "expectations[0].range",
    ),
    "a range upside down": (
        lambda g: g.expectations.add(column="wind", range=registry_pb2.Range(min=2, max=1)),
        "expectations[0].range",
    ),
    "a NaN bound": (
        lambda g: g.expectations.add(column="wind", range=registry_pb2.Range(min=float("nan"))),
        "expectations[0].range",
    ),
    "an empty set": (
        lambda g: g.expectations.add(column="place").one_of.values.string_values.SetInParent(),
        "expectations[0].one_of",
    ),
    "a set of nothing": (
        lambda g: g.expectations.add(column="place").one_of.SetInParent(),
        "expectations[0].one_of.values[values]",
    ),
    "no age": (lambda g: g.expectations.add().fresh.SetInParent(), "expectations[0].fresh.max_age"),
    "an age of zero": (lambda g: g.expectations.add().fresh.max_age.SetInParent(), "expectations[0].fresh"),
    "an age that is none": (
        lambda g: setattr(g.expectations.add().fresh.max_age, "seconds", 2**62),
        "expectations[0].fresh.max_age",
    ),
    "a rule for no column": (lambda g: g.expectations.add().not_null.SetInParent(), "expectations[0].column"),
    "a rule for another column": (
        lambda g: g.expectations.add(column="rain").not_null.SetInParent(),
        "expectations.rain_not_null",
    ),
    "a rule for another type": (
        lambda g: g.expectations.add(column="place", range=registry_pb2.Range(min=1)),
        "expectations.place_range",
    ),
    "two rules of one name": (
        lambda g: g.expectations.extend([g.expectations.add(column="wind", not_null=registry_pb2.NotNull())]),
        "expectations",
    ),
    "a default twice": (lambda g: g.defaults.extend([number(1), number(1)]), "defaults"),
    "a default of two rows": (lambda g: g.defaults.append(number(1, 2)), "defaults[wind]"),
    "a default of no feature": (
        lambda g: g.defaults.append(types_pb2.Column(name="x", int64_values=types_pb2.Int64Values(values=[1]))),
        "defaults",
    ),
    "a default of another type": (
        lambda g: g.defaults.append(types_pb2.Column(name="wind", int64_values=types_pb2.Int64Values(values=[1]))),
        "defaults",
    ),
    "a long etag": (lambda g: setattr(g, "etag", "x" * 129), "etag"),
    "an etag with a line break": (lambda g: setattr(g, "etag", "a\n"), "etag"),
}


@pytest.mark.parametrize("what", BAD_GROUPS)
def test_what_is_wrong_about_a_group_is_refused_by_its_field(what: str) -> None:
    change, field = BAD_GROUPS[what]
    message = encode_group(plain_group())
    change(message)
    with pytest.raises(InvalidValue) as refused:
        decode_group(message)
    assert refused.value.violations[0].field == field
