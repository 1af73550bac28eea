"""Reads and joins through the client and the stubs, against a feature store that is a process of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.rpc import error_details_pb2, status_pb2

from foresight.client import (
    Client,
    Connection,
    DataType,
    FeatureGroup,
    FeatureView,
    Field,
    InvalidArgument,
    InvalidValue,
    OutOfRange,
    Retry,
    ViewFeature,
    ViewSource,
    rows_of,
)
from foresight.feature_store.v1 import offline_pb2, offline_pb2_grpc, query_pb2
from foresight.tables import encode_table
from foresight.types.v1 import types_pb2
from foresight.values import Column
from foresight.wire import encode_column, encode_instant

T0 = datetime(2026, 2, 1, tzinfo=UTC)
_NUMBERS = itertools.count()


class Flights:
    """A client, a group of weather, a group of flights and the view that joins them, of the test's own."""

    def __init__(self, channel: grpc.Channel) -> None:
        number = next(_NUMBERS)
        self.client = Client(connection=Connection(channel, "the store", Retry(0.0)))
        self.stub = offline_pb2_grpc.OfflineFeatureServiceStub(channel)
        self.weather, self.flights, self.view = (f"{name}_{number}" for name in ("skies", "departures", "delays"))
        text, number_type = DataType.STRING, DataType.FLOAT64
        self.client.apply(
            FeatureGroup(self.weather, (Field("origin", text),), (Field("wind", number_type), Field("sky", text))),
            FeatureGroup(
                self.flights,
                (Field("flight", text), Field("leg", DataType.INT64)),
                (Field("origin", text), Field("miles", number_type), Field("delayed", DataType.BOOL)),
            ),
            FeatureView(
                self.view,
                Field("late", DataType.BOOL),
                (ViewSource(self.weather, (ViewFeature("wind"),)),),
                (Field("miles", number_type),),
            ),
        )
        winds = [("JFK", 0, 5.0, "clear"), ("JFK", 10, 15.0, "it's"), ("LGA", 0, None, None)]
        self.first = self.client.write(
            self.weather,
            [{"origin": o, "event_time": at(m), "wind": w, "sky": s} for o, m, w, s in winds],
        )
        flights = [("a", 1, "JFK"), ("a", 2, "LGA"), ("b", 1, "JFK")]
        self.client.write(
            self.flights,
            [
                {"flight": f, "leg": leg, "event_time": at(5), "origin": o, "miles": 100.0 * leg, "delayed": leg == 1}
                for f, leg, o in flights
            ],
        )


def at(minutes: float) -> datetime:
    """T0 plus minutes."""
    return T0 + timedelta(minutes=minutes)


@pytest.fixture
def flights(channel: grpc.Channel) -> Flights:
    """Groups and a view with some rows."""
    return Flights(channel)


def test_rows_are_read_by_key_condition_and_time(flights: Flights) -> None:
    """As a DataFrame, a list of columns, or batches."""
    client = flights.client
    frame = client.read(flights.weather, where=[("wind", ">", 5), ("sky", "!=", "clear")])
    assert frame[["origin", "wind"]].values.tolist() == [["JFK", 15.0]]
    keys = [{"flight": "a", "leg": 2}, {"flight": "b", "leg": 1}, {"flight": "b", "leg": 2}]
    found = client.read(flights.flights, keys=keys, output="arrow")
    assert found.select(["flight", "leg"]).to_pylist() == [{"flight": "a", "leg": 2}, {"flight": "b", "leg": 1}]
    assert client.read(flights.weather, latest=True, where=[("origin", "in", ["JFK", "LGA"])])["wind"].isna().sum() == 1
    assert len(client.read(flights.weather, where=[("sky", "=", "it's")])) == 1
    assert len(client.read(flights.weather, where=[("sky", "is null")])) == 1
    before = flights.first.committed_at - timedelta(microseconds=1)
    assert len(client.read(flights.weather, as_of_time=before)) == 0
    assert len(client.read(flights.weather, as_of_time=flights.first.committed_at)) == 3
    with client.stream(rows_of(flights.weather, where=[("origin", "=", "JFK")])) as batches:
        assert batches.schema.names == ["origin", "event_time", "wind", "sky", "known_at", "commit", "deleted"]
        assert sum(batch.num_rows for batch in batches) == 2


def test_scoring_data_are_made_of_rows(flights: Flights) -> None:
    """The latest row of each key at the time of asking, with the view's features; no spine is sent."""
    scored = flights.client.read_as_of(
        flights.view, rows_of(flights.flights, latest=True, at=at(12), where=[("leg", "=", 1)]), output="arrow"
    )
    assert scored.to_pylist() == [
        {"flight": f, "leg": 1, "event_time": at(12), "origin": "JFK", "wind": 15.0, "miles": 100.0} for f in ("a", "b")
    ]
    labelled = rows_of(flights.flights, columns={"delayed": "late"})
    with flights.client.stream_as_of(flights.view, labelled) as batches:
        rows = [row for batch in batches for row in batch.to_pylist()]
    assert [(row["flight"], row["leg"], row["wind"], row["late"]) for row in rows] == [
        ("a", 1, 5.0, True),
        ("a", 2, None, False),
        ("b", 1, 5.0, True),
    ]


def test_a_spine_may_be_a_file_or_come_in_batches(flights: Flights, tmp_path: Path) -> None:
    """With the same answer as in one piece; what comes once only is not for calls that may be repeated."""
    spine = pa.table(
        {
            "n": range(3_000),
            "origin": ["JFK", "LGA", None] * 1_000,
            "event_time": pa.array([at(i % 20) for i in range(3_000)], pa.timestamp("us", "UTC")),
            "miles": pa.array([1.0] * 3_000),
        }
    )
    whole = flights.client.read_as_of(flights.view, spine, output="arrow")
    assert whole["n"].to_pylist() == list(range(3_000))
    assert whole["wind"].to_pylist()[:4] == [5.0, None, None, 5.0]
    path = tmp_path / "spine.parquet"
    pq.write_table(spine, path, row_group_size=700)
    assert flights.client.read_as_of(flights.view, path, output="arrow").equals(whole)
    reader = pa.RecordBatchReader.from_batches(spine.schema, spine.to_batches(100))
    with flights.client.stream_as_of(flights.view, reader) as batches:
        assert pa.Table.from_batches(list(batches)).equals(whole)
    with pytest.raises(InvalidValue, match="stream_as_of"):
        flights.client.read_as_of(flights.view, reader)


def test_a_join_sees_the_commits_until_a_time(flights: Flights) -> None:
    """Reads of yesterday's data can be had again."""
    client = flights.client
    spine = [{"origin": "JFK", "event_time": at(20), "miles": 1.0}]
    later = client.write(flights.weather, [{"origin": "JFK", "event_time": at(10), "wind": 99.0}])
    before = later.committed_at - timedelta(microseconds=1)
    assert client.read_as_of(flights.view, spine)["wind"].tolist() == [99.0]
    assert client.read_as_of(flights.view, spine, as_of_time=before)["wind"].tolist() == [15.0]
    assert client.read_as_of(flights.view, spine, commit=later.number - 1)["wind"].tolist() == [15.0]
    with pytest.raises(InvalidArgument, match="as_of_time"):
        client.read_as_of(flights.view, spine, as_of_time=before, commit=1)
    with pytest.raises(OutOfRange):
        client.read(flights.weather, commit=later.number + 1_000)


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ([("gust", ">", 5)], "not a column of the group"),
        ([("wind", "~", 5)], "not one of"),
        ([("wind", ">")], "needs a value"),
        ([("wind", ">", None)], "is null"),
        ([("wind", ">", "much")], "not of type float64"),
        ([("wind", "is null", 1)], "takes no value"),
        ([("wind",)], "column, operator, value"),
    ],
)
def test_a_wrong_condition_is_refused_before_it_is_sent(flights: Flights, where: list[Any], fault: str) -> None:
    """With the name of what is wrong."""
    with pytest.raises(InvalidValue, match=fault):
        flights.client.read(flights.weather, where=where)


def test_wrong_keys_are_refused_before_they_are_sent(flights: Flights) -> None:
    """Missing, unknown, or none at all."""
    for keys, fault in (
        ([{"flight": "a"}], "leg is missing"),
        ([{"flight": "a", "leg": 1, "origin": "JFK"}], "'origin' is not a key"),
        ({"flight": [], "leg": []}, "are empty"),
    ):
        with pytest.raises(InvalidValue, match=fault):
            flights.client.read(flights.flights, keys=keys)


def violated(call: Callable[[], Any]) -> list[str]:
    """The fields that an INVALID_ARGUMENT names."""
    with pytest.raises(grpc.RpcError) as failed:
        call()
    error = failed.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    metadata: Any = error.trailing_metadata()
    trailers = dict(metadata)
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    found = []
    for detail in status.details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            found += [violation.field for violation in bad.field_violations]
    return found


def text(*values: str | None) -> types_pb2.Column:
    """A column of texts on the wire."""
    return encode_column(Column.build("origin", DataType.STRING, values))


def test_wrong_queries_are_refused_by_the_server(flights: Flights) -> None:
    """Whatever a client of another language may send."""
    group = types_pb2.VersionRef(name=flights.weather)
    equal = query_pb2.OPERATOR_EQUAL

    def read(**options: Any) -> Callable[[], Any]:
        query = query_pb2.GroupQuery(group=group, **options)
        return lambda: list(flights.stub.ReadFeatures(offline_pb2.ReadFeaturesRequest(query=query)))

    def condition(**options: Any) -> Callable[[], Any]:
        return read(where=[query_pb2.Condition(**options)])

    nothing = types_pb2.Column(name="x")
    assert violated(condition(column="sky", values=text("a"))) == ["query.where.operator"]
    assert violated(condition(column="sky", operator=equal)) == ["query.where.values"]
    assert violated(condition(column="sky", operator=equal, values=nothing)) == ["query.where.values[value]"]
    assert violated(condition(column="sky", operator=equal, values=text(None))) == ["query.where.values"]
    assert violated(condition(column="sky", operator=equal, values=text("a", "b"))) == ["query.where.values"]
    assert violated(condition(column="wind", operator=equal, values=text("a"))) == ["where.values"]
    assert violated(condition(column="x; DROP", operator=equal, values=text("a"))) == ["query.where.column"]
    assert violated(condition(column="absent", operator=query_pb2.OPERATOR_IS_NULL)) == ["where.column"]
    assert violated(read(where=[query_pb2.Condition(column="sky", operator=query_pb2.OPERATOR_NOT_NULL)] * 33)) == [
        "query.where"
    ]
    assert violated(read(keys=[text("a"), text("a")])) == ["query.keys"]
    assert violated(read(keys=[text(None)])) == ["query.keys[origin]"]
    assert violated(read(keys=[text(*map(str, range(100_001)))])) == ["query.keys"]
    assert violated(read(from_event_time=encode_instant(T0), to_event_time=encode_instant(T0))) == [
        "query.from_event_time"
    ]

    def join(chunk: bytes = b"", **options: Any) -> Callable[[], Any]:
        header = offline_pb2.AsOfHeader(
            view=types_pb2.VersionRef(name=flights.view),
            spine=query_pb2.SpineQuery(query=query_pb2.GroupQuery(group=group), **options),
        )
        requests = [offline_pb2.ReadAsOfRequest(header=header, arrow=chunk)]
        return lambda: list(flights.stub.ReadAsOf(iter(requests)))

    def mapped(column: str, name: str) -> query_pb2.ColumnMapping:
        return query_pb2.ColumnMapping(column=column, name=name)

    table = b"".join(encode_table(pa.table({"origin": ["JFK"]})))
    assert violated(join(table)) == ["arrow"]
    assert violated(join()) == ["arrow.miles"]
    assert violated(join(columns=[mapped("absent", "miles")])) == ["columns"]
    assert violated(join(columns=[mapped("wind", "A B")])) == ["header.spine.columns.name"]
    assert violated(join(columns=[mapped("wind", "miles")] * 2)) == ["header.spine.columns"]
    assert violated(join(columns=[mapped("sky", "miles")])) == ["arrow.miles"]
    assert violated(join(columns=[mapped("wind", "miles"), mapped("sky", "event_time")])) == ["arrow.event_time"]
