"""Groups and views as they age, and lineage: what the client and the command line send, and make of the answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from typer.testing import CliRunner, Result

from foresight.cli.app import app
from foresight.client import (
    Aborted,
    Client,
    DataType,
    Expectation,
    FeatureGroup,
    Field,
    Found,
    FoundKind,
    InvalidValue,
    LineageThing,
    Range,
    ThingKind,
    VersionRef,
)
from foresight.feature_store.v1 import lineage_pb2, offline_pb2, registry_pb2
from foresight.types.v1 import types_pb2
from foresight.wire import encode_group, encode_instant, encode_view
from services.runtime import errors
from tests.wire.client.delays import DELAYS, NOON, ORIGIN, WEATHER, WIND, ref
from tests.wire.client.fake_foresight import FakeForesight, Gateway

Run = Callable[..., Result]
SEEN = replace(WEATHER, version=4, etag="e1", owner="meteo", tags={"team": "north", "tier": ""})
SNOW = Field("snow", DataType.INT64)
Thing = lineage_pb2.Thing


@pytest.fixture
def run(gateway: Gateway) -> Run:
    """Runs a command against the fake."""
    return lambda *arguments, **options: CliRunner().invoke(
        app, [*map(str, arguments), "--state", str(gateway.state)], **options
    )


def described(group: FeatureGroup, rows: int = 0) -> registry_pb2.GetFeatureGroupResponse:
    return registry_pb2.GetFeatureGroupResponse(group=encode_group(group), rows=rows)


def test_features_are_added_with_defaults_of_their_types(client: Client, fake: FakeForesight) -> None:
    fake.on("AddFeatures", lambda r: registry_pb2.AddFeaturesResponse(group=encode_group(SEEN)))
    shape = Field("shape", DataType.FLOAT_VECTOR, 2)
    assert client.add_features("weather", [SNOW, shape], {"snow": 0, "shape": [0, 1]}, etag="e1") == SEEN
    [request] = fake.requests("AddFeatures")
    assert (request.group, request.etag, [f.name for f in request.features]) == (
        ref("weather"),
        "e1",
        ["snow", "shape"],
    )
    assert [c.name for c in request.defaults] == ["snow", "shape"]
    assert list(request.defaults[1].vector_values.values) == [0.0, 1.0]
    for defaults in ({}, {"snow": "none"}, {"snow": 0, "hail": 0}):
        with pytest.raises(InvalidValue):
            client.add_features("weather", [SNOW], defaults)
    assert len(fake.requests("AddFeatures")) == 1


def test_an_update_sends_all_that_is_said_and_what_was_seen(client: Client, fake: FakeForesight) -> None:
    fake.on("UpdateFeatureGroup", lambda r: registry_pb2.UpdateFeatureGroupResponse(group=r.group))
    fake.on("UpdateFeatureView", lambda r: registry_pb2.UpdateFeatureViewResponse(view=r.view))
    changed = replace(SEEN, source="noaa", expectations=(Expectation(Range(min=0), "wind"),))
    assert client.update(changed) == changed
    assert client.deprecate(SEEN, "use weather_2").deprecation == "use weather_2"
    assert client.deprecate(replace(DELAYS, deprecation="old"), "").deprecation == ""
    first, second = fake.requests("UpdateFeatureGroup")
    assert (first.group.source, first.group.etag, first.group.owner) == ("noaa", "e1", "meteo")
    assert (second.group.deprecation, second.group.etag) == ("use weather_2", "e1")
    fake.on("UpdateFeatureGroup", errors.StaleEtag("the feature group weather has changed", etag="e2"))
    with pytest.raises(Aborted) as stale:
        client.update(SEEN)
    assert stale.value.metadata["etag"] == "e2"


def test_applying_warns_of_deprecated_groups(client: Client, fake: FakeForesight) -> None:
    text = "the feature group weather version 1 is deprecated: use weather_2"
    fake.on(
        "RegisterFeatureView",
        registry_pb2.RegisterFeatureViewResponse(view=encode_view(DELAYS), created=True, warnings=[text]),
    )
    with pytest.warns(UserWarning, match="use weather_2"):
        client.apply(DELAYS)
    [registration] = client.register(DELAYS)
    assert registration.warnings == (text,)


def test_a_search_sends_its_words_and_filters(client: Client, fake: FakeForesight) -> None:
    result = registry_pb2.SearchResult(
        kind=registry_pb2.SearchResult.KIND_FEATURE, thing=ref("weather", 2), feature="wind", description="in knots"
    )
    fake.on("Search", registry_pb2.SearchResponse(results=[result]))
    found = client.search("wind knots", tags={"team": ""}, owner="meteo", include_deprecated=True, limit=5)
    assert found == [Found(FoundKind.FEATURE, VersionRef("weather", 2), "wind", "in knots", "", "")]
    [request] = fake.requests("Search")
    assert request == registry_pb2.SearchRequest(
        query="wind knots", tags=[registry_pb2.Tag(key="team")], owner="meteo", include_deprecated=True, limit=5
    )


def test_a_write_that_is_refused_looks_for_features_added_in_place(client: Client, fake: FakeForesight) -> None:
    """The version stays the same."""
    fake.on("GetFeatureGroup", described(WEATHER), described(replace(WEATHER, features=(WIND, SNOW))))
    fake.on("WriteFeatures", offline_pb2.WriteFeaturesResponse(commit=1))
    row = {"origin": "JFK", "event_time": NOON, "wind": 1.0}
    client.write("weather", [row])
    fake.on("WriteFeatures", InvalidValue("arrow.snow", "is wrong"), offline_pb2.WriteFeaturesResponse(commit=2))
    assert client.write("weather", [{**row, "snow": 1}]).number == 2


@pytest.mark.parametrize(
    ("text", "thing"),
    [
        ("group:weather@2", LineageThing(ThingKind.FEATURE_GROUP, "weather", 2)),
        ("view:delays", LineageThing(ThingKind.FEATURE_VIEW, "delays")),
        ("model:late@1", LineageThing(ThingKind.MODEL, "late", 1)),
        ("deployment:delays", LineageThing(ThingKind.DEPLOYMENT, "delays")),
        ("dataset:01-ab", LineageThing(ThingKind.TRAINING_DATASET, "01-ab")),
        ("source:https://noaa.gov:1/x@3", LineageThing(ThingKind.SOURCE, "https://noaa.gov:1/x@3")),
    ],
)
def test_things_are_texts(text: str, thing: LineageThing) -> None:
    assert LineageThing.parse(text) == thing
    assert str(thing) == text


@pytest.mark.parametrize(
    "text", ["", "weather", "groups:weather", "group:", "view:delays@x", "view:delays@0", "model:m@"]
)
def test_a_text_that_is_no_thing_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="thing"):
        LineageThing.parse(text)


SOURCE = Thing(kind=lineage_pb2.THING_KIND_SOURCE, name="noaa")
GROUP = Thing(kind=lineage_pb2.THING_KIND_FEATURE_GROUP, name="weather", version=1)
VIEW = Thing(kind=lineage_pb2.THING_KIND_FEATURE_VIEW, name="delays", version=3)
DATASET = Thing(kind=lineage_pb2.THING_KIND_TRAINING_DATASET, name="id-1", label="january")
MODEL = Thing(kind=lineage_pb2.THING_KIND_MODEL, name="late", version=1)
SERVED = Thing(kind=lineage_pb2.THING_KIND_DEPLOYMENT, name="delays")


def graph(*, truncated: bool = False) -> lineage_pb2.GetLineageResponse:
    """A whole line, seen from the view."""
    pairs = [(GROUP, SOURCE), (VIEW, GROUP), (DATASET, VIEW), (MODEL, VIEW), (MODEL, DATASET), (SERVED, MODEL)]
    uses = [
        lineage_pb2.Use(user=user, used=used, since=encode_instant(NOON), known_at_asserted=used == SOURCE)
        for user, used in pairs
    ]
    return lineage_pb2.GetLineageResponse(
        things=[VIEW, SOURCE, GROUP, DATASET, MODEL, SERVED], uses=uses, truncated=truncated
    )


def test_lineage_can_be_walked_in_both_directions(client: Client, fake: FakeForesight) -> None:
    fake.on("GetLineage", graph())
    found = client.lineage("view:delays", depth=4)
    [request] = fake.requests("GetLineage")
    assert request == lineage_pb2.GetLineageRequest(
        thing=Thing(kind=lineage_pb2.THING_KIND_FEATURE_VIEW, name="delays"), depth=4
    )
    assert str(found.start) == "view:delays@3"
    assert [str(use.used) for use in found.made_of(found.start)] == ["group:weather@1"]
    assert [str(use.user) for use in found.used_by(found.start)] == ["dataset:id-1", "model:late@1"]
    assert found.labels == {LineageThing(ThingKind.TRAINING_DATASET, "id-1"): "january"}
    assert found.made_of(LineageThing(ThingKind.FEATURE_GROUP, "weather", 1))[0].known_at_asserted
    assert found.uses[0].since == NOON


def test_lineage_is_drawn_as_a_tree(run: Run, fake: FakeForesight) -> None:
    """What follows from a thing stands there once."""
    fake.on("GetLineage", graph(), graph(truncated=True))
    drawn = run("lineage", "view:delays@3")
    assert drawn.exit_code == 0, drawn.output
    lines = [line.rstrip() for line in drawn.stdout.splitlines()]
    assert lines == [
        "view:delays@3",
        "├── made of",
        "│   └── group:weather@1",
        "│       └── source:noaa (known_at asserted)",
        "└── used by",
        "    ├── dataset:id-1 january",
        "    │   └── model:late@1",
        "    │       └── deployment:delays",
        "    └── model:late@1 …",
    ]
    assert "more than one answer holds" in run("lineage", "view:delays@3").stdout
    data = json.loads(run("lineage", "view:delays@3", "--json").stdout)
    assert (data["start"], data["uses"][0]["used"]) == ("view:delays@3", "source:noaa")
    alone = lineage_pb2.GetLineageResponse(things=[VIEW])
    fake.on("GetLineage", alone)
    assert run("lineage", "view:delays@3").stdout.count("nothing that is known here") == 2
    wrong = run("lineage", "delays")
    assert wrong.exit_code == 1
    assert "is not of the form source|group|view|dataset|model|deployment:NAME" in wrong.stderr


def test_search_is_a_table(run: Run, fake: FakeForesight) -> None:
    results = [
        registry_pb2.SearchResult(kind=1, thing=ref("weather", 2), owner="meteo", deprecation="old"),  # type: ignore[arg-type]  # KIND_GROUP
        registry_pb2.SearchResult(kind=3, thing=ref("weather", 2), feature="wind"),  # type: ignore[arg-type]  # KIND_FEATURE
    ]
    fake.on("Search", registry_pb2.SearchResponse(results=results))
    shown = run("search", "wind", "knots", "--tag", "team=north", "--tag", "tier", "--deprecated")
    assert shown.exit_code == 0, shown.output
    assert "weather.wind" in shown.stdout
    assert "old" in shown.stdout
    [request] = fake.requests("Search")
    assert (request.query, [(t.key, t.value) for t in request.tags]) == (
        "wind knots",
        [("team", "north"), ("tier", "")],
    )
    fake.on("Search", registry_pb2.SearchResponse())
    assert "--deprecated looks further" in run("search").stdout


def test_deprecate_says_why_and_takes_it_back(run: Run, fake: FakeForesight) -> None:
    fake.on("GetFeatureGroup", described(SEEN))
    fake.on("GetFeatureView", registry_pb2.GetFeatureViewResponse(view=encode_view(DELAYS)))
    fake.on("UpdateFeatureGroup", lambda r: registry_pb2.UpdateFeatureGroupResponse(group=r.group))
    fake.on("UpdateFeatureView", lambda r: registry_pb2.UpdateFeatureViewResponse(view=r.view))
    assert "is deprecated: use weather_2" in run("deprecate", "group:weather", "use weather_2").stdout
    assert "may be used again" in run("deprecate", "view:delays@3", "--undo").stdout
    assert run("deprecate", "group:weather").exit_code == 2
    assert run("deprecate", "model:late", "old").exit_code == 1
    [request] = fake.requests("UpdateFeatureGroup")
    assert request.group.etag == "e1"


def test_a_feature_is_added_by_hand(run: Run, fake: FakeForesight) -> None:
    fake.on("AddFeatures", lambda r: registry_pb2.AddFeaturesResponse(group=encode_group(SEEN)))
    assert (
        "weather v4 has snow; rows without a value read 0"
        in run("add-feature", "weather", "snow", "int64", "--default", "0", "--description", "in mm").stdout
    )
    assert run("add-feature", "weather", "sky", "string", "--default", "").exit_code == 0
    wrong = run("add-feature", "weather", "snow", "int64", "--default", "none")
    assert (wrong.exit_code, "not of type int64" in wrong.stderr) == (1, True)
    first, second = fake.requests("AddFeatures")
    assert first.features[0] == types_pb2.Field(name="snow", type=types_pb2.DATA_TYPE_INT64, description="in mm")
    assert list(second.defaults[0].string_values.values) == [""]


def test_dropping_asks_and_says_what_uses_it(run: Run, fake: FakeForesight) -> None:
    fake.on("GetFeatureGroup", described(SEEN, rows=7))
    fake.on("GetFeatureView", registry_pb2.GetFeatureViewResponse(view=encode_view(replace(DELAYS, etag="e3"))))
    fake.on("DropFeatureGroup", registry_pb2.DropFeatureGroupResponse(rows=7))
    fake.on("DropFeatureView", registry_pb2.DropFeatureViewResponse())
    asked = run("drop", "group", "weather", 1, input="n\n")
    assert asked.exit_code == 1
    assert "with its 7 rows" in asked.stderr
    assert fake.requests("DropFeatureGroup") == []
    assert "is gone, with 7 rows" in run("drop", "group", "weather", 1, "--yes").stdout
    assert run("drop", "view", "delays", 3, input="y\n").exit_code == 0
    [group], [view] = fake.requests("DropFeatureGroup"), fake.requests("DropFeatureView")
    assert (group.group, group.etag, view.view, view.etag) == (ref("weather", 1), "e1", ref("delays", 3), "e3")
    fake.on("DropFeatureGroup", errors.FailedPrecondition("the feature group weather version 1 is used by delays"))
    refused = run("drop", "group", "weather", 1, "--yes")
    assert (refused.exit_code, "is used by delays" in refused.stderr) == (1, True)


def test_groups_show_who_answers_for_them(run: Run, fake: FakeForesight) -> None:
    group = replace(SEEN, deprecation="use weather_2", expectations=(Expectation(Range(min=0), "wind"),))
    fake.on("ListFeatureGroups", registry_pb2.ListFeatureGroupsResponse(groups=[encode_group(group)]))
    shown = run("groups").stdout
    for text in ("meteo", "team=north, tier", "use weather_2"):
        assert text in shown
    [plain] = json.loads(run("groups", "--json").stdout)
    assert plain["expectations"] == [{"name": "wind_range", "column": "wind", "range": {"min": 0.0, "max": None}}]
    assert plain["tags"] == {"team": "north", "tier": ""}
    assert ORIGIN.name in shown
