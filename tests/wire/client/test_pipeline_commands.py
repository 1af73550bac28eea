"""`foresight pipelines` against scripted services: what a person sees, and what wrong arguments get."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from foresight.cli.app import app
from foresight.cli.pipelines import parse_length
from foresight.feature_store.v1 import offline_pb2, pipeline_pb2, registry_pb2
from foresight.tables import decode_table
from foresight.values.pipelines import PipelineRun, PipelineStatus, RunState, Trigger
from foresight.wire import encode_group, encode_instant
from foresight.wire.pipelines import encode_pipeline, encode_run
from tests.wire.client.delays import WEATHER
from tests.wire.client.fake_foresight import FakeForesight, Gateway

Run = Callable[..., Result]
MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 2, 1, 12, tzinfo=UTC)
FAILED = PipelineRun(
    *("r1", "weather", Trigger.SCHEDULE, RunState.FAILED, NOON, NOON + 90 * MINUTE, 1_204, 1_200, 4),
    from_event_time=NOON - 60 * MINUTE,
    to_event_time=NOON,
    commit=7,
    error="ValueError: no wind",
)
PIPELINES = """
from datetime import datetime, timedelta, timezone
from foresight.pipelines import pipeline, stream

@pipeline(group="weather", schedule=timedelta(hours=1))
def weather(window):
    return [{"origin": "JFK", "event_time": window.start, "wind": 2.5}]

@pipeline(group="weather")
def broken(window):
    raise KeyError("JFK")

async def messages():
    yield 1

@stream(group="weather", source=messages)
def landings(messages):
    return None

not_a_pipeline = 3
"""


@pytest.fixture
def run(gateway: Gateway) -> Iterator[Run]:
    """Runs a command against the fake; modules that it imported are forgotten afterwards."""
    path, modules = list(sys.path), set(sys.modules)

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["pipelines", *map(str, arguments), "--state", str(gateway.state)])

    yield invoke
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("own_"):
            del sys.modules[name]


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A Python file with pipelines."""
    file = tmp_path / "own_pipelines.py"
    file.write_text(PIPELINES)
    return file


@pytest.fixture
def store(fake: FakeForesight) -> FakeForesight:
    """A feature store that takes everything; the pipeline's position is 10 o'clock."""
    runs: dict[str, Any] = {}

    def start(request: Any) -> Any:
        runs[request.run.id] = request.run
        request.run.started_at.CopyFrom(encode_instant(NOON))
        return pipeline_pb2.StartRunResponse(run=request.run)

    def report(request: Any) -> Any:
        told = runs[request.run.id]
        told.MergeFrom(request.run)
        told.finished_at.CopyFrom(encode_instant(NOON + MINUTE))
        return pipeline_pb2.ReportRunResponse(run=told)

    fake.on("StartRun", start)
    fake.on("ReportRun", report)
    fake.on(
        "GetPipeline",
        lambda r: pipeline_pb2.GetPipelineResponse(
            pipeline=pipeline_pb2.Pipeline(name=r.name, position="2026-02-01T10:00:00Z" if r.name == "weather" else "")
        ),
    )
    fake.on("GetFeatureGroup", registry_pb2.GetFeatureGroupResponse(group=encode_group(WEATHER)))
    fake.on(
        "WriteFeatures",
        lambda requests: offline_pb2.WriteFeaturesResponse(commit=8, rows=1, committed_at=encode_instant(NOON)),
    )
    return fake


def words(result: Result) -> str:
    """The output without what a terminal draws around it."""
    return " ".join(result.output.replace("│", " ").split())


def test_pipelines_are_listed_with_their_positions_and_newest_runs(run: Run, fake: FakeForesight) -> None:
    never = PipelineStatus("tides")
    moved = PipelineStatus("weather", "2026-02-01T12:00:00Z", 7, NOON, FAILED)
    answer = pipeline_pb2.ListPipelinesResponse(pipelines=[encode_pipeline(status) for status in (never, moved)])
    fake.on("ListPipelines", answer)
    result = run()
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["name", "position", "moved", "at", "last", "run", "state", "rows", "in", "rows", "out"]
    assert lines[2].split() == ["tides", *["—"] * 6]
    assert lines[3].split()[-3:] == ["failed", "1,204", "1,200"]
    found = json.loads(run("--json").stdout)
    assert (found[1]["last_run"]["state"], found[1]["position"]) == ("failed", "2026-02-01T12:00:00Z")
    fake.on("ListPipelines", pipeline_pb2.ListPipelinesResponse())
    assert "no pipeline ran yet" in run().output


def test_the_history_says_what_runs_did_and_why_one_failed(run: Run, fake: FakeForesight) -> None:
    fake.on("ListRuns", pipeline_pb2.ListRunsResponse(runs=[encode_run(FAILED)]))
    shown = words(run("history", "weather", "--limit", "5"))
    for text in ("schedule", "failed", "5400", "1,204", "1,200", "4", "ValueError: no wind", "2026-02-01T11:00:00Z"):
        assert text in shown
    assert [(r.pipeline, r.limit) for r in fake.requests("ListRuns")] == [("weather", 5)]
    assert json.loads(run("history", "--json").stdout)[0]["trigger"] == "schedule"


def test_a_window_is_run_here_and_moves_the_position(run: Run, store: FakeForesight, module: Path) -> None:
    window = ("--from", "2026-02-01T10:00:00Z", "--to", "2026-02-01T11:00:00Z")
    result = run("run", f"{module}:weather", *window)
    assert result.exit_code == 0, result.output
    assert "✓ weather: 1 rows in, 1 rows out · 2026-02-01T10:00:00Z to 2026-02-01T11:00:00Z · 60.0 s" in words(result)
    [messages] = store.requests("WriteFeatures")
    header = messages[0].header
    assert (header.source, header.write_id) == ("weather", "weather/2026-02-01T10:00:00Z/2026-02-01T11:00:00Z")
    progress = header.progress
    assert (progress.pipeline, progress.position_before) == ("weather", "2026-02-01T10:00:00Z")
    assert progress.position_after == "2026-02-01T11:00:00Z"
    assert decode_table(m.arrow for m in messages[1:])["wind"].to_pylist() == [2.5]


def test_a_pipeline_of_an_importable_module_is_found_too(
    run: Run, store: FakeForesight, module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(module.parent)
    window = ("--from", "2026-02-01T10:00:00Z", "--to", "2026-02-01T11:00:00Z")
    done = json.loads(run("run", "own_pipelines:weather", *window, "--json").stdout)
    assert (done["pipeline"], done["rows_out"], done["state"]) == ("weather", 1, "succeeded")


def test_a_backfill_is_run_in_steps(run: Run, store: FakeForesight, module: Path) -> None:
    span = ("--from", "2026-01-01T00:00:00Z", "--to", "2026-01-02T00:00:00Z", "--step", "6h")
    result = run("backfill", f"{module}:weather", *span)
    assert result.exit_code == 0, result.output
    assert "4 rows out" in words(result)
    tracks = {messages[0].header.progress.pipeline for messages in store.requests("WriteFeatures")}
    assert [track.startswith("backfill_") for track in tracks] == [True]
    assert {messages[0].header.source for messages in store.requests("WriteFeatures")} == {"weather"}


def test_what_a_function_raises_is_said_with_its_place(run: Run, store: FakeForesight, module: Path) -> None:
    window = ("--from", "2026-02-01T10:00:00Z", "--to", "2026-02-01T11:00:00Z")
    result = run("run", f"{module}:broken", *window)
    assert result.exit_code == 1
    assert "own_pipelines.py line 11" in words(result)
    assert "KeyError: 'JFK'" in words(result)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "nowhere.py:weather"], "there is no file nowhere.py"),
        (["run", "no_such_module:weather"], "no_such_module cannot be imported"),
        (["run", "{module}:missing"], "has no pipeline missing"),
        (["run", "{module}:not_a_pipeline"], "has no pipeline not_a_pipeline"),
        (["run", "{module}"], "is not of the form MODULE:NAME"),
        (["run", "{module}:weather", "--from", "2026-02-01T10:00:00Z"], "--from and --to come together"),
        (["run", "{module}:weather", "--from", "2026-02-01", "--to", "2026-02-02"], "has no time zone"),
        (["backfill", "{module}:weather", "--to", "2026-02-01T10:00:00Z"], "Missing option"),
        (["worker"], "Missing argument"),
        (["worker", "no_such_module"], "no_such_module cannot be imported"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what(
    run: Run, store: FakeForesight, module: Path, arguments: list[str], expected: str
) -> None:
    result = run(*(argument.format(module=module) for argument in arguments))
    assert (result.exit_code, expected in words(result)) == (2, True), result.output
    assert store.requests("StartRun") == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["backfill", "{module}:landings"], "is a stream"),
        (["run", "{module}:landings"], "is a stream"),
        (["run", "{module}:weather"], "gap"),
    ],
)
def test_what_does_not_fit_ends_with_1(
    run: Run, store: FakeForesight, module: Path, arguments: list[str], expected: str
) -> None:
    window = ("--from", "2026-03-01T10:00:00Z", "--to", "2026-03-01T11:00:00Z")
    result = run(*(argument.format(module=module) for argument in arguments), *window)
    assert (result.exit_code, expected in words(result)) == (1, True), result.output
    assert store.requests("WriteFeatures") == []


def test_lengths_of_time() -> None:
    assert [parse_length(text) for text in ("90s", "15m", "6h", "1d", "2w")] == [
        timedelta(seconds=90),
        timedelta(minutes=15),
        timedelta(hours=6),
        timedelta(days=1),
        timedelta(days=14),
    ]
    for text in ("", "6", "h", "-1h", "0h", "1.5h", "1y", "9999999999d"):
        with pytest.raises(typer.BadParameter):
            parse_length(text)
