"""The worker with the real job library in the real database: durable, one run of a pipeline at a time, taken over."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from procrastinate.jobs import Job as JobOfLibrary
from procrastinate.schema import migrations_path

from foresight.pipelines import JobsDatabase, Message, Pipeline, Stream, Window, Worker, pipeline, stream
from foresight.pipelines.jobs import QUEUE_BYTES_MAX, Jobs, queue_of, retry_strategy
from foresight.values import InvalidValue
from foresight.values.pipelines import RunState, Trigger
from tests.conftest import MakeDatabase
from tests.unit.pipelines.store_in_memory import StoreInMemory, one_row, row

HOUR = timedelta(hours=1)
T0 = datetime(2026, 3, 1, tzinfo=UTC)
# Short, so that a test sees a dead worker.
DEAD_AFTER_S = 1.0


class Place:
    """A jobs database, a store, a clock, and workers on them."""

    def __init__(self, database: JobsDatabase) -> None:
        self.database = database
        self.store = StoreInMemory()
        self.now = T0

    def worker(self, *pipelines: Pipeline | Stream) -> Worker:
        return Worker(pipelines, self.store, self.database, clock=lambda: self.now, dead_after_s=DEAD_AFTER_S)

    @contextlib.asynccontextmanager
    async def working(self, *pipelines: Pipeline | Stream) -> AsyncIterator[Worker]:
        """A worker at work inside of the block."""
        worker, ready = self.worker(*pipelines), asyncio.Event()
        running = asyncio.create_task(worker.run(ready.set))
        try:
            async with asyncio.timeout(20):
                await asyncio.wait([running, asyncio.ensure_future(ready.wait())], return_when=asyncio.FIRST_COMPLETED)
                yield worker
        finally:
            worker.stop()
            async with asyncio.timeout(20):
                await running

    async def jobs(self) -> list[tuple[str, str, int]]:
        """Pipeline, status and tries of every job."""
        rows = await self.query("SELECT lock, status::text, attempts FROM jobs.procrastinate_jobs ORDER BY id")
        return [tuple(found) for found in rows]

    async def query(self, statement: str) -> list[Any]:
        """The rows of a statement."""
        async with self._connected() as connection:
            return list(await connection.fetch(statement))

    async def execute(self, script: str) -> None:
        """Runs statements."""
        async with self._connected() as connection:
            await connection.execute(script)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        password = self.database.password_file.read_text() if self.database.password_file else None
        connection = await asyncpg.connect(
            self.database.url, password=password, server_settings={"search_path": "jobs"}
        )
        try:
            yield connection
        finally:
            await connection.close()


@pytest.fixture
def place(postgres_url: MakeDatabase) -> Place:
    """An empty jobs database."""
    settings = postgres_url("jobs")
    return Place(JobsDatabase(settings.url, settings.password_file))


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition, up to the caller's timeout."""
    while not condition():
        await asyncio.sleep(0.01)


def hourly(function: Any = one_row, name: str = "weather") -> Pipeline:
    """A pipeline with a tick at each full hour."""
    return pipeline(group="weather", schedule=HOUR, start=T0, name=name)(function)


async def test_what_was_missed_is_caught_up_and_the_next_run_waits_for_its_time(place: Place) -> None:
    place.now = T0 + 3.5 * HOUR
    async with place.working(hourly()):
        await until(lambda: len(place.store.rows) == 3)
    assert [r["event_time"] for r in place.store.rows] == [T0, T0 + HOUR, T0 + 2 * HOUR]
    [run] = place.store.runs.values()
    assert (run.trigger, run.state, run.rows_out) == (Trigger.SCHEDULE, RunState.SUCCEEDED, 3)
    assert await place.jobs() == [("weather", "todo", 0)]
    [job] = await place.query("SELECT scheduled_at FROM jobs.procrastinate_jobs")
    assert job["scheduled_at"] == T0 + 4 * HOUR


async def test_a_schedule_goes_on_by_itself(place: Place) -> None:
    """The job's time is compared with the database's clock: intervals of seconds, in the present."""
    start = datetime.now(UTC).replace(microsecond=0)
    every_second = pipeline(group="weather", schedule=timedelta(seconds=1), start=start, name="weather")(one_row)
    worker = Worker([every_second], place.store, place.database)
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(20):
        await until(lambda: len(place.store.rows) >= 3)
    worker.stop()
    await running
    times = [r["event_time"] for r in place.store.rows]
    assert times == [start + timedelta(seconds=n) for n in range(len(times))]
    assert len(place.store.runs) >= 2


async def test_a_run_that_fails_is_tried_again_from_the_same_window(place: Place) -> None:
    tries: list[Window] = []

    def moody(window: Window) -> Any:
        tries.append(window)
        if len(tries) < 3:
            raise ValueError("not yet")
        return one_row(window)

    place.now = T0 + HOUR
    async with place.working(hourly(moody)):
        await until(lambda: len(place.store.rows) == 1)
    assert tries == [Window(T0, T0 + HOUR)] * 3
    assert place.store.states == [RunState.FAILED, RunState.FAILED, RunState.SUCCEEDED]


async def test_two_workers_never_run_a_pipeline_at_once(place: Place) -> None:
    inside: list[int] = []
    guard, most = threading.Lock(), [0]

    def slow(window: Window) -> Any:
        with guard:
            inside.append(1)
            most[0] = max(most[0], len(inside))
        threading.Event().wait(0.02)
        with guard:
            inside.pop()
        return one_row(window)

    place.now = T0 + 10 * HOUR
    async with place.working(hourly(slow)), place.working(hourly(slow)):
        await until(lambda: len(place.store.rows) == 10)
        place.now = T0 + 20 * HOUR
        await place.query("UPDATE jobs.procrastinate_jobs SET scheduled_at = NULL")
        await until(lambda: len(place.store.rows) == 20)
    assert most == [1]
    assert set(place.store.states) == {RunState.SUCCEEDED}


async def test_a_worker_takes_jobs_of_its_own_pipelines_only(place: Place) -> None:
    place.now = T0 + HOUR
    async with place.working(hourly(name="tides")):
        await until(lambda: place.store.sources == ["tides"])
        async with place.database.app().open_async() as app:
            await Jobs(app).ensure("weather")
    assert ("weather", "todo", 0) in await place.jobs()
    async with place.working(hourly()):
        await until(lambda: place.store.sources == ["tides", "weather"])


async def test_a_stopped_worker_finishes_the_window_at_hand_and_leaves_the_rest_to_the_next(place: Place) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def waiting(window: Window) -> Any:
        begun.set()
        assert go_on.wait(10)
        return one_row(window)

    place.now = T0 + 5 * HOUR
    async with place.working(hourly(waiting)) as worker:
        await until(begun.is_set)
        worker.stop()
        go_on.set()
    assert (len(place.store.rows), place.store.states) == (1, [RunState.SUCCEEDED])
    assert await place.jobs() == [("weather", "todo", 0)]
    async with place.working(hourly()):
        await until(lambda: len(place.store.rows) == 5)


async def test_the_job_of_a_worker_that_died_is_taken_over(place: Place) -> None:
    place.now = T0 + HOUR
    async with place.working(hourly()):
        await until(lambda: len(place.store.rows) == 1)
    # As it is when a worker was killed in the middle of a run.
    await place.query(
        "WITH dead AS (INSERT INTO jobs.procrastinate_workers (last_heartbeat) VALUES (now() - interval '1 minute')"
        " RETURNING id) UPDATE jobs.procrastinate_jobs SET status = 'doing', worker_id = dead.id FROM dead"
    )
    place.now = T0 + 3 * HOUR
    async with place.working(hourly()):
        await until(lambda: len(place.store.rows) == 3)


async def test_a_worker_that_died_after_leaving_the_next_job_behind_blocks_nothing(place: Place) -> None:
    async with place.working(hourly()):
        pass
    await place.query("DELETE FROM jobs.procrastinate_jobs")
    await place.query(
        "INSERT INTO jobs.procrastinate_jobs (queue_name, task_name, lock, queueing_lock, status, args) VALUES"
        " ('weather', 'run_pipeline', 'weather', 'weather', 'doing', '{\"pipeline\": \"weather\"}'),"
        " ('weather', 'run_pipeline', 'weather', 'weather', 'todo', '{\"pipeline\": \"weather\"}')"
    )
    place.now = T0 + 2 * HOUR
    async with place.working(hourly()):
        await until(lambda: len(place.store.rows) == 2)


async def test_a_job_that_got_lost_is_made_again(place: Place) -> None:
    place.now = T0 + HOUR
    async with place.working(hourly()):
        await until(lambda: len(place.store.rows) == 1)
        place.now = T0 + 2 * HOUR
        await place.query("DELETE FROM jobs.procrastinate_jobs")
        await until(lambda: len(place.store.rows) == 2)


async def test_a_worker_outlives_the_loss_of_its_connections(place: Place) -> None:
    place.now = T0 + HOUR
    async with place.working(hourly()):
        await until(lambda: len(place.store.rows) == 1)
        with contextlib.suppress(asyncpg.PostgresError, OSError):
            await place.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'foresight_pipelines'"
            )
        place.now = T0 + 2 * HOUR
        await place.query("UPDATE jobs.procrastinate_jobs SET scheduled_at = NULL")
        await until(lambda: len(place.store.rows) == 2)


async def test_a_stream_runs_until_the_worker_is_stopped(place: Place) -> None:
    arrived: asyncio.Queue[Message] = asyncio.Queue()

    async def landings(after: int) -> AsyncIterator[Message]:
        while True:
            yield await arrived.get()

    def rows(messages: list[Message]) -> list[dict[str, Any]]:
        return [row(T0 + timedelta(minutes=message.position)) for message in messages]

    declared = stream(group="weather", source=landings, batch_s=0.01, name="landings")(rows)
    async with place.working(declared):
        for position in (1, 2, 3):
            arrived.put_nowait(Message(position, ""))
            await until(lambda position=position: len(place.store.rows) == position)  # type: ignore[misc]
        assert await place.jobs() == [("landings", "doing", 0)]
    assert place.store.states == [RunState.SUCCEEDED]
    assert await place.jobs() == [("landings", "todo", 0)]


async def test_workers_that_start_at_once_make_the_tables_once(place: Place) -> None:
    await asyncio.gather(*(place.database.prepare() for _ in range(4)))
    [found] = await place.query("SELECT obj_description('jobs'::regnamespace, 'pg_namespace') AS version")
    assert found["version"].endswith(".sql")
    await place.database.prepare()


async def test_tables_of_an_earlier_version_of_the_library_get_its_migrations(place: Place) -> None:
    files = sorted(file for file in migrations_path.iterdir() if file.suffix == ".sql")
    earlier = [file for file in files if file.name < "03.04"]
    await place.query("CREATE SCHEMA jobs")
    for file in earlier:
        await place.execute(file.read_text())
    await place.execute(f"COMMENT ON SCHEMA jobs IS '{earlier[-1].name}'")
    await place.database.prepare()
    [found] = await place.query("SELECT obj_description('jobs'::regnamespace, 'pg_namespace') AS version")
    assert found["version"] == files[-1].name > earlier[-1].name
    place.now = T0 + HOUR
    async with place.working(hourly()):
        await until(lambda: len(place.store.rows) == 1)


async def test_a_database_that_is_away_is_waited_for(place: Place) -> None:
    right = place.database.password_file
    assert right is not None
    away = JobsDatabase("postgresql://jobs@/none?host=/nowhere", right)
    worker = Worker([hourly()], place.store, away)
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    worker.stop()
    async with asyncio.timeout(20):
        await running
    assert place.store.runs == {}


def test_a_worker_needs_something_to_run(place: Place) -> None:
    with pytest.raises(InvalidValue, match="schedule"):
        place.worker(pipeline(group="weather", name="weather")(one_row))


def test_pauses_between_tries_double_up_to_a_minute() -> None:
    before, strategy = datetime.now(UTC), retry_strategy()
    pauses = []
    for attempts in (0, 1, 2, 5, 6, 50):
        job = JobOfLibrary(queue="q", lock=None, queueing_lock=None, task_name="t", attempts=attempts)
        decision = strategy.get_retry_decision(exception=ValueError(), job=job)
        pauses.append(round((decision.retry_at - before).total_seconds()))
    assert pauses == [1, 2, 4, 32, 60, 60]


def test_every_pipeline_has_a_queue_that_the_library_can_name() -> None:
    names = ["a", "x" * 40, "x" * 41, "x" * 63, "x" * 62 + "y"]
    queues = {queue_of(name) for name in names}
    assert len(queues) == len(names)
    assert max(map(len, queues)) <= QUEUE_BYTES_MAX


def test_a_jobs_database_is_a_postgresql_url() -> None:
    for url in ("mysql://jobs@/jobs", "", "/var/run/postgresql"):
        with pytest.raises(InvalidValue, match="jobs_url"):
            JobsDatabase(url)
