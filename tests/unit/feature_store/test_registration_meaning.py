"""What registering again, adding features and searching mean, without a database."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from services.feature_store.registry.about import dump_group_about, dump_view_about, load_group_about, load_view_about
from services.feature_store.registry.registrations import registered_group, registered_view, with_features
from services.feature_store.registry.search import FoundKind, Query, results
from services.feature_store.registry.specs import dump_group
from services.runtime.errors import AlreadyExists, LimitExceeded
from tests.unit.values.columns import columns

PLACE, WIND, RAIN = Field("place", DataType.STRING), Field("wind", DataType.FLOAT64), Field("rain", DataType.INT64)
WEATHER = FeatureGroup("weather", (PLACE,), (WIND, RAIN), version=2, etag="e1")
ZERO = {"snow": Column.build("snow", DataType.INT64, [0])}
SNOW = Field("snow", DataType.INT64)


def test_the_same_again_is_the_same() -> None:
    assert registered_group(WEATHER, replace(WEATHER, version=0, etag="")) == WEATHER


@pytest.mark.parametrize(
    "other",
    [
        replace(WEATHER, features=(WIND,)),
        replace(WEATHER, features=(RAIN, WIND)),
        replace(WEATHER, features=(WIND, RAIN, SNOW)),
        replace(WEATHER, features=(WIND, replace(RAIN, type=DataType.FLOAT64))),
        replace(WEATHER, entity_keys=(replace(PLACE, type=DataType.INT64),)),
        replace(WEATHER, strict_event_time=True),
    ],
)
def test_other_content_is_another_version(other: FeatureGroup) -> None:
    assert registered_group(WEATHER, other) is None


def test_what_a_registration_says_holds_also_when_it_says_nothing() -> None:
    """Only a deprecation stays: the file need not know of it."""
    said = replace(
        WEATHER,
        description="hourly",
        owner="meteo",
        tags={"team": "a"},
        source="noaa",
        deprecation="use weather_2",
        expectations=(Expectation(NotNull(), "wind"),),
        failure_policy=FailurePolicy.QUARANTINE,
        features=(replace(WIND, description="in knots"), RAIN),
    )
    assert registered_group(WEATHER, said) == said
    silent = registered_group(said, WEATHER)
    assert silent == replace(WEATHER, deprecation="use weather_2")
    assert registered_group(said, replace(WEATHER, deprecation="another reason")) == replace(
        WEATHER, deprecation="another reason"
    )


def test_features_added_in_place_may_be_left_out_or_stand_anywhere() -> None:
    """A file from before the addition makes no version without it, and one from after it may list it where it likes."""
    grown = with_features(WEATHER, [replace(SNOW, description="in mm")], ZERO)
    assert grown.features == (WIND, RAIN, replace(SNOW, description="in mm"))
    for features in ((WIND, RAIN), (SNOW, WIND, RAIN), (WIND, SNOW, RAIN)):
        again = registered_group(grown, replace(WEATHER, features=features))
        assert again is not None
        assert dump_group(again) == dump_group(grown)
    # Its description follows the file where the file speaks of it.
    old, new = (registered_group(grown, replace(WEATHER, features=f)) for f in ((WIND, RAIN), (WIND, RAIN, SNOW)))
    assert old is not None
    assert new is not None
    assert (old.features[2].description, new.features[2].description) == ("in mm", "")
    assert registered_group(grown, replace(WEATHER, features=(WIND, RAIN, replace(SNOW, type=DataType.BOOL)))) is None
    assert registered_group(grown, replace(WEATHER, features=(RAIN, WIND, SNOW))) is None


def test_adding_what_is_there_changes_nothing() -> None:
    grown = with_features(WEATHER, [SNOW], ZERO)
    again = with_features(grown, [SNOW], ZERO)
    assert (again.features, list(again.defaults)) == (grown.features, ["snow"])


@pytest.mark.parametrize(
    ("fields", "defaults", "error"),
    [
        ([], {}, InvalidValue),
        ([SNOW], {}, InvalidValue),
        ([SNOW, SNOW], ZERO, InvalidValue),
        ([SNOW], {"snow": Column.build("snow", DataType.FLOAT64, [0.0])}, InvalidValue),
        ([SNOW], {"snow": Column.build("snow", DataType.INT64, [None])}, InvalidValue),
        ([SNOW], ZERO | {"hail": ZERO["snow"]}, InvalidValue),
        ([WIND], {"wind": Column.build("wind", DataType.FLOAT64, [0.0])}, AlreadyExists),
        ([Field("place", DataType.STRING)], {"place": Column.build("place", DataType.STRING, [""])}, AlreadyExists),
    ],
)
def test_features_that_cannot_be_added_are_refused(
    fields: list[Field], defaults: dict[str, Column], error: type[Exception]
) -> None:
    with pytest.raises(error):
        with_features(WEATHER, fields, defaults)


def test_another_default_for_what_was_added_is_refused() -> None:
    grown = with_features(WEATHER, [SNOW], ZERO)
    with pytest.raises(AlreadyExists, match="snow"):
        with_features(grown, [SNOW], {"snow": Column.build("snow", DataType.INT64, [1])})


def test_a_group_can_be_full() -> None:
    fields = [Field(f"f{i}", DataType.INT64) for i in range(511)]
    defaults = {f.name: ZERO["snow"].renamed(f.name) for f in fields}
    with pytest.raises(LimitExceeded):
        with_features(WEATHER, fields, defaults)
    del defaults["f510"]
    assert len(with_features(WEATHER, fields[:-1], defaults).features) == 512


def test_a_view_keeps_its_version_for_other_words() -> None:
    view = FeatureView("judged", Field("late", DataType.BOOL), request_features=(RAIN,), version=4, deprecation="old")
    said = replace(
        view,
        version=0,
        owner="ops",
        tags={"a": "b"},
        label=Field("late", DataType.BOOL, 0, "by 15 min"),
        deprecation="",
    )
    after = registered_view(view, said)
    assert after == replace(said, version=4, deprecation="old")
    assert registered_view(view, replace(view, request_features=(WIND,))) is None


@given(
    values=columns().filter(lambda c: len(c) > 0 and c.valid is None), tags=st.dictionaries(st.just("k"), st.just("ä"))
)
def test_what_is_said_survives_being_stored(values: Column, tags: dict[str, str]) -> None:
    feature = replace(values.field, name="value")
    rules = [Expectation(NotNull(), "value", "a"), Expectation(Fresh(timedelta(microseconds=1)), "", "b")]
    if feature.type in (DataType.INT64, DataType.BOOL, DataType.STRING):
        rules.append(Expectation(OneOf(values), "value", "c"))
    if feature.type in (DataType.INT64, DataType.FLOAT64):
        rules += [Expectation(Range(-0.1, 1e308), "value", "d"), Expectation(Range(max=0), "value", "e")]
    if feature.type is not DataType.FLOAT_VECTOR:
        rules.append(Expectation(Unique(), "value", "f"))
    group = FeatureGroup("g", (PLACE,), (feature,), tags=tags, owner="é", expectations=tuple(rules))
    bare = FeatureGroup("g", (PLACE,), (replace(feature, description=""),))
    loaded = load_group_about(bare, dump_group_about(group))
    assert dump_group_about(loaded) == dump_group_about(group)
    for mine, theirs in zip(group.expectations, loaded.expectations, strict=True):
        assert (mine.name, mine.column, type(mine.rule)) == (theirs.name, theirs.column, type(theirs.rule))
        if isinstance(mine.rule, OneOf) and isinstance(theirs.rule, OneOf):
            assert mine.rule.values.equals(theirs.rule.values)


def test_words_on_every_field_of_a_view_survive() -> None:
    view = FeatureView(
        "judged",
        Field("late", DataType.BOOL, 0, "by 15 minutes"),
        request_features=(replace(RAIN, description="in mm"),),
        features=(replace(RAIN, description="in mm"),),
        description="asked early",
    )
    bare = FeatureView("judged", Field("late", DataType.BOOL), request_features=(RAIN,), features=(RAIN,))
    assert load_view_about(bare, dump_view_about(view)) == view


GROUPS = [
    replace(WEATHER, features=(replace(WIND, description="Speed in knots"), RAIN), owner="meteo"),
    FeatureGroup("log_predictions_judged_v1", (PLACE,), (WIND,), derived=True),
]
VIEWS = [FeatureView("windy", Field("late", DataType.BOOL), request_features=(RAIN,))]


def names(query: str, **options: int) -> list[str]:
    """What a query finds among things that the database found."""
    found = results(Query(query, **options), GROUPS, VIEWS)  # type: ignore[arg-type]
    return [f"{f.thing.name}.{f.feature}" if f.kind is FoundKind.FEATURE else f.thing.name for f in found]


def test_names_that_start_with_the_query_come_first() -> None:
    assert names("WIND") == ["weather.wind", "windy", "log_predictions_judged_v1", "weather"]
    assert names("wea") == ["weather", "log_predictions_judged_v1", "windy"]


def test_a_feature_is_found_by_its_own_words_and_its_groups_name() -> None:
    assert "weather.wind" in names("knots weather")
    assert "weather.rain" not in names("weather")
    assert "weather.rain" in names("rain weather")


def test_no_words_find_everything_up_to_the_limit() -> None:
    everything = ["log_predictions_judged_v1", "weather.rain", "weather", "weather.wind", "windy"]
    assert names("") == everything
    assert names("", limit=2) == everything[:2]


@pytest.mark.parametrize(
    "options",
    [
        {"text": "x" * 256},
        {"text": "a\0"},
        {"owner": "x" * 256},
        {"limit": 0},
        {"limit": 1_001},
        {"tags": {"Team": ""}},
        {"tags": {f"t{i}": "" for i in range(65)}},
    ],
)
def test_a_query_has_bounds(options: dict[str, object]) -> None:
    with pytest.raises(InvalidValue):
        Query(**options)  # type: ignore[arg-type]
