"""What makes a view valid, what the server derives, and how registrations are compared."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

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
)
from services.feature_store.logs.log_groups import predictions_group
from services.feature_store.registry.about import dump_group_about, dump_view_about, load_group_about, load_view_about
from services.feature_store.registry.derivation import derive_view
from services.feature_store.registry.specs import dump_group, dump_view, load_group, load_view

WEATHER = FeatureGroup(
    "weather",
    (Field("place", DataType.STRING, description="an airport"),),
    (Field("wind", DataType.FLOAT64), Field("embedding", DataType.FLOAT_VECTOR, 3), Field("seen", DataType.TIMESTAMP)),
    version=4,
)
PLANES = FeatureGroup("planes", (Field("tail", DataType.INT64),), (Field("seats", DataType.INT64),), version=1)
LABEL = Field("late", DataType.BOOL)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def view(*sources: ViewSource, **options: object) -> FeatureView:
    """A view with a label."""
    return FeatureView("judged", LABEL, sources, **options)  # type: ignore[arg-type]


def source(group: str, *names: str, **options: object) -> ViewSource:
    """A source that takes features under their own names."""
    return ViewSource(group, tuple(ViewFeature(name) for name in names), **options)  # type: ignore[arg-type]


def doubled(*inputs: str, name: str = "doubled") -> Transform:
    """A transform that exists nowhere."""
    return Transform(Field(name, DataType.FLOAT64), "module:function", "ab" * 32, inputs)


def test_versions_keys_and_features_are_derived() -> None:
    """Keys by first appearance, features by sources, then request features, then transforms."""
    asked = view(
        source("weather", "wind", keys={"place": "origin"}, prefix="from_"),
        source("weather", "wind", "embedding", keys={"place": "destination"}, prefix="to_"),
        source("planes", "seats"),
        request_features=(Field("hour", DataType.INT64),),
        transforms=(doubled("hour", "from_wind"), doubled("doubled", "tail", name="again")),
    )
    derived = derive_view(asked, [WEATHER, WEATHER, PLANES])
    assert [(f.name, f.type) for f in derived.entity_keys] == [
        ("origin", DataType.STRING),
        ("destination", DataType.STRING),
        ("tail", DataType.INT64),
    ]
    names = ["from_wind", "to_wind", "to_embedding", "seats", "hour", "doubled", "again"]
    assert [f.name for f in derived.features] == names
    assert derived.features[2].dimension == 3
    assert [s.group_version for s in derived.sources] == [4, 4, 1]


WIND = source("weather", "wind")
WRONG_DEFAULT = ViewFeature("wind", "", MissingPolicy.DEFAULT, Column.build("x", DataType.INT64, [1]))


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (view(source("weather", "rain")), "has no rain"),
        (view(source("weather", "wind", keys={"tail": "x"})), "tail is not a key"),
        (view(WIND, source("planes", "seats", keys={"tail": "place"})), "int64 here"),
        (view(source("weather", "wind", keys={"place": "wind"})), "name wind is that of an entity key"),
        (view(source("weather", "wind", keys={"place": "late"})), "name late is that of an entity key"),
        (view(WIND, request_features=(Field("place", DataType.STRING),)), "name place is that of an entity key"),
        (view(WIND, transforms=(doubled("rain"),)), "takes rain, which is not before"),
        (view(WIND, transforms=(doubled("later"), doubled("wind", name="later"))), "takes later"),
        (view(ViewSource("weather", (WRONG_DEFAULT,))), "not of type float64"),
    ],
)
def test_what_does_not_fit_is_refused(asked: FeatureView, why: str) -> None:
    """With the source and the name at fault."""
    groups = {group.name: group for group in (WEATHER, PLANES)}
    with pytest.raises(InvalidValue, match=why):
        derive_view(asked, [groups[s.group] for s in asked.sources])


def test_a_reserved_name_made_of_prefix_and_feature_is_refused() -> None:
    """`event_` + `time`."""
    group = replace(WEATHER, features=(Field("time", DataType.FLOAT64),))
    with pytest.raises(InvalidValue, match="reserved"):
        derive_view(view(source("weather", "time", prefix="event_")), [group])


def test_a_source_takes_a_feature_once() -> None:
    """Under two names it would be read once and be missing under the other."""
    with pytest.raises(InvalidValue, match="take wind twice"):
        ViewSource("weather", (ViewFeature("wind"), ViewFeature("wind", name="breeze")))


def test_content_survives_being_stored() -> None:
    """Every part of a group and a view, defaults of every type among them."""
    features = tuple(Field(f"f_{type.value}", type, 2 if type is DataType.FLOAT_VECTOR else 0) for type in DataType)
    defaults = [7, 0.1, True, "é\u2028", NOW, [0.1, 2.0]]
    group = replace(WEATHER, features=features, strict_event_time=True, description="what it is")
    taken = tuple(
        ViewFeature(f.name, "", MissingPolicy.DEFAULT, Column.build("any", f.type, [value], f.dimension))
        for f, value in zip(features, defaults, strict=True)
    )
    asked = view(
        ViewSource("weather", taken, timedelta(days=2, microseconds=1), {"place": "origin"}, prefix="x_"),
        request_features=(Field("hour", DataType.INT64),),
        transforms=(doubled("hour"),),
        description="what it is for",
    )
    derived = derive_view(asked, [group])
    loaded = load_view_about(load_view("judged", 3, NOW, dump_view(derived), "etag"), dump_view_about(derived))
    assert dump_view(loaded) == dump_view(derived)
    for before, after in zip(derived.sources[0].features, loaded.sources[0].features, strict=True):
        assert before.default is not None
        assert after.default is not None
        assert after.default.equals(before.default)
        assert after.default.name == "x_" + after.feature
    assert loaded.sources[0].max_age == timedelta(days=2, microseconds=1)
    assert (loaded.version, loaded.created_at, loaded.etag) == (3, NOW, "etag")
    assert (loaded.description, loaded.entity_keys) == ("what it is for", derived.entity_keys)
    stored = load_group_about(load_group("weather", 4, NOW, dump_group(group)), dump_group_about(group))
    assert stored == replace(group, created_at=NOW)
    added = {f.feature: f.default.renamed(f.feature) for f in derived.sources[0].features if f.default is not None}
    widened = load_group("weather", 4, NOW, dump_group(replace(group, defaults=added)))
    assert all(widened.defaults[name].equals(default) for name, default in added.items())
    assert widened.defaults.keys() == added.keys()


def test_a_last_known_age_is_part_of_the_content_and_views_without_one_keep_theirs() -> None:
    """Another age is another view; what was stored before there was the policy is the same text."""
    feature = ViewFeature("wind", missing=MissingPolicy.LAST_KNOWN, last_known_max_age=timedelta(minutes=5))
    longer = replace(feature, last_known_max_age=timedelta(minutes=5, microseconds=1))
    plain, known, longer_known = (
        derive_view(view(ViewSource("weather", (f,))), [WEATHER]) for f in (ViewFeature("wind"), feature, longer)
    )
    assert "last_known" not in dump_view(plain)
    assert len({dump_view(v) for v in (plain, known, longer_known)}) == 3
    for before in (plain, known, longer_known):
        assert load_view("judged", 1, NOW, dump_view(before)).sources == before.sources


def test_the_widest_view_has_room_in_its_log_group() -> None:
    """Features, keys, origin and outputs together are more than an ordinary group may have."""
    wide = replace(WEATHER, features=tuple(Field(f"f{i}", DataType.INT64) for i in range(512)))
    view = derive_view(FeatureView("judged", LABEL, (source("weather", *(f.name for f in wide.features)),)), [wide])
    group = predictions_group(view, [], None)
    assert len(group.features) == 512 + 1 + 10
