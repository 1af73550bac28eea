"""Statistics over the wire, by the client: every kind of rows, and what wrong requests get."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from foresight.client import (
    Client,
    Connection,
    DatasetRows,
    DataType,
    FailedPrecondition,
    FeatureGroup,
    FeatureView,
    Field,
    GroupRows,
    InvalidArgument,
    InvalidValue,
    LogRows,
    NotFound,
    OutOfRange,
    Retry,
    ViewFeature,
    ViewSource,
)
from foresight.feature_store.v1 import statistics_pb2, statistics_pb2_grpc
from foresight.types.v1 import types_pb2

T0 = datetime(2026, 2, 1, tzinfo=UTC)
_NUMBERS = itertools.count()


@pytest.fixture
def client(channel: grpc.Channel) -> Client:
    """The client of the running feature store."""
    return Client(connection=Connection(channel, "localhost", Retry(5.0)))


@pytest.fixture
def group(client: Client) -> str:
    """A group with two commits."""
    name = f"described_{next(_NUMBERS)}"
    client.apply(FeatureGroup(name, (Field("place", DataType.STRING),), (Field("wind", DataType.FLOAT64),)))
    client.write(
        name, [{"place": f"p{i % 3}", "event_time": T0 + timedelta(hours=i), "wind": float(i)} for i in range(20)]
    )
    client.write(name, [{"place": "p0", "event_time": T0 + timedelta(days=9), "wind": None}])
    return name


def test_a_group_is_described_by_commit_and_by_its_latest_rows(client: Client, group: str) -> None:
    frame = client.statistics(group=group)
    assert list(frame["column"]) == ["place", "event_time", "wind"]
    assert (frame["rows"][2], frame["nulls"][2]) == (1, 1)
    last = int(frame.attrs["rows_of"].rpartition(" ")[2])
    assert frame.attrs["rows_of"] == f"{group} v1, commit {last}"
    before = client.statistics(group=group, commit=last - 1).set_index("column")
    assert before.loc["wind", "min"] == 0.0
    assert before.loc["wind", "mean"] == 9.5
    assert before.loc["event_time", "max"] == T0 + timedelta(hours=19)
    assert before.loc["place", "top_values"] == ["p0", "p1", "p2"]
    assert list(before.loc["place", "top_counts"]) == [7, 7, 6]
    latest = client.statistics(GroupRows(group, latest=True), output="arrow")
    assert latest.schema.metadata[b"rows_of"].decode() == f"{group} v1, latest rows as of commit {last}"
    assert latest["rows"].to_pylist() == [3, 3, 3]


def test_rows_are_compared(client: Client, group: str) -> None:
    last = int(client.statistics(group=group).attrs["rows_of"].rpartition(" ")[2])
    frame = client.compare_statistics(GroupRows(group, last - 1), GroupRows(group, latest=True))
    assert list(frame["column"]) == ["place", "event_time", "wind"]
    assert frame["new_values_share"][0] == 0.0
    assert frame["null_share_change"][2] == pytest.approx(1 / 3)
    assert frame.attrs["against"] == f"{group} v1, commit {last - 1}"


def test_a_training_dataset_is_described(client: Client, group: str) -> None:
    view = f"{group}_view"
    client.apply(FeatureView(view, Field("late", DataType.BOOL), (ViewSource(group, (ViewFeature("wind"),)),)))
    spine = [{"place": "p1", "event_time": T0 + timedelta(hours=i), "late": i > 5} for i in range(10)]
    dataset = client.create_training_dataset(f"{group}_data", view, spine, test_from=T0 + timedelta(hours=6))
    frame = client.statistics(dataset=dataset, split="test").set_index("column")
    assert (frame.loc["late", "rows"], frame.loc["late", "mean"]) == (4, 1.0)
    compared = client.compare_statistics(DatasetRows(dataset, "train"), DatasetRows(dataset.id, "test"))
    assert dict(zip(compared["column"], compared["new_values_share"], strict=True))["late"] == 1.0


def test_what_is_not_there_is_said(client: Client, group: str) -> None:
    with pytest.raises(NotFound):
        client.statistics(group="no_such_group")
    with pytest.raises(NotFound):
        client.statistics(dataset="0197")
    with pytest.raises(NotFound):
        client.statistics(log="no_such_view")
    with pytest.raises(OutOfRange):
        client.statistics(group=group, commit=2**40)
    view = f"{group}_unlogged"
    client.apply(FeatureView(view, Field("late", DataType.BOOL), (ViewSource(group, (ViewFeature("wind"),)),)))
    with pytest.raises(FailedPrecondition, match="reingested"):
        client.statistics(log=view)
    empty = f"{group}_empty"
    client.apply(FeatureGroup(empty, (Field("place", DataType.STRING),), (Field("wind", DataType.FLOAT64),)))
    with pytest.raises(FailedPrecondition, match="no rows yet"):
        client.statistics(group=empty)


def test_wrong_requests_name_the_field(client: Client, channel: grpc.Channel, group: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        client.statistics(dataset="x", split="holdout")
    assert [violation.field for violation in refused.value.violations] == ["target.dataset.split"]
    with pytest.raises(InvalidArgument) as refused:
        client.compare_statistics(GroupRows("Bad Name"), GroupRows(group))
    assert [violation.field for violation in refused.value.violations] == ["reference.commit.group.name"]
    with pytest.raises(InvalidArgument) as refused:
        client.statistics(LogRows("judged", T0, T0))
    assert [violation.field for violation in refused.value.violations] == ["target.log.from_event_time"]
    stub = statistics_pb2_grpc.StatisticsServiceStub(channel)
    unset = statistics_pb2.StatisticsTarget(log=statistics_pb2.LogWindow(view=types_pb2.VersionRef(name="judged")))
    for target in (statistics_pb2.StatisticsTarget(), unset):
        with pytest.raises(grpc.RpcError) as failed:
            list(stub.GetStatistics(statistics_pb2.GetStatisticsRequest(target=target)))
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(InvalidValue, match="named once"):
        client.statistics(group=group, log="judged")
