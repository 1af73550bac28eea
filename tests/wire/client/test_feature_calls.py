"""Groups, views and their rows: what each call sends, and what it makes of the answer."""

from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from foresight.client import (
    Client,
    DataType,
    FeatureGroup,
    Field,
    InvalidArgument,
    InvalidValue,
    transform,
)
from foresight.feature_store.v1 import offline_pb2, registry_pb2
from foresight.tables import decode_table, encode_table
from foresight.wire import encode_group, encode_instant, encode_view
from tests.wire.client.delays import DELAYS, HOUR, LATE, NOON, ORIGIN, WEATHER, WIND, described_view, ref
from tests.wire.client.fake_foresight import FakeForesight, pieces, tables


def is_rush_hour(hour: Any) -> Any:
    """Whether many fly."""
    return hour >= 16


def _group(*features: Field, version: int = 1) -> registry_pb2.GetFeatureGroupResponse:
    return registry_pb2.GetFeatureGroupResponse(
        group=encode_group(FeatureGroup("weather", (ORIGIN,), features, version=version))
    )


def test_groups_are_registered_before_the_views_that_need_them(client: Client, fake: FakeForesight) -> None:
    order: list[str] = []

    def register_group(request: Any) -> Any:
        order.append("group")
        return registry_pb2.RegisterFeatureGroupResponse(group=encode_group(WEATHER), created=True)

    def register_view(request: Any) -> Any:
        order.append("view")
        return registry_pb2.RegisterFeatureViewResponse(view=encode_view(DELAYS), created=False)

    fake.on("RegisterFeatureGroup", register_group)
    fake.on("RegisterFeatureView", register_view)
    view, group = client.register(DELAYS, WEATHER)
    assert order == ["group", "view"]
    assert (view.thing, view.created) == (DELAYS, False)
    assert (group.thing, group.created) == (WEATHER, True)
    assert client.apply(WEATHER) == [WEATHER]


def test_only_groups_and_views_can_be_registered(client: Client) -> None:
    with pytest.raises(InvalidValue, match="a str is neither"):
        client.apply("weather")  # type: ignore[arg-type]


def test_a_write_has_the_types_of_the_group_and_an_id_of_its_own(client: Client, fake: FakeForesight) -> None:
    fake.on("GetFeatureGroup", _group(WIND))
    fake.on("WriteFeatures", offline_pb2.WriteFeaturesResponse(commit=4, committed_at=encode_instant(NOON), rows=1))
    frame = pd.DataFrame({"origin": ["JFK"], "event_time": [pd.Timestamp(NOON)], "wind": [3]})
    commit = client.write("weather", frame)
    client.write("weather", frame, write_id="mine")
    assert (commit.number, commit.committed_at, commit.rows, commit.duplicate) == (4, NOON, 1, False)
    first, second = fake.requests("WriteFeatures")
    assert len(first[0].header.write_id) == 36
    assert second[0].header.write_id == "mine"
    assert decode_table([tables(first)]).to_pylist() == [{"origin": "JFK", "event_time": NOON, "wind": 3.0}]
    assert len(fake.requests("GetFeatureGroup")) == 1


def test_a_write_that_is_refused_looks_for_a_new_version_of_the_group(client: Client, fake: FakeForesight) -> None:
    """Another client may have changed a column's type since this one looked."""
    fake.on("GetFeatureGroup", _group(WIND), _group(Field("wind", DataType.STRING), version=2))
    fake.on("WriteFeatures", offline_pb2.WriteFeaturesResponse(commit=1))
    client.write("weather", [{"origin": "JFK", "event_time": NOON, "wind": 1.0}])
    client.write("weather", [{"origin": "JFK", "event_time": NOON, "wind": "strong"}])
    fake.on("WriteFeatures", InvalidValue("wind", "is wrong"))
    with pytest.raises(InvalidArgument):
        client.write("weather", [{"origin": "JFK", "event_time": NOON, "wind": "strong"}])
    assert len(fake.requests("GetFeatureGroup")) == 3


def test_reading_a_group_sends_the_window_and_gives_a_frame(client: Client, fake: FakeForesight) -> None:
    table = pa.table({"origin": ["JFK"], "event_time": [NOON], "wind": [1.5]})
    fake.on("ReadFeatures", lambda request: pieces(offline_pb2.ReadFeaturesResponse, encode_table(table)))
    frame = client.read("weather", version=2, from_event_time=NOON, to_event_time=NOON + HOUR, latest=True, commit=9)
    assert frame["wind"].tolist() == [1.5]
    assert client.read("weather", output="polars").shape == (1, 3)
    first, second = fake.requests("ReadFeatures")
    assert (first.query.group, first.commit, first.query.latest_only) == (ref("weather", 2), 9, True)
    assert (first.query.from_event_time, first.query.to_event_time) == (
        encode_instant(NOON),
        encode_instant(NOON + HOUR),
    )
    assert not second.query.HasField("from_event_time")


def test_a_spine_has_the_types_of_the_view_and_keeps_its_other_columns(client: Client, fake: FakeForesight) -> None:
    fake.on("GetFeatureView", described_view())

    def joined(request: Any) -> Any:
        spine = decode_table([tables(request)])
        return pieces(offline_pb2.ReadAsOfResponse, encode_table(spine.append_column("wind", pa.array([2.0]))))

    fake.on("ReadAsOf", joined)
    spine = pd.DataFrame({"origin": ["JFK"], "event_time": [pd.Timestamp(NOON)], "hour": [17.0], "mine": ["x"]})
    table = client.read_as_of("delays", spine, known_by=True, commit=5, output="arrow")
    assert table.to_pylist() == [{"origin": "JFK", "event_time": NOON, "hour": 17, "mine": "x", "wind": 2.0}]
    [request] = fake.requests("ReadAsOf")
    assert request[0].header == offline_pb2.AsOfHeader(view=ref("delays", 3), known_by=True, commit=5)


def test_transforms_are_functions_of_modules() -> None:
    made = transform(is_rush_hour, inputs=["hour"], output=Field("rush_hour", DataType.BOOL))
    assert made.function == f"{__name__}:is_rush_hour"
    for function in (lambda hour: hour, pd.DataFrame.sum, 3):
        with pytest.raises(InvalidValue):
            transform(function, inputs=["hour"], output=LATE)  # type: ignore[arg-type]
