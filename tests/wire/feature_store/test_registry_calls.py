"""Groups and views as they age, and lineage, over the stubs; and what wrong requests get."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import grpc
import pyarrow as pa
import pytest

from foresight.feature_store.v1 import (
    lineage_pb2,
    lineage_pb2_grpc,
    offline_pb2,
    registry_pb2,
    training_dataset_pb2,
)
from foresight.types.v1 import types_pb2
from tests.wire.feature_store.test_feature_store_calls import T0, UTC_MICROS, Calls, Code, refused, rows, uploaded

_NUMBERS = itertools.count()
GROUP, VIEW, DATASET, MODEL, DEPLOYMENT, SOURCE = (
    getattr(lineage_pb2, f"THING_KIND_{name}")
    for name in ("FEATURE_GROUP", "FEATURE_VIEW", "TRAINING_DATASET", "MODEL", "DEPLOYMENT", "SOURCE")
)
Thing = lineage_pb2.Thing
INT = types_pb2.DATA_TYPE_INT64
SNOW = types_pb2.Field(name="snow", type=INT)


@pytest.fixture
def calls(channel: grpc.Channel) -> Calls:
    """Stubs with a fresh group and view."""
    return Calls(channel)


@pytest.fixture
def lineage(channel: grpc.Channel) -> lineage_pb2_grpc.LineageServiceStub:
    """The lineage service."""
    return lineage_pb2_grpc.LineageServiceStub(channel)


def default(*values: int, name: str = "snow") -> types_pb2.Column:
    """A column of integers."""
    return types_pb2.Column(name=name, int64_values=types_pb2.Int64Values(values=values))


def added(calls: Calls, **fields: Any) -> registry_pb2.AddFeaturesRequest:
    """The request that adds snow to the group."""
    asked: dict[str, Any] = {"group": calls.group, "features": [SNOW], "defaults": [default(0)]} | fields
    return registry_pb2.AddFeaturesRequest(**asked)


def names(things: Any) -> list[tuple[int, str, int]]:
    """Things without their labels."""
    return [(thing.kind, thing.name, thing.version) for thing in things]


def test_a_feature_is_added_in_place(calls: Calls) -> None:
    calls.write(rows(1.5))
    before = calls.registered_group.group
    group = calls.registry.AddFeatures(added(calls, etag=before.etag)).group
    assert (group.version, [f.name for f in group.features]) == (1, ["wind", "snow"])
    assert [(c.name, list(c.int64_values.values)) for c in group.defaults] == [("snow", [0])]
    assert group.etag != before.etag
    assert calls.read()["snow"].to_pylist() == [0]
    # The file that registered the group does not know of it, and is applied again.
    assert calls.register() == (False, False)
    assert calls.registered_group.group == group
    refused(Code.ABORTED, "STALE_ETAG", lambda: calls.registry.AddFeatures(added(calls, etag=before.etag)))


def test_what_is_said_is_updated_whole(calls: Calls) -> None:
    asked = registry_pb2.FeatureGroup(name=calls.group.name, version=1, owner="meteo", deprecation="use another")
    asked.tags.add(key="team", value="north")
    asked.expectations.add(column="wind", range=registry_pb2.Range(min=0))
    asked.failure_policy = registry_pb2.FAILURE_POLICY_QUARANTINE
    group = calls.registry.UpdateFeatureGroup(registry_pb2.UpdateFeatureGroupRequest(group=asked)).group
    assert (group.owner, group.deprecation, group.tags[0].value) == ("meteo", "use another", "north")
    assert (group.expectations[0].name, group.failure_policy) == ("wind_range", 2)
    assert [f.description for f in group.features] == ["m/s"]
    listed = calls.registry.ListFeatureGroups(registry_pb2.ListFeatureGroupsRequest()).groups
    assert group in listed
    # A view over it is registered, and its author told.
    view = calls.registered_view.view
    view.label.name = "much_later"
    answer = calls.registry.RegisterFeatureView(registry_pb2.RegisterFeatureViewRequest(view=view))
    assert list(answer.warnings) == [f"the feature group {calls.group.name} version 1 is deprecated: use another"]
    described = registry_pb2.FeatureView(name=calls.view.name, description="asked early", etag=answer.view.etag)
    updated = calls.registry.UpdateFeatureView(registry_pb2.UpdateFeatureViewRequest(view=described)).view
    assert (updated.version, updated.description, updated.features) == (2, "asked early", answer.view.features)
    refused(
        Code.ABORTED,
        "STALE_ETAG",
        lambda: calls.registry.UpdateFeatureView(registry_pb2.UpdateFeatureViewRequest(view=described)),
    )


def test_a_search_finds_group_view_and_feature(calls: Calls) -> None:
    found = calls.registry.Search(registry_pb2.SearchRequest(query=calls.group.name.upper())).results
    assert [(f.kind, f.thing.name, f.feature) for f in found] == [(1, calls.group.name, "")]
    found = calls.registry.Search(registry_pb2.SearchRequest(query=f"wind {calls.group.name}")).results
    assert (3, calls.group.name, "wind") in [(f.kind, f.thing.name, f.feature) for f in found]
    assert len(calls.registry.Search(registry_pb2.SearchRequest(limit=1)).results) == 1


def test_lineage_goes_from_the_source_to_the_deployment(
    calls: Calls, lineage: lineage_pb2_grpc.LineageServiceStub
) -> None:
    """And keeps everything that is used."""
    number = next(_NUMBERS)
    declared = calls.registered_group.group
    declared.source = f"table:weather_{number}"
    calls.registry.UpdateFeatureGroup(registry_pb2.UpdateFeatureGroupRequest(group=declared))
    header = offline_pb2.WriteHeader(group=calls.group, source=f"loader_{number}")
    loaded = rows(1.0).append_column("known_at", pa.array([T0], UTC_MICROS))
    calls.offline.WriteFeatures(uploaded(offline_pb2.WriteFeaturesRequest, header, loaded))
    spine = pa.table({"place": ["a"], "event_time": pa.array([T0], UTC_MICROS), "hour": [1], "late": pa.array([True])})
    asked = training_dataset_pb2.TrainingDatasetHeader(name="january", view=calls.view)
    dataset = calls.datasets.CreateTrainingDataset(
        uploaded(training_dataset_pb2.CreateTrainingDatasetRequest, asked, spine)
    ).dataset
    model, deployment = Thing(kind=MODEL, name=f"m_{number}", version=2), Thing(kind=DEPLOYMENT, name=f"d_{number}")
    view = Thing(kind=VIEW, name=calls.view.name, version=1)
    used = [view, Thing(kind=DATASET, name=dataset.id)]
    lineage.DeclareUses(lineage_pb2.DeclareUsesRequest(user=model, used=used))
    lineage.DeclareUses(lineage_pb2.DeclareUsesRequest(user=deployment, used=[model]))
    line = [
        (SOURCE, f"loader_{number}", 0),
        (SOURCE, f"table:weather_{number}", 0),
        (GROUP, calls.group.name, 1),
        (VIEW, calls.view.name, 1),
        (DATASET, dataset.id, 0),
        (MODEL, f"m_{number}", 2),
        (DEPLOYMENT, f"d_{number}", 0),
    ]
    for kind, name, version in line:
        start = Thing(kind=kind, name=name, version=version if kind == DATASET else 0)
        answer = lineage.GetLineage(lineage_pb2.GetLineageRequest(thing=start))
        assert names(answer.things)[0] == (kind, name, version)
        expected = [thing for thing in line if kind != SOURCE or thing[0] != SOURCE or thing[1] == name]
        assert sorted(names(answer.things)) == sorted(expected)
        assert not answer.truncated
        uses = {(*names([use.user]), *names([use.used])): use for use in answer.uses}
        assert (line[5], line[3]) in uses
        assert (line[5], line[4]) in uses
        assert (line[6], line[5]) in uses
        assert (line[3], line[2]) in uses
        asserted = {used[1] for (_, used), use in uses.items() if use.known_at_asserted}
        assert asserted == ({f"loader_{number}"} & {thing[1] for thing in expected})
        assert next(thing.label for thing in answer.things if thing.kind == DATASET) == "january"
    near = lineage.GetLineage(lineage_pb2.GetLineageRequest(thing=view, depth=1))
    assert {kind for kind, _, _ in names(near.things)} == {VIEW, GROUP, DATASET, MODEL}

    def drop_view() -> Any:
        return calls.registry.DropFeatureView(registry_pb2.DropFeatureViewRequest(view=calls.view))

    def drop_group() -> Any:
        return calls.registry.DropFeatureGroup(registry_pb2.DropFeatureGroupRequest(group=calls.group))

    refused(Code.FAILED_PRECONDITION, "FAILED_PRECONDITION", drop_view)
    refused(Code.FAILED_PRECONDITION, "FAILED_PRECONDITION", drop_group)
    refused(
        Code.FAILED_PRECONDITION,
        "FAILED_PRECONDITION",
        lambda: calls.datasets.DeleteTrainingDataset(
            training_dataset_pb2.DeleteTrainingDatasetRequest(dataset_id=dataset.id)
        ),
    )
    # A model that a deployment serves is not gone; without both, the rest can go, from the end to the start.
    gone = lineage_pb2.DeclareUsesRequest(user=model)
    refused(Code.FAILED_PRECONDITION, "FAILED_PRECONDITION", lambda: lineage.DeclareUses(gone))
    lineage.DeclareUses(lineage_pb2.DeclareUsesRequest(user=deployment))
    lineage.DeclareUses(gone)
    lineage.DeclareUses(gone)
    calls.datasets.DeleteTrainingDataset(training_dataset_pb2.DeleteTrainingDatasetRequest(dataset_id=dataset.id))
    drop_view()
    assert drop_group().rows == 1
    refused(Code.NOT_FOUND, "NOT_FOUND", drop_group)
    refused(Code.NOT_FOUND, "NOT_FOUND", calls.read)


def test_a_declaration_takes_the_place_of_the_one_before(
    calls: Calls, lineage: lineage_pb2_grpc.LineageServiceStub
) -> None:
    model = Thing(kind=MODEL, name=f"m_{next(_NUMBERS)}_again", version=1)
    view = Thing(kind=VIEW, name=calls.view.name, version=1)
    unchanged = calls.registered_view.view
    unchanged.label.name = "another"
    other = calls.registry.RegisterFeatureView(registry_pb2.RegisterFeatureViewRequest(view=unchanged)).view
    newer = Thing(kind=VIEW, name=other.name, version=other.version)
    for used in ([view], [view], [view, newer], [newer]):
        lineage.DeclareUses(lineage_pb2.DeclareUsesRequest(user=model, used=used))
        answer = lineage.GetLineage(lineage_pb2.GetLineageRequest(thing=model, depth=1))
        assert names(answer.things)[1:] == names(used)
    calls.registry.DropFeatureView(registry_pb2.DropFeatureViewRequest(view=calls.view))
    missing = lineage_pb2.DeclareUsesRequest(user=model, used=[newer, view])
    refused(Code.NOT_FOUND, "NOT_FOUND", lambda: lineage.DeclareUses(missing))
    answer = lineage.GetLineage(lineage_pb2.GetLineageRequest(thing=model, depth=1))
    assert names(answer.things)[1:] == names([newer])


Wrong = Callable[[Calls], Any]
CHANGES: dict[str, tuple[Wrong, Code, str]] = {
    "no features": (lambda c: added(c, features=[]), Code.INVALID_ARGUMENT, "features"),
    "no default": (lambda c: added(c, defaults=[]), Code.INVALID_ARGUMENT, "defaults"),
    "a default too many": (
        lambda c: added(c, defaults=[default(0), default(0, name="hail")]),
        Code.INVALID_ARGUMENT,
        "defaults",
    ),
    "a default twice": (lambda c: added(c, defaults=[default(0)] * 2), Code.INVALID_ARGUMENT, "defaults"),
    "a default of two rows": (lambda c: added(c, defaults=[default(0, 1)]), Code.INVALID_ARGUMENT, "defaults[snow]"),
    "a feature twice": (lambda c: added(c, features=[SNOW] * 2), Code.INVALID_ARGUMENT, "features"),
    "an unknown type": (
        lambda c: added(c, features=[types_pb2.Field(name="snow")]),
        Code.INVALID_ARGUMENT,
        "features[0].type",
    ),
    "a reserved name": (
        lambda c: added(
            c, features=[types_pb2.Field(name="event_time", type=INT)], defaults=[default(0, name="event_time")]
        ),
        Code.INVALID_ARGUMENT,
        "features",
    ),
    "SQL as a name": (
        lambda c: added(c, features=[types_pb2.Field(name="x; DROP TABLE", type=INT)]),
        Code.INVALID_ARGUMENT,
        "features[0].name",
    ),
    "a feature that is there": (
        lambda c: added(
            c,
            features=[types_pb2.Field(name="wind", type=INT)],
            defaults=[default(0, name="wind")],
        ),
        Code.ALREADY_EXISTS,
        "",
    ),
    "no group": (lambda c: added(c, group=types_pb2.VersionRef(name="nowhere")), Code.NOT_FOUND, ""),
    "a stale etag": (lambda c: added(c, etag="0"), Code.ABORTED, ""),
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_addition_that_is_wrong_changes_nothing(calls: Calls, what: str) -> None:
    make, code, field = CHANGES[what]
    reasons = {
        Code.INVALID_ARGUMENT: "INVALID_FIELD",
        Code.ALREADY_EXISTS: "ALREADY_EXISTS",
        Code.NOT_FOUND: "NOT_FOUND",
        Code.ABORTED: "STALE_ETAG",
    }
    fields = refused(code, reasons[code], lambda: calls.registry.AddFeatures(make(calls)))
    assert fields == ([field] if field else [])
    present = calls.registry.GetFeatureGroup(registry_pb2.GetFeatureGroupRequest(group=calls.group)).group
    assert present == calls.registered_group.group


def test_wrong_words_about_a_group_are_refused(calls: Calls) -> None:
    def update(change: Callable[[registry_pb2.FeatureGroup], object]) -> Callable[[], Any]:
        asked = registry_pb2.FeatureGroup(name=calls.group.name)
        change(asked)
        return lambda: calls.registry.UpdateFeatureGroup(registry_pb2.UpdateFeatureGroupRequest(group=asked))

    wrong: list[tuple[Callable[[registry_pb2.FeatureGroup], object], str]] = [
        (lambda g: g.tags.extend([registry_pb2.Tag(key="a")] * 2), "tags"),
        (lambda g: g.expectations.add(column="wind"), "expectations[0].rule"),
        (lambda g: g.expectations.add(column="rain", not_null=registry_pb2.NotNull()), "expectations.rain_not_null"),
        (lambda g: setattr(g, "failure_policy", 9), "failure_policy"),
        (lambda g: setattr(g, "owner", "x" * 256), "owner"),
        (lambda g: setattr(g, "etag", "x" * 129), "etag"),
        (lambda g: setattr(g, "name", "Weather"), "group.name"),
    ]
    for change, field in wrong:
        assert refused(Code.INVALID_ARGUMENT, "INVALID_FIELD", update(change)) == [field]
    registered = calls.registered_group.group
    registered.etag = "another"
    again = registry_pb2.RegisterFeatureGroupRequest(group=registered)
    refused(Code.ABORTED, "STALE_ETAG", lambda: calls.registry.RegisterFeatureGroup(again))


def test_only_a_version_that_is_named_is_dropped(calls: Calls) -> None:
    latest = types_pb2.VersionRef(name=calls.view.name)
    drop_view = registry_pb2.DropFeatureViewRequest(view=latest)
    assert refused(Code.INVALID_ARGUMENT, "INVALID_FIELD", lambda: calls.registry.DropFeatureView(drop_view)) == [
        "view.version"
    ]
    drop_group = registry_pb2.DropFeatureGroupRequest(group=types_pb2.VersionRef(name=calls.group.name))
    assert refused(Code.INVALID_ARGUMENT, "INVALID_FIELD", lambda: calls.registry.DropFeatureGroup(drop_group)) == [
        "group.version"
    ]
    stale = registry_pb2.DropFeatureViewRequest(view=calls.view, etag="another")
    refused(Code.ABORTED, "STALE_ETAG", lambda: calls.registry.DropFeatureView(stale))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (registry_pb2.SearchRequest(limit=1_001), "limit"),
        (registry_pb2.SearchRequest(query="x" * 256), "query"),
        (registry_pb2.SearchRequest(query="a\0"), "query"),
        (registry_pb2.SearchRequest(owner="x" * 256), "owner"),
        (registry_pb2.SearchRequest(tags=[registry_pb2.Tag(key="A")]), "tags"),
        (registry_pb2.SearchRequest(tags=[registry_pb2.Tag(key="a")] * 2), "tags"),
    ],
)
def test_a_search_has_bounds(calls: Calls, request_: registry_pb2.SearchRequest, field: str) -> None:
    assert refused(Code.INVALID_ARGUMENT, "INVALID_FIELD", lambda: calls.registry.Search(request_)) == [field]


LATE = Thing(kind=MODEL, name="late", version=1)
DECLARATIONS: dict[str, tuple[lineage_pb2.DeclareUsesRequest, str]] = {
    "nobody": (lineage_pb2.DeclareUsesRequest(), "user.kind"),
    "a view as user": (
        lineage_pb2.DeclareUsesRequest(user=Thing(kind=VIEW, name="v", version=1)),
        "user.kind",
    ),
    "a model without a version": (lineage_pb2.DeclareUsesRequest(user=Thing(kind=MODEL, name="m")), "user.version"),
    "a model without a name": (lineage_pb2.DeclareUsesRequest(user=Thing(kind=MODEL, version=1)), "user.name"),
    "a deployment with a version": (
        lineage_pb2.DeclareUsesRequest(user=Thing(kind=DEPLOYMENT, name="d", version=1)),
        "user.version",
    ),
    "a name in capitals": (lineage_pb2.DeclareUsesRequest(user=Thing(kind=DEPLOYMENT, name="D")), "user.name"),
    "an unknown kind": (
        lineage_pb2.DeclareUsesRequest(user=LATE, used=[Thing(kind=9, name="x")]),  # type: ignore[arg-type]  # unknown
        "used[0].kind",
    ),
    "a group as used": (
        lineage_pb2.DeclareUsesRequest(user=LATE, used=[Thing(kind=GROUP, name="g", version=1)]),
        "used[0].kind",
    ),
    "the latest view": (
        lineage_pb2.DeclareUsesRequest(user=LATE, used=[Thing(kind=VIEW, name="v")]),
        "used[0].version",
    ),
    "itself": (lineage_pb2.DeclareUsesRequest(user=LATE, used=[LATE]), "used[0]"),
    "a thing twice": (
        lineage_pb2.DeclareUsesRequest(user=LATE, used=[Thing(kind=VIEW, name="v", version=1)] * 2),
        "used",
    ),
    "257 things": (
        lineage_pb2.DeclareUsesRequest(user=LATE, used=[Thing(kind=VIEW, name="v", version=i) for i in range(1, 258)]),
        "used",
    ),
    "a version beyond all": (
        lineage_pb2.DeclareUsesRequest(user=Thing(kind=MODEL, name="m", version=2**31)),
        "user.version",
    ),
}


@pytest.mark.parametrize("what", DECLARATIONS)
def test_a_declaration_that_is_wrong_is_refused(lineage: lineage_pb2_grpc.LineageServiceStub, what: str) -> None:
    request, field = DECLARATIONS[what]
    assert refused(Code.INVALID_ARGUMENT, "INVALID_FIELD", lambda: lineage.DeclareUses(request)) == [field]


@pytest.mark.parametrize(
    "thing",
    [
        Thing(kind=SOURCE, name="nowhere"),
        Thing(kind=GROUP, name="nowhere"),
        Thing(kind=VIEW, name="nowhere", version=3),
        Thing(kind=DATASET, name="nowhere"),
        Thing(kind=MODEL, name="nowhere"),
        Thing(kind=DEPLOYMENT, name="nowhere"),
    ],
)
def test_an_unknown_thing_has_no_lineage(
    lineage: lineage_pb2_grpc.LineageServiceStub, thing: lineage_pb2.Thing
) -> None:
    request = lineage_pb2.GetLineageRequest(thing=thing)
    refused(Code.NOT_FOUND, "NOT_FOUND", lambda: lineage.GetLineage(request))


def test_lineage_goes_sixteen_steps_at_most(calls: Calls, lineage: lineage_pb2_grpc.LineageServiceStub) -> None:
    request = lineage_pb2.GetLineageRequest(thing=Thing(kind=GROUP, name=calls.group.name), depth=17)
    assert refused(Code.INVALID_ARGUMENT, "INVALID_FIELD", lambda: lineage.GetLineage(request)) == ["depth"]
