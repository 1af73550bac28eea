"""The worker: runs schedules and streams until it is stopped.

Any number of workers may share a jobs database; each pipeline runs in one of them at a time. A worker that is stopped
finishes the window or the batch that is being written and leaves the rest to the next one; one that is killed is
found out within seconds, and its pipelines go on elsewhere from their positions.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from foresight.pipelines.declarations import Pipeline, Stream
from foresight.pipelines.jobs import (
    DEAD_AFTER_S,
    HEARTBEAT_EVERY_S,
    TASK,
    Jobs,
    JobsDatabase,
    queue_of,
    retry_strategy,
)
from foresight.pipelines.runs import Store
from foresight.pipelines.streaming import run_stream
from foresight.pipelines.windowed import catch_up, next_run, utc_now
from foresight.values import InvalidValue
from foresight.values.pipelines import Trigger

if TYPE_CHECKING:
    from procrastinate import App
    from procrastinate.job_context import JobContext

_log = structlog.get_logger()

# Time for what is being written when the worker is stopped.
STOP_S = 8.0
POLL_S = 1.0
# A stream's run in the history lasts so long at most, then the next one goes on.
STREAM_TURN_S = 3_600.0
# A source that has ended is looked at again after a while.
ENDED_PAUSE = timedelta(seconds=10)
RECONNECT_MIN_S, RECONNECT_MAX_S = 0.5, 30.0


class Worker:
    """Runs pipelines. `dead_after_s`: when others take over; `clock` says what is due.

    Raises InvalidValue when there is nothing to run.
    """

    def __init__(
        self,
        pipelines: Sequence[Pipeline | Stream],
        client: Store,
        database: JobsDatabase,
        *,
        clock: Callable[[], datetime] = utc_now,
        dead_after_s: float = DEAD_AFTER_S,
    ) -> None:
        self._pipelines = {
            declared.name: declared
            for declared in pipelines
            if isinstance(declared, Stream) or declared.schedule is not None
        }
        if not self._pipelines:
            raise InvalidValue("pipelines", "has no stream and no pipeline with a schedule")
        if by_hand := sorted(declared.name for declared in pipelines if declared.name not in self._pipelines):
            _log.info("run_by_hand_only", pipelines=by_hand)
        self._client = client
        self._database = database
        self._clock = clock
        self._dead_after_s = dead_after_s
        self._stop = asyncio.Event()
        self._jobs: Jobs | None = None

    def stop(self) -> None:
        """Ends `run` as soon as what is being written is written. Call it in the event loop."""
        self._stop.set()

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Runs until `stop`; waits for a jobs database that is away. `on_ready` hears when it is at work first."""
        import psycopg
        from procrastinate.exceptions import ConnectorException

        # One for each pipeline, one for each call of another; the loop's own pool is made for a few.
        with ThreadPoolExecutor(2 * len(self._pipelines) + 2, "pipelines") as pool:
            asyncio.get_running_loop().set_default_executor(pool)
            pause_s = RECONNECT_MIN_S
            while not self._stop.is_set():
                try:
                    async with self._at_work() as working:
                        on_ready()
                        pause_s = RECONNECT_MIN_S
                        await working
                except (ConnectorException, psycopg.Error, OSError) as error:
                    _log.warning("jobs_database_away", error=str(error), retry_in_s=pause_s)
                    await self._pause(pause_s)
                    pause_s = min(2 * pause_s, RECONNECT_MAX_S)

    @contextlib.asynccontextmanager
    async def _at_work(self) -> AsyncIterator[asyncio.Task[None]]:
        """Takes jobs inside of the block; the task ends when the worker is stopped or the database is away."""
        await self._database.prepare()
        app = self._database.app()
        app.task(name=TASK, retry=retry_strategy(), pass_context=True)(self._turn)
        async with app.open_async():
            self._jobs = Jobs(app, self._dead_after_s)
            await self._jobs.mend(list(self._pipelines))
            _log.info("worker_started", pipelines=sorted(self._pipelines))
            working = asyncio.create_task(self._work(app, self._jobs))
            try:
                yield working
            finally:
                working.cancel()
                await asyncio.wait([working])

    async def _work(self, app: App, jobs: Jobs) -> None:
        taking = asyncio.create_task(
            app.run_worker_async(
                queues=[queue_of(name) for name in self._pipelines],
                concurrency=len(self._pipelines),
                fetch_job_polling_interval=POLL_S,
                delete_jobs="successful",
                install_signal_handlers=False,
                shutdown_graceful_timeout=STOP_S,
                update_heartbeat_interval=min(HEARTBEAT_EVERY_S, self._dead_after_s / 4),
                stalled_worker_timeout=self._dead_after_s,
            )
        )
        others = [asyncio.create_task(self._keep_mended(jobs)), asyncio.create_task(self._stop.wait())]
        try:
            await asyncio.wait([taking, *others], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (taking, *others):
                # It lets the jobs that it runs come to their end first.
                task.cancel()
            ended = await asyncio.gather(taking, *others, return_exceptions=True)
        for result in ended:
            if isinstance(result, Exception):
                raise result
        _log.info("worker_stopped")

    async def _keep_mended(self, jobs: Jobs) -> None:
        while True:
            await asyncio.sleep(self._dead_after_s / 2)
            await jobs.mend(list(self._pipelines))

    async def _turn(self, context: JobContext, pipeline: str) -> None:
        """A job: runs what is due, or a turn of a stream, and leaves the next job behind."""
        assert self._jobs is not None
        declared = self._pipelines[pipeline]
        with self._jobs.running(context.job):
            try:
                if isinstance(declared, Stream):
                    at = await self._stream(declared)
                else:
                    at = await self._catch_up(declared)
            except Exception as error:
                _log.warning("run_failed", pipeline=pipeline, error=f"{type(error).__name__}: {error}")
                raise
            await self._jobs.ensure(pipeline, at)

    async def _catch_up(self, pipeline: Pipeline) -> datetime:
        run = await asyncio.to_thread(
            catch_up, pipeline, self._client, self._clock(), Trigger.SCHEDULE, self._stop.is_set
        )
        if run is not None:
            _log.info("run_ended", pipeline=pipeline.name, run=run.id, rows_in=run.rows_in, rows_out=run.rows_out)
        status = await asyncio.to_thread(self._client.pipeline, pipeline.name)
        return next_run(pipeline, status.position, self._clock())

    async def _stream(self, stream: Stream) -> datetime:
        over = asyncio.Event()
        turn = asyncio.get_running_loop().call_later(STREAM_TURN_S, over.set)
        told = asyncio.create_task(self._stop.wait())
        told.add_done_callback(lambda _: over.set())
        try:
            run = await run_stream(stream, self._client, trigger=Trigger.STREAM, stop=over)
        finally:
            turn.cancel()
            told.cancel()
        _log.info("run_ended", pipeline=stream.name, run=run.id, rows_in=run.rows_in, rows_out=run.rows_out)
        return self._clock() + (timedelta(0) if over.is_set() else ENDED_PAUSE)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
