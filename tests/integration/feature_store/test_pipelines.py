"""Positions and the history of runs, in the real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from foresight.values import InvalidValue
from foresight.values.pipelines import PipelineRun, PipelineStatus, RunReport, RunState, Trigger
from services.feature_store import pipelines as limits
from services.feature_store.__main__ import MIGRATIONS
from services.feature_store.pipelines import RUNS_KEPT, Pipelines
from services.feature_store.postgres.pipelines import PipelineTable
from services.runtime.database import Database, open_database
from services.runtime.errors import AlreadyExists, FailedPrecondition, LimitExceeded, NotFound
from tests.conftest import MakeDatabase

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
T0 = datetime(2026, 2, 1, tzinfo=UTC)


class History:
    """Pipelines on a database, and a clock."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = NOW
        self.pipelines = Pipelines(PipelineTable(database), lambda: self.now)

    async def start(self, id: str, pipeline: str = "weather", trigger: Trigger = Trigger.MANUAL) -> PipelineRun:
        return await self.pipelines.start(PipelineRun(id, pipeline, trigger))

    async def report(self, id: str, state: RunState, **counts: Any) -> PipelineRun:
        return await self.pipelines.report(RunReport(id, state, **counts))

    async def states(self, pipeline: str = "weather") -> dict[str, RunState]:
        return {run.id: run.state for run in await self.pipelines.runs(pipeline, 0)}


@pytest.fixture
async def history(postgres_url: MakeDatabase) -> AsyncIterator[History]:
    """An empty history."""
    async with open_database(postgres_url("feature_store"), "feature_store", MIGRATIONS) as database:
        yield History(database)


async def test_a_pipeline_that_never_wrote_has_the_empty_position(history: History) -> None:
    assert await history.pipelines.pipeline("weather") == PipelineStatus("weather")
    assert await history.pipelines.pipelines() == []


async def test_a_run_is_kept_from_its_beginning_to_its_end(history: History) -> None:
    run = PipelineRun("r1", "weather", Trigger.BACKFILL, from_event_time=T0, to_event_time=T0 + timedelta(days=1))
    begun = await history.pipelines.start(run)
    assert (begun.state, begun.started_at, begun.finished_at) == (RunState.RUNNING, NOW, None)
    history.now += timedelta(seconds=5)
    going_on = await history.report("r1", RunState.RUNNING, rows_in=10, rows_out=8)
    assert (going_on.state, going_on.rows_out, going_on.finished_at) == (RunState.RUNNING, 8, None)
    end = T0 + timedelta(days=2)
    over = await history.report(
        "r1", RunState.SUCCEEDED, rows_in=20, rows_out=16, skipped=1, commit=7, from_event_time=T0, to_event_time=end
    )
    assert over.finished_at == history.now
    assert (over.trigger, over.from_event_time, over.to_event_time) == (Trigger.BACKFILL, T0, end)
    assert await history.pipelines.runs("weather", 0) == [over]
    assert (await history.pipelines.pipeline("weather")).last_run == over


async def test_repeating_a_call_whose_answer_was_lost_is_harmless(history: History) -> None:
    begun = await history.start("r1")
    history.now += timedelta(seconds=5)
    assert await history.start("r1") == begun
    over = await history.report("r1", RunState.FAILED, rows_in=3, error="no")
    history.now += timedelta(seconds=5)
    assert await history.report("r1", RunState.FAILED, rows_in=3, error="no") == over
    assert await history.start("r1") == over


async def test_the_id_of_another_run_is_refused(history: History) -> None:
    await history.start("r1")
    with pytest.raises(AlreadyExists):
        await history.start("r1", "tides")
    with pytest.raises(AlreadyExists):
        await history.start("r1", trigger=Trigger.STREAM)
    assert list(await history.states("tides")) == []


async def test_a_run_that_is_over_is_not_changed_any_more(history: History) -> None:
    await history.start("r1")
    over = await history.report("r1", RunState.CANCELLED, rows_in=3)
    for state, rows in ((RunState.CANCELLED, 4), (RunState.SUCCEEDED, 3), (RunState.RUNNING, 3)):
        with pytest.raises(FailedPrecondition, match="cancelled"):
            await history.report("r1", state, rows_in=rows)
    assert await history.pipelines.runs("weather", 0) == [over]


async def test_a_run_that_never_began_cannot_be_reported(history: History) -> None:
    with pytest.raises(NotFound):
        await history.report("r1", RunState.SUCCEEDED)


async def test_a_run_of_which_nothing_is_heard_is_lost_when_the_next_one_begins(history: History) -> None:
    await history.start("killed", trigger=Trigger.SCHEDULE)
    await history.start("backfill", trigger=Trigger.BACKFILL)
    await history.start("other", "tides")
    assert (await history.states())["killed"] is RunState.RUNNING, "a backfill moves no position of the pipeline"
    await history.start("next", trigger=Trigger.SCHEDULE)
    assert await history.states() == {
        "next": RunState.RUNNING,
        "backfill": RunState.RUNNING,
        "killed": RunState.LOST,
    }
    assert await history.states("tides") == {"other": RunState.RUNNING}


async def test_a_lost_run_may_still_say_how_it_ended(history: History) -> None:
    await history.start("slow")
    await history.start("next")
    still = await history.report("slow", RunState.RUNNING, rows_in=4)
    assert (still.state, still.rows_in) == (RunState.LOST, 4)
    assert (await history.report("slow", RunState.FAILED, error="too late")).state is RunState.FAILED


async def test_pipelines_are_listed_by_name_with_their_positions_and_newest_runs(history: History) -> None:
    for run, pipeline in (("r1", "weather"), ("r2", "tides"), ("r3", "weather")):
        await history.start(run, pipeline)
    async with history.database.transaction() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO pipeline_positions (pipeline, position, commit, moved_at) VALUES"
            " ('weather', '2026', 3, '2026-03-01 12:00+00'), ('backfill_ab', '2025', 2, '2026-03-01 12:00+00')"
        )
    listed = await history.pipelines.pipelines()
    assert [(s.name, s.position, s.commit, s.last_run and s.last_run.id) for s in listed] == [
        ("tides", "", 0, "r2"),
        ("weather", "2026", 3, "r3"),
    ]
    assert listed[1] == await history.pipelines.pipeline("weather")
    assert listed[1].moved_at == NOW


async def test_runs_are_listed_the_newest_first_and_no_more_than_asked(history: History) -> None:
    for number in range(60):
        await history.start(f"r{number}", "weather" if number % 2 else "tides")
    assert [run.id for run in await history.pipelines.runs("", 3)] == ["r59", "r58", "r57"]
    assert [run.id for run in await history.pipelines.runs("tides", 2)] == ["r58", "r56"]
    assert len(await history.pipelines.runs("", 0)) == limits.RUNS_LISTED
    with pytest.raises(InvalidValue, match="limit"):
        await history.pipelines.runs("", 1_001)
    with pytest.raises(InvalidValue, match="pipeline"):
        await history.pipelines.runs("No Name", 1)


async def test_old_runs_of_a_pipeline_are_forgotten(history: History) -> None:
    await history.start("first")
    await history.start("r0", "tides")
    async with history.database.transaction() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO pipeline_runs (id, pipeline, trigger, state, started_at)"
            f" SELECT 'old' || n, 'weather', 'manual', 2, now() FROM generate_series(1, {RUNS_KEPT}) n"
        )
    await history.start("last")
    async with history.database.statements() as connection:
        count = "SELECT count(*), min(number) FROM pipeline_runs WHERE pipeline = 'weather'"
        kept, _ = (await connection.exec_driver_sql(count)).one()
    assert kept == RUNS_KEPT
    with pytest.raises(NotFound):
        await history.report("first", RunState.SUCCEEDED)
    assert list(await history.states("tides")) == ["r0"]


async def test_there_is_a_bound_on_pipelines(history: History) -> None:
    async with history.database.transaction() as connection:
        await connection.exec_driver_sql(
            f"INSERT INTO pipelines SELECT 'p' || n FROM generate_series(1, {limits.PIPELINES_MAX}) n"
        )
    with pytest.raises(LimitExceeded):
        await history.start("r1", "one_more")
    await history.start("r1", "p7")


async def test_runs_that_begin_at_once_take_turns(history: History) -> None:
    await asyncio.gather(*(history.start(f"r{number}", trigger=Trigger.SCHEDULE) for number in range(8)))
    states = list((await history.states()).values())
    assert states == [RunState.RUNNING] + [RunState.LOST] * 7
