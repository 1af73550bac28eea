"""The jobs database: which pipeline runs next, when, and where, kept in PostgreSQL by the job library procrastinate.

Every pipeline has one job that waits or runs. Its lock keeps two runs of a pipeline apart, across all workers; when it
ends well it leaves the next one behind, when it fails the library tries it again with a growing pause. The library
has a schema of its own, owned by a role of its own. Nothing in it is precious: positions are in the feature store, and
what is missing is made again from them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foresight.values import InvalidValue

if TYPE_CHECKING:
    from procrastinate import App
    from procrastinate.jobs import Job

TASK = "run_pipeline"
CONNECTIONS_MAX = 4
CONNECT_TIMEOUT_S = 5
# The library makes a channel of it, which may have 63 bytes together with a prefix of 23.
QUEUE_BYTES_MAX = 40
# Pauses between tries of a run that fails: 1, 2, 4, ... s.
PAUSE_MAX_S = 60
_DOUBLINGS_MAX = 10
# A worker that was not heard of for so long is dead, and its jobs are taken over.
HEARTBEAT_EVERY_S = 2.5
DEAD_AFTER_S = 10.0
JOBS_KEPT_HOURS = 24


@dataclass(frozen=True, slots=True)
class JobsDatabase:
    """Where jobs are kept: a PostgreSQL URL without a password, and the file that holds it."""

    url: str
    password_file: Path | None = None
    schema: str = "jobs"

    def __post_init__(self) -> None:
        if not self.url.startswith(("postgresql://", "postgres://")):
            raise InvalidValue("jobs_url", "must be postgresql://role@host:port/database")
        if not self.schema.isidentifier():
            raise InvalidValue("schema", f"{self.schema!r} is no name of a schema")

    def arguments(self) -> dict[str, Any]:
        """What psycopg is told beside the URL. Raises OSError when the file cannot be read."""
        secret = {} if self.password_file is None else {"password": self.password_file.read_text().strip()}
        options = f"-csearch_path={self.schema} -ctimezone=UTC"
        return {
            **secret,
            "options": options,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "foresight_pipelines",
        }

    def app(self) -> App:
        """The library's application, not open yet."""
        from procrastinate import App, PsycopgConnector

        connector = PsycopgConnector(
            conninfo=self.url, kwargs=self.arguments(), min_size=1, max_size=CONNECTIONS_MAX, timeout=CONNECT_TIMEOUT_S
        )
        return App(connector=connector)

    async def prepare(self) -> None:
        """Makes the library's tables, or brings them to its version; workers that start at once take turns.

        Raises psycopg.Error, OSError.
        """
        import psycopg
        from psycopg import sql

        schema = sql.Identifier(self.schema)
        async with await psycopg.AsyncConnection.connect(self.url, **self.arguments()) as connection:
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"jobs {self.schema}",))
            await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))
            comment_of = "SELECT obj_description(to_regnamespace(%s), 'pg_namespace')"
            [version] = await (await connection.execute(comment_of, [self.schema])).fetchone() or (None,)
            scripts, newest = _scripts(version)
            for script in scripts:
                await connection.execute(script)
            if scripts:
                comment = sql.SQL("COMMENT ON SCHEMA {} IS {}").format(schema, sql.Literal(newest))
                await connection.execute(comment)


def _scripts(version: str | None) -> tuple[Sequence[Any], str]:
    """What has to be run for tables made by a version (its newest migration; None: no tables), and ours."""
    from procrastinate.schema import SchemaManager, migrations_path

    migrations = sorted(file for file in migrations_path.iterdir() if file.suffix == ".sql")
    newest = migrations[-1].name
    if version is None:
        return [SchemaManager.get_schema()], newest
    return [file.read_text() for file in migrations if file.name > version], newest


class Jobs:
    """The jobs of an open application, and those among them that this worker runs."""

    def __init__(self, app: App, dead_after_s: float = DEAD_AFTER_S) -> None:
        self._app = app
        self._dead_after_s = dead_after_s
        self._worker_id: int | None = None
        self._running: set[int | None] = set()
        self._dropped: set[int | None] = set()

    @contextlib.contextmanager
    def running(self, job: Job) -> Iterator[None]:
        """The block in which a job is run here."""
        self._worker_id = job.worker_id
        self._running.add(job.id)
        try:
            yield
        finally:
            self._running.discard(job.id)

    async def ensure(self, pipeline: str, at: datetime | None = None) -> None:
        """Leaves a job for a pipeline behind, to be run at a time (None: now), unless one waits already."""
        from procrastinate.exceptions import AlreadyEnqueued

        job = self._app.configure_task(
            TASK,
            queue=queue_of(pipeline),
            lock=pipeline,
            queueing_lock=pipeline,
            schedule_at=at,
            task_kwargs={"pipeline": pipeline},
        )
        try:
            await job.defer_async()
        except AlreadyEnqueued:
            return

    async def mend(self, pipelines: Sequence[str]) -> None:
        """Gives every pipeline its job again: takes over those of dead workers and those whose end could not be
        written down, makes those that are missing, and forgets what is long over. Call it again and again."""
        manager = self._app.job_manager
        stalled = await manager.get_stalled_jobs(task_name=TASK, seconds_since_heartbeat=self._dead_after_s)
        for job in [*stalled, *await self._dropped_twice()]:
            await self._take_over(job)
        for pipeline in pipelines:
            if not await self._has_job(pipeline):
                await self.ensure(pipeline)
        await manager.delete_old_jobs(
            JOBS_KEPT_HOURS, include_failed=True, include_cancelled=True, include_aborted=True
        )

    async def _dropped_twice(self) -> list[Job]:
        """Jobs that are said to run here and do not, as they did not the last time: the library leaves a job as it is
        when the connection breaks while its end is written down."""
        from procrastinate.jobs import Status

        if self._worker_id is None:
            return []
        doing = await self._app.job_manager.list_jobs_async(
            task=TASK, status=Status.DOING.value, worker_id=self._worker_id
        )
        dropped = [job for job in doing if job.id not in self._running]
        before, self._dropped = self._dropped, {job.id for job in dropped}
        return [job for job in dropped if job.id in before]

    async def _take_over(self, job: Job) -> None:
        from procrastinate.jobs import Status

        # Where the dead worker left the next job behind, this one is over.
        if await self._app.job_manager.list_jobs_async(task=TASK, lock=job.lock, status=Status.TODO.value):
            await self._app.job_manager.finish_job(job, Status.ABORTED, delete_job=False)
        else:
            await self._app.job_manager.retry_job(job)

    async def _has_job(self, pipeline: str) -> bool:
        from procrastinate.jobs import Status

        jobs = await self._app.job_manager.list_jobs_async(task=TASK, lock=pipeline)
        return any(job.status in (Status.TODO.value, Status.DOING.value) for job in jobs)


def queue_of(pipeline: str) -> str:
    """The queue of a pipeline: workers take jobs of the pipelines that they know only."""
    if len(pipeline) <= QUEUE_BYTES_MAX:
        return pipeline
    digest = hashlib.blake2b(pipeline.encode(), digest_size=8).hexdigest()
    return f"{pipeline[: QUEUE_BYTES_MAX - len(digest) - 1]}_{digest}"


def retry_strategy() -> Any:
    """How failed runs are tried again: without end, after pauses that double up to PAUSE_MAX_S."""
    from procrastinate import BaseRetryStrategy, RetryDecision
    from procrastinate.jobs import Job as FailedJob

    class Doubling(BaseRetryStrategy):
        def get_retry_decision(self, *, exception: BaseException, job: FailedJob) -> RetryDecision:
            pause_s = min(2 ** min(job.attempts, _DOUBLINGS_MAX), PAUSE_MAX_S)
            return RetryDecision(retry_in={"seconds": pause_s})

    return Doubling()
