"""The feature store over its stubs: the whole way of a row, and what wrong requests get."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pyarrow as pa
import pytest
from google.rpc import error_details_pb2, status_pb2

from foresight.feature_store.v1 import (
    log_ingestion_pb2,
    log_ingestion_pb2_grpc,
    offline_pb2,
    offline_pb2_grpc,
    online_pb2,
    online_pb2_grpc,
    query_pb2,
    registry_pb2,
    registry_pb2_grpc,
    training_dataset_pb2,
    training_dataset_pb2_grpc,
)
from foresight.tables import decode_table, encode_table
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType, FeatureGroup, FeatureView, Field, ViewFeature, ViewSource
from foresight.values.instants import micros_from_instant
from foresight.wire import encode_column, encode_group, encode_instant, encode_view

T0 = datetime(2026, 2, 1, tzinfo=UTC)
UTC_MICROS = pa.timestamp("us", "UTC")
Code = grpc.StatusCode
_NUMBERS = itertools.count()


class Calls:
    """The stubs, a group `weather_<n>` and a view `judged_<n>` of the test's own."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.registry = registry_pb2_grpc.FeatureRegistryServiceStub(channel)
        self.offline = offline_pb2_grpc.OfflineFeatureServiceStub(channel)
        self.datasets = training_dataset_pb2_grpc.TrainingDatasetServiceStub(channel)
        self.online = online_pb2_grpc.OnlineFeatureServiceStub(channel)
        self.ingestion = log_ingestion_pb2_grpc.LogIngestionServiceStub(channel)
        number = next(_NUMBERS)
        self.group = types_pb2.VersionRef(name=f"weather_{number}", version=1)
        self.view = types_pb2.VersionRef(name=f"judged_{number}", version=1)
        self.created = self.register()

    def register(self) -> tuple[bool, bool]:
        """Registers both; answers which of them were new."""
        group = FeatureGroup(
            self.group.name, (Field("place", DataType.STRING),), (Field("wind", DataType.FLOAT64, description="m/s"),)
        )
        self.registered_group = self.registry.RegisterFeatureGroup(
            registry_pb2.RegisterFeatureGroupRequest(group=encode_group(group))
        )
        source = ViewSource(self.group.name, (ViewFeature("wind"),), timedelta(hours=1))
        view = FeatureView(self.view.name, Field("late", DataType.BOOL), (source,), (Field("hour", DataType.INT64),))
        self.registered_view = self.registry.RegisterFeatureView(
            registry_pb2.RegisterFeatureViewRequest(view=encode_view(view))
        )
        return self.registered_group.created, self.registered_view.created

    def write(self, table: pa.Table, write_id: str = "") -> offline_pb2.WriteFeaturesResponse:
        """Writes to the group."""
        header = offline_pb2.WriteHeader(group=self.group, write_id=write_id)
        return self.offline.WriteFeatures(uploaded(offline_pb2.WriteFeaturesRequest, header, table))

    def read(self, **options: Any) -> pa.Table:
        """Reads the group."""
        commit = options.pop("commit", 0)
        query = query_pb2.GroupQuery(group=self.group, **options)
        request = offline_pb2.ReadFeaturesRequest(query=query, commit=commit)
        return decode_table(answer.arrow for answer in self.offline.ReadFeatures(request))

    def vectors(self, places: list[str | None], event_time: datetime = T0) -> online_pb2.FeatureVectors:
        """Online vectors of the view."""
        return self.online.GetFeatureVectors(self.question(places, event_time)).vectors

    def question(self, places: list[Any], event_time: datetime = T0) -> online_pb2.GetFeatureVectorsRequest:
        """The request for online vectors."""
        key = encode_column(Column.build("place", DataType.STRING, places))
        return online_pb2.GetFeatureVectorsRequest(
            view=self.view, entity_keys=[key], event_time=encode_instant(event_time)
        )


@pytest.fixture
def calls(channel: grpc.Channel) -> Calls:
    """Stubs with a fresh group and view."""
    return Calls(channel)


def uploaded(message: Any, header: Any, table: pa.Table) -> Iterator[Any]:
    """The messages of an upload."""
    yield message(header=header)
    for chunk in encode_table(table):
        yield message(arrow=chunk)


def rows(*winds: float | None, place: str = "a") -> pa.Table:
    """One row per minute from T0 backwards."""
    times = [T0 - timedelta(minutes=i) for i in range(len(winds))]
    return pa.table(
        {
            "place": pa.array([place] * len(winds), pa.string()),
            "event_time": pa.array(times, UTC_MICROS),
            "wind": pa.array(winds, pa.float64()),
        }
    )


def refused(code: Code, reason: str, call: Callable[[], Any]) -> list[str]:
    """The violated fields of a call that has to fail with a status and a reason."""
    with pytest.raises(grpc.RpcError) as failed:
        call()
    error: Any = failed.value
    assert error.code() is code, error.details()
    details = next(value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin")
    status = status_pb2.Status.FromString(details)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("foresight", reason)
    for leak in ("/tmp", "SELECT", "rows_", "Traceback", "services."):
        assert leak not in status.message
    fields: list[str] = []
    for detail in status.details[1:]:
        assert detail.Unpack(bad)
        fields += [violation.field for violation in bad.field_violations]
    return fields


def test_a_row_goes_the_whole_way(calls: Calls) -> None:
    """Registered, written, read offline and online, joined, made into a dataset, and counted."""
    assert calls.created == (True, True)
    assert [f.name for f in calls.registered_view.view.features] == ["wind", "hour"]
    assert calls.registered_view.view.sources[0].group.version == 1
    assert calls.register() == (False, False)
    answer = calls.write(rows(1.5, None), "once")
    assert (answer.rows, answer.duplicate) == (2, False)
    again = calls.write(rows(1.5, None), "once")
    assert (again.commit, again.committed_at, again.duplicate) == (answer.commit, answer.committed_at, True)
    assert calls.read()["wind"].to_pylist() == [None, 1.5]
    assert calls.read(latest_only=True).num_rows == 1
    vectors = calls.vectors(["a", None])
    assert list(vectors.features[0].column.float64_values.values) == [1.5, 0.0]
    assert (vectors.features[0].statuses, vectors.features[0].column.validity) == (b"\x01\x03", b"\x01\x00")
    assert vectors.applied_commit >= answer.commit
    replay = online_pb2.ReplayFeatureVectorsRequest(
        view=calls.view,
        entity_keys=calls.question(["a", None]).entity_keys,
        event_time=encode_instant(T0),
        applied_commit=vectors.applied_commit,
    )
    assert calls.online.ReplayFeatureVectors(replay).vectors == vectors
    spine = pa.table({"place": ["a", "b"], "event_time": pa.array([T0, T0], UTC_MICROS), "hour": [1, 2]})
    header = offline_pb2.AsOfHeader(view=types_pb2.VersionRef(name=calls.view.name))
    joined = calls.offline.ReadAsOf(uploaded(offline_pb2.ReadAsOfRequest, header, spine))
    assert decode_table(part.arrow for part in joined)["wind"].to_pylist() == [1.5, None]
    named = training_dataset_pb2.TrainingDatasetHeader(name="first", view=calls.view, test_from=encode_instant(T0))
    labelled = spine.append_column("late", pa.array([True, False]))
    dataset = calls.datasets.CreateTrainingDataset(
        uploaded(training_dataset_pb2.CreateTrainingDatasetRequest, named, labelled)
    ).dataset
    assert [(split.split, split.rows) for split in dataset.splits] == [("test", 2)]
    described = calls.datasets.GetTrainingDataset(training_dataset_pb2.GetTrainingDatasetRequest(dataset_id=dataset.id))
    assert described.dataset == dataset
    stored = calls.datasets.ReadTrainingDataset(training_dataset_pb2.ReadTrainingDatasetRequest(dataset_id=dataset.id))
    assert decode_table(part.arrow for part in stored).num_rows == 2
    group = calls.registry.GetFeatureGroup(registry_pb2.GetFeatureGroupRequest(group=calls.group))
    assert group.rows == 2
    assert group.group.features[0].description == "m/s"
    listed = calls.registry.ListFeatureViews(registry_pb2.ListFeatureViewsRequest()).views
    assert calls.view.name in [view.name for view in listed]
    status = calls.ingestion.GetIngestionStatus(log_ingestion_pb2.GetIngestionStatusRequest())
    assert (status.cursor, status.HasField("last_pull_at")) == (0, False)


def test_many_rows_stream_in_chunks(calls: Calls) -> None:
    """None of them larger than promised."""
    n = 100_000
    times = pa.array(range(n), pa.int64()).cast(UTC_MICROS)
    table = pa.table({"place": pa.array(["p"] * n), "event_time": times, "wind": pa.array(range(n), pa.int64())})
    assert calls.write(table).rows == n
    chunks = [
        a.arrow
        for a in calls.offline.ReadFeatures(
            offline_pb2.ReadFeaturesRequest(query=query_pb2.GroupQuery(group=calls.group))
        )
    ]
    assert len(chunks) > 3
    assert max(map(len, chunks)) <= 1 << 20
    assert decode_table(chunks)["wind"].to_pylist() == [float(i) for i in range(n)]
    # A reader that goes away in the middle takes nothing with it.
    for _ in range(4):
        stream = calls.offline.ReadFeatures(
            offline_pb2.ReadFeaturesRequest(query=query_pb2.GroupQuery(group=calls.group))
        )
        next(iter(stream))
        stream.cancel()
    assert calls.read(latest_only=True).num_rows == 1


def test_wrong_writes_are_refused_whole(calls: Calls) -> None:
    """Each fault is named; nothing of them is stored."""
    invalid = (Code.INVALID_ARGUMENT, "INVALID_FIELD")
    naive = pa.table({"place": [1], "event_time": [T0.replace(tzinfo=None)], "wind": [float("inf")], "rain": [1]})
    assert sorted(refused(*invalid, lambda: calls.write(naive))) == [
        "arrow.event_time",
        "arrow.place",
        "arrow.rain",
        "arrow.wind",
    ]
    assert refused(*invalid, lambda: calls.write(pa.table({"wind": [1.0]}))) == ["arrow.place", "arrow.event_time"]
    assert refused(*invalid, lambda: calls.write(rows().slice(0, 0))) == ["arrow"]
    assert refused(*invalid, lambda: calls.write(rows(1.0), "x" * 129)) == ["header.write_id"]
    message, header = offline_pb2.WriteFeaturesRequest, offline_pb2.WriteHeader(group=calls.group)
    for messages, field in (
        ([], "header"),
        ([message(arrow=b"x")], "header"),
        ([message(header=header), message(header=header)], "header"),
        ([message(header=header)], "arrow"),
        ([message(header=header, arrow=b"garbage")], "arrow"),
        ([message(header=header, arrow=b"".join(encode_table(rows(1.0)))[:-40])], "arrow"),
        ([message(header=offline_pb2.WriteHeader(), arrow=b"x")], "header.group.name"),
    ):
        assert refused(*invalid, lambda messages=messages: calls.offline.WriteFeatures(iter(messages))) == [field]  # type: ignore[misc]
    late = rows(1.0).set_column(1, "event_time", pa.array([datetime.now(UTC) + timedelta(days=400)], UTC_MICROS))
    refused(Code.OUT_OF_RANGE, "OUT_OF_RANGE", lambda: calls.write(late))
    absent = offline_pb2.WriteHeader(group=types_pb2.VersionRef(name=calls.group.name, version=2**32 - 1))
    refused(
        Code.NOT_FOUND,
        "NOT_FOUND",
        lambda: calls.offline.WriteFeatures(uploaded(message, absent, rows(1.0))),
    )
    calls.write(rows(1.0), calls.group.name)
    refused(Code.ALREADY_EXISTS, "ALREADY_EXISTS", lambda: calls.write(rows(2.0), calls.group.name))
    assert calls.read().num_rows == 1


def test_known_at_is_for_operators(calls: Calls) -> None:
    """By the identity that the gateway vouches for; two identities are none."""
    table = rows(1.0).append_column("known_at", pa.array([T0], UTC_MICROS))
    header = offline_pb2.WriteHeader(group=calls.group)

    def write(*identity: str) -> offline_pb2.WriteFeaturesResponse:
        metadata = (("x-forwarded-client-cert", ";".join(f"URI=spiffe://foresight/{name}" for name in identity)),)
        return calls.offline.WriteFeatures(uploaded(offline_pb2.WriteFeaturesRequest, header, table), metadata=metadata)

    refused(Code.PERMISSION_DENIED, "PERMISSION_DENIED", lambda: write("application/demo"))
    refused(Code.PERMISSION_DENIED, "PERMISSION_DENIED", lambda: write("operator/ada", "operator/eve"))
    assert write("operator/ada").rows == 1


def test_each_row_may_have_its_own_time_of_asking(calls: Calls) -> None:
    """One call answers what a call per row does, in the microsecond: FUTURE, PRESENT, PRESENT at the age, EXPIRED."""
    calls.register()
    calls.write(rows(3.5))
    hour, tick = timedelta(hours=1), timedelta(microseconds=1)
    times = [T0 - tick, T0, T0 + hour, T0 + hour + tick]
    question = calls.question(["a"] * len(times))
    question.ClearField("event_time")
    question.event_time_micros.extend(micros_from_instant(time) for time in times)
    together = calls.online.GetFeatureVectors(question).vectors.features[0]
    alone = [calls.vectors(["a"], time).features[0] for time in times]
    assert together.statuses == bytes(b for answer in alone for b in answer.statuses) == bytes([5, 1, 1, 4])
    assert list(together.column.float64_values.values) == [0.0, 3.5, 3.5, 0.0]


def test_wrong_times_of_rows_are_refused(calls: Calls) -> None:
    """Too few, too many, beyond the years, and beside the one time for all."""
    calls.register()
    for micros, all_at_once in (
        ([0], False),
        ([0] * 3, False),
        ([0, 2**62], False),
        ([-(2**63), 0], False),
        ([0, 0], True),
    ):
        question = calls.question(["a", "b"])
        if not all_at_once:
            question.ClearField("event_time")
        question.event_time_micros.extend(micros)
        call = functools.partial(calls.online.GetFeatureVectors, question)
        assert refused(Code.INVALID_ARGUMENT, "INVALID_FIELD", call) == ["event_time_micros"]


def test_wrong_reads_are_refused(calls: Calls) -> None:
    """Whatever is wrong in itself, and what does not exist."""
    invalid = (Code.INVALID_ARGUMENT, "INVALID_FIELD")
    ask = calls.online.GetFeatureVectors
    no_time = calls.question(["a"])
    no_time.ClearField("event_time")
    assert refused(*invalid, lambda: ask(no_time)) == ["event_time"]
    bad_time = calls.question(["a"])
    bad_time.event_time.nanos = -1
    assert refused(*invalid, lambda: ask(bad_time)) == ["event_time"]
    twice = calls.question(["a"])
    twice.entity_keys.append(twice.entity_keys[0])
    assert refused(*invalid, lambda: ask(twice)) == ["entity_keys"]
    wrong_type = calls.question(["a"])
    wrong_type.entity_keys[0].int64_values.values.append(1)
    assert refused(*invalid, lambda: ask(wrong_type)) == ["entity_keys[place]"]
    assert refused(*invalid, lambda: ask(calls.question([]))) == ["entity_keys"]
    refused(Code.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", lambda: ask(calls.question(["a"] * 1_025)))
    for name in ("", "No", "a b", "x" * 200, "é", "a;DROP"):
        wrong = online_pb2.GetFeatureVectorsRequest(view=types_pb2.VersionRef(name=name))
        wrong.event_time.CopyFrom(encode_instant(T0))
        assert refused(*invalid, lambda wrong=wrong: ask(wrong)) == ["view.name"]  # type: ignore[misc]
    absent = online_pb2.GetFeatureVectorsRequest(view=types_pb2.VersionRef(name="absent"))
    absent.event_time.CopyFrom(encode_instant(T0))
    refused(Code.NOT_FOUND, "NOT_FOUND", lambda: ask(absent))
    refused(Code.OUT_OF_RANGE, "OUT_OF_RANGE", lambda: calls.read(commit=2**63))
    refused(
        Code.OUT_OF_RANGE,
        "OUT_OF_RANGE",
        lambda: calls.online.ReplayFeatureVectors(
            online_pb2.ReplayFeatureVectorsRequest(
                view=calls.view,
                entity_keys=calls.question(["a"]).entity_keys,
                event_time=encode_instant(T0),
                applied_commit=2**64 - 1,
            )
        ),
    )
    backwards = {"from_event_time": encode_instant(T0), "to_event_time": encode_instant(T0)}
    assert refused(*invalid, lambda: calls.read(**backwards)) == ["query.from_event_time"]
    get = calls.datasets.GetTrainingDataset
    assert refused(*invalid, lambda: get(training_dataset_pb2.GetTrainingDatasetRequest())) == ["dataset_id"]
    refused(
        Code.NOT_FOUND,
        "NOT_FOUND",
        lambda: get(training_dataset_pb2.GetTrainingDatasetRequest(dataset_id="../../etc/passwd")),
    )
    create = calls.datasets.CreateTrainingDataset
    header = training_dataset_pb2.TrainingDatasetHeader(
        name="x", view=calls.view, logged=training_dataset_pb2.LoggedPredictions()
    )
    nothing = [training_dataset_pb2.CreateTrainingDatasetRequest(header=header)]
    assert refused(*invalid, lambda: create(iter(nothing))) == ["header.logged.to_event_time"]


def test_wrong_registrations_are_refused(calls: Calls) -> None:
    """Reserved and clashing names, missing groups and features, transforms that nobody trusts."""
    invalid = (Code.INVALID_ARGUMENT, "INVALID_FIELD")

    def register_group(**changes: Any) -> Any:
        group = registry_pb2.FeatureGroup()
        group.CopyFrom(calls.registered_group.group)
        group.ClearField("etag")
        for name, value in changes.items():
            setattr(group, name, value)
        return calls.registry.RegisterFeatureGroup(registry_pb2.RegisterFeatureGroupRequest(group=group))

    def register_view(change: Callable[[registry_pb2.FeatureView], None]) -> Any:
        view = registry_pb2.FeatureView()
        view.CopyFrom(calls.registered_view.view)
        change(view)
        return calls.registry.RegisterFeatureView(registry_pb2.RegisterFeatureViewRequest(view=view))

    for name in ("log_predictions_x_v1", "A", "1a", "x" * 64, "", "a\0"):
        assert refused(*invalid, lambda name=name: register_group(name=name)) == ["name"]  # type: ignore[misc]
    changed = register_group(description="other")
    assert (changed.group.version, changed.created, changed.group.description) == (1, False, "other")
    assert register_group(strict_event_time=True).group.version == 2
    assert register_group(strict_event_time=False).group.version == 3

    def missing_group(view: registry_pb2.FeatureView) -> None:
        view.sources[0].group.name = "absent"

    def missing_feature(view: registry_pb2.FeatureView) -> None:
        view.sources[0].features[0].feature = "rain"

    def negative_age(view: registry_pb2.FeatureView) -> None:
        view.sources[0].max_age.seconds = -5

    def no_label(view: registry_pb2.FeatureView) -> None:
        view.ClearField("label")

    def untrusted(view: registry_pb2.FeatureView) -> None:
        transform = view.transforms.add(function="os:system", source_sha256="0" * 64, inputs=["wind"])
        transform.output.name, transform.output.type = "made", types_pb2.DATA_TYPE_FLOAT64

    refused(Code.NOT_FOUND, "NOT_FOUND", lambda: register_view(missing_group))
    for change in (missing_feature, negative_age, no_label):
        assert refused(*invalid, lambda change=change: register_view(change))  # type: ignore[misc]
    refused(Code.FAILED_PRECONDITION, "TRANSFORM_MISMATCH", lambda: register_view(untrusted))


def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel) -> None:
    """Unary and streamed."""
    unary: Any = channel.unary_unary("/foresight.feature_store.v1.OnlineFeatureService/GetFeatureVectors")
    refused(Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE", lambda: unary(b"\xff\xff\xff"))
    streamed: Any = channel.stream_unary("/foresight.feature_store.v1.OfflineFeatureService/WriteFeatures")
    refused(Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE", lambda: streamed(iter([b"\xff\xff\xff"])))
    absent: Any = channel.unary_unary("/foresight.feature_store.v1.OnlineFeatureService/Absent")
    refused(Code.UNIMPLEMENTED, "UNIMPLEMENTED", lambda: absent(b""))
