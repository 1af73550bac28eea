"""Feature pipelines against a real feature store: the SDK's way of running them, and what wrong requests get."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import grpc
import pandas as pd
import pyarrow as pa
import pytest

from foresight.client import Aborted, AlreadyExists, Client, Connection, DataType, FeatureGroup, Field, Retry
from foresight.feature_store.v1 import offline_pb2, offline_pb2_grpc, pipeline_pb2, pipeline_pb2_grpc
from foresight.pipelines import Message, Pipeline, Window, WindowRun, backfill, pipeline, run_once, stream
from foresight.values.pipelines import RunState, Trigger
from foresight.wire import encode_instant
from tests.wire.feature_store.test_feature_store_calls import Code, refused, uploaded

HOUR = timedelta(hours=1)
T0 = datetime(2026, 3, 1, tzinfo=UTC)
_NUMBERS = itertools.count()


@pytest.fixture
def client(channel: grpc.Channel) -> Client:
    """A client that talks to the feature store's own socket."""
    return Client(connection=Connection(channel, "the store", Retry(5.0)))


@pytest.fixture
def group(client: Client) -> str:
    """A group of the test's own; pipelines are called as it."""
    made = FeatureGroup(
        f"tides_{next(_NUMBERS)}", (Field("place", DataType.STRING),), (Field("height", DataType.FLOAT64),)
    )
    client.apply(made)
    return made.name


def a_row(window: Window) -> pd.DataFrame:
    """One row, at the start of a window."""
    return pd.DataFrame({"place": ["a"], "event_time": [window.start], "height": [1.5]})


def hourly(group: str, function: Any = a_row) -> Pipeline:
    """A pipeline with a tick at each full hour, from T0."""
    return pipeline(group=group, name=group, schedule=HOUR, start=T0)(function)


def hours(client: Client, group: str) -> list[float]:
    """The event times of a group's rows, hours since T0, in commit order."""
    return [(at - T0) / HOUR for at in client.read(group, output="arrow")["event_time"].to_pylist()]


def test_windows_are_committed_together_with_the_position(client: Client, group: str) -> None:
    run = run_once(hourly(group), client, now=T0 + 3 * HOUR)
    assert run is not None
    assert (run.state, run.rows_out, run.from_event_time) == (RunState.SUCCEEDED, 3, T0)
    assert hours(client, group) == [0, 1, 2]
    status = client.pipeline(group)
    assert (status.position, status.commit, status.last_run) == ("2026-03-01T03:00:00Z", run.commit, run)
    assert status.moved_at is not None
    assert status in client.pipelines()
    assert run_once(hourly(group), client, now=T0 + 3 * HOUR) is None
    again = run_once(hourly(group), client, Window(T0 + HOUR, T0 + 2 * HOUR))
    assert again is not None
    assert (again.rows_out, hours(client, group)) == (0, [0, 1, 2])
    assert client.pipeline(group).position == status.position


def test_a_window_without_rows_moves_the_position_and_makes_no_commit(client: Client, group: str) -> None:
    with WindowRun(hourly(group, lambda window: None), client) as run:
        run.step(Window(T0, T0 + HOUR))
    assert (run.record.rows_out, run.record.commit) == (0, 0)
    assert (client.pipeline(group).position, client.count_rows(group)) == ("2026-03-01T01:00:00Z", 0)


def test_a_position_that_another_run_moved_refuses_the_rows(client: Client, group: str) -> None:
    with WindowRun(hourly(group), client) as slow:
        run_once(hourly(group), client, now=T0 + HOUR)
        with pytest.raises(Aborted) as failed:
            slow.step(Window(T0, T0 + 2 * HOUR))
    assert failed.value.reason == "STALE_ETAG"
    assert hours(client, group) == [0]


def test_a_window_that_gives_other_rows_is_refused(client: Client, group: str) -> None:
    run_once(hourly(group), client, now=T0 + HOUR)
    with pytest.raises(AlreadyExists):
        run_once(hourly(group, lambda window: a_row(window).assign(height=9.0)), client, Window(T0, T0 + HOUR))


def test_rows_of_an_iterator_become_one_commit_whatever_their_number(client: Client, group: str) -> None:
    def parts(window: Window) -> Iterator[pd.DataFrame]:
        for part in range(40):
            times = pd.date_range(window.start + timedelta(seconds=part * 80), periods=80, freq="s")
            yield pd.DataFrame({"place": "a", "event_time": times, "height": float(part)})

    run = run_once(hourly(group, parts), client, now=T0 + HOUR)
    assert run is not None
    found = client.read(group, output="arrow")
    assert (run.rows_out, found.num_rows, len(set(found["commit"].to_pylist()))) == (3_200, 3_200, 1)


def test_a_backfill_has_a_position_of_its_own(client: Client, group: str) -> None:
    run_once(hourly(group), client, now=T0 + HOUR)
    run = backfill(hourly(group), client, T0 - 2 * HOUR, T0)
    assert run is not None
    assert (run.trigger, run.rows_out, hours(client, group)) == (Trigger.BACKFILL, 2, [0, -2, -1])
    assert client.pipeline(group).position == "2026-03-01T01:00:00Z"
    assert backfill(hourly(group), client, T0 - 2 * HOUR, T0) is None
    assert not any(status.name.startswith("backfill") for status in client.pipelines())


def test_messages_are_committed_together_with_the_position(client: Client, group: str) -> None:
    async def tides() -> Any:
        for number in range(1, 8):
            yield number

    def rows(messages: list[Message]) -> list[dict[str, Any]]:
        return [{"place": "a", "event_time": T0 + m.data * HOUR, "height": 0.5} for m in messages]

    declared = stream(group=group, name=group, source=tides, batch_rows=3)(rows)
    run = run_once(declared, client)
    assert run is not None
    assert (run.rows_in, run.rows_out, client.pipeline(group).position) == (7, 7, "7")
    assert hours(client, group) == [1, 2, 3, 4, 5, 6, 7]
    assert run_once(declared, client) is not None
    assert client.count_rows(group) == 7


def test_a_failed_run_says_why(client: Client, group: str) -> None:
    def broken(window: Window) -> None:
        raise ValueError("\ud800 no\0" + "x" * 5_000)

    with pytest.raises(ValueError, match="no"):
        run_once(hourly(group, broken), client, now=T0 + HOUR)
    [run] = client.pipeline_runs(group)
    assert run.state is RunState.FAILED
    assert run.error.startswith("ValueError: ? nox")
    assert len(run.error.encode()) == 2_048


# Wrong requests


class Calls:
    """The stubs."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.pipelines = pipeline_pb2_grpc.FeaturePipelineServiceStub(channel)
        self.offline = offline_pb2_grpc.OfflineFeatureServiceStub(channel)

    def start(self, **fields: Any) -> pipeline_pb2.PipelineRun:
        message = pipeline_pb2.PipelineRun(**{"id": "r", "pipeline": "tides", "trigger": "manual", **fields})
        return self.pipelines.StartRun(pipeline_pb2.StartRunRequest(run=message)).run

    def report(self, **fields: Any) -> pipeline_pb2.PipelineRun:
        message = pipeline_pb2.PipelineRun(**{"id": "r", "state": 2, **fields})
        return self.pipelines.ReportRun(pipeline_pb2.ReportRunRequest(run=message)).run


@pytest.fixture
def calls(channel: grpc.Channel) -> Calls:
    """The stubs."""
    return Calls(channel)


LATER = encode_instant(T0 + HOUR)
WRONG_RUNS: list[tuple[dict[str, Any], str]] = [
    ({"id": ""}, "run.id"),
    ({"id": "x" * 129}, "run.id"),
    ({"id": "a\0b"}, "run.id"),
    ({"pipeline": ""}, "run.pipeline"),
    ({"pipeline": "Tides"}, "run.pipeline"),
    ({"pipeline": "log_tides"}, "run.pipeline"),
    ({"pipeline": "x" * 64}, "run.pipeline"),
    ({"pipeline": "tides'; DROP TABLE commits; --"}, "run.pipeline"),
    ({"trigger": ""}, "run.trigger"),
    ({"trigger": "SCHEDULE"}, "run.trigger"),
    ({"trigger": "x" * 1_000_000}, "run.trigger"),
    ({"from_event_time": LATER}, "run.to_event_time"),
    ({"to_event_time": LATER}, "run.to_event_time"),
    ({"from_event_time": LATER, "to_event_time": LATER}, "run.to_event_time"),
    ({"from_event_time": {"seconds": 1 << 60}, "to_event_time": LATER}, "run.from_event_time"),
    ({"from_event_time": {"nanos": -1}, "to_event_time": LATER}, "run.from_event_time"),
]


@pytest.mark.parametrize(("fields", "field"), WRONG_RUNS)
def test_a_wrong_run_is_refused_and_leaves_nothing(calls: Calls, fields: dict[str, Any], field: str) -> None:
    id = f"wrong-{next(_NUMBERS)}"
    assert refused(Code.INVALID_ARGUMENT, "INVALID_FIELD", lambda: calls.start(**{"id": id, **fields})) == [field]
    assert refused(Code.NOT_FOUND, "NOT_FOUND", lambda: calls.report(id=id)) == []


WRONG_REPORTS: list[tuple[dict[str, Any], str]] = [
    ({"id": ""}, "run.id"),
    ({"state": 0}, "run.state"),
    ({"state": 5}, "run.state"),
    ({"state": 77}, "run.state"),
    ({"skipped": (1 << 64) - 1}, "run.skipped"),
    ({"commit": 1 << 63}, "run.commit"),
    ({"to_event_time": LATER}, "run.to_event_time"),
]


@pytest.mark.parametrize(("fields", "field"), WRONG_REPORTS)
def test_a_wrong_report_is_refused_and_changes_nothing(calls: Calls, fields: dict[str, Any], field: str) -> None:
    begun = calls.start(id=f"r-{next(_NUMBERS)}", pipeline="reported", trigger="backfill")
    assert refused(Code.INVALID_ARGUMENT, "INVALID_FIELD", lambda: calls.report(**{"id": begun.id, **fields})) == [
        field
    ]
    assert calls.start(id=begun.id, pipeline="reported", trigger="backfill") == begun


def test_states_that_do_not_allow_it(calls: Calls) -> None:
    id = f"r-{next(_NUMBERS)}"
    calls.start(id=id, pipeline="stately")
    assert refused(Code.ALREADY_EXISTS, "ALREADY_EXISTS", lambda: calls.start(id=id, pipeline="other")) == []
    calls.report(id=id, rows_in=(1 << 63) - 1)
    changes: list[dict[str, Any]] = [{"rows_in": 1}, {"state": 1}, {"state": 3}]
    for fields in changes:
        report = partial(calls.report, id=id, **fields)
        assert refused(Code.FAILED_PRECONDITION, "FAILED_PRECONDITION", report) == []


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda p: p.GetPipeline(pipeline_pb2.GetPipelineRequest()), "name"),
        (lambda p: p.GetPipeline(pipeline_pb2.GetPipelineRequest(name="../tides")), "name"),
        (lambda p: p.ListRuns(pipeline_pb2.ListRunsRequest(pipeline="No")), "pipeline"),
        (lambda p: p.ListRuns(pipeline_pb2.ListRunsRequest(limit=1_001)), "limit"),
        (lambda p: p.StartRun(pipeline_pb2.StartRunRequest()), "run.trigger"),
        (lambda p: p.ReportRun(pipeline_pb2.ReportRunRequest()), "run.state"),
    ],
)
def test_other_wrong_requests(calls: Calls, call: Callable[[Any], Any], field: str) -> None:
    assert refused(Code.INVALID_ARGUMENT, "INVALID_FIELD", lambda: call(calls.pipelines)) == [field]


WRONG_PROGRESS: list[tuple[dict[str, str], str]] = [
    ({"pipeline": ""}, "header.progress.pipeline"),
    ({"pipeline": "No"}, "header.progress.pipeline"),
    ({"position_before": "x" * 1_025}, "header.progress.position_before"),
    ({"position_after": "x" * 1_025}, "header.progress.position_after"),
    ({"position_after": "a\0"}, "header.progress.position_after"),
]


@pytest.mark.parametrize(("fields", "field"), WRONG_PROGRESS)
def test_wrong_progress_refuses_the_write(
    calls: Calls, client: Client, group: str, fields: dict[str, str], field: str
) -> None:
    header = offline_pb2.WriteHeader(write_id="w")
    header.group.name = group
    for name, value in {"pipeline": group, "position_after": "1", **fields}.items():
        setattr(header.progress, name, value)
    table = pa.table({"place": ["a"], "event_time": pa.array([T0], pa.timestamp("us", "UTC")), "height": [1.0]})
    write = calls.offline.WriteFeatures
    found = refused(
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        lambda: write(uploaded(offline_pb2.WriteFeaturesRequest, header, table)),
    )
    assert found == [field]
    assert (client.count_rows(group), client.pipeline(group).position) == (0, "")
