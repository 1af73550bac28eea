"""Statistics of what the store holds: found where they were computed before, else computed once and kept.

Rows never change, so what was kept stays true: of commits and datasets for good, of the latest rows and of windows of
the log for the commit up to which they were read. Only erasure changes rows: it removes what was kept, and what was
being computed meanwhile is answered but not kept (`StatisticsStore`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Protocol
from weakref import WeakValueDictionary

import pyarrow as pa
import structlog

from foresight.values import Column, DataType
from services.feature_store.commits import Commit, PublishedCommit, watermark
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.logs.log_groups import PREDICTIONS, SHADOW, group_name
from services.feature_store.reads.histories import BatchStream
from services.feature_store.reads.queries import Condition, GroupQuery, Operator
from services.feature_store.registry.registry import Registry
from services.feature_store.statistics.comparison import ColumnComparison, compare
from services.feature_store.statistics.description import Statistics, StatisticsEngine
from services.feature_store.statistics.measures import StatisticsMetrics
from services.feature_store.statistics.row_batches import described_batches, described_schema
from services.feature_store.statistics.targets import (
    CommitRows,
    DatasetRows,
    Kind,
    LatestRows,
    LogWindow,
    Subject,
    Target,
    subject_of_commit,
    subject_of_dataset,
    subject_of_latest,
    subject_of_log,
)
from services.feature_store.tables.row_source import RowSource
from services.runtime.errors import FailedPrecondition, LimitExceeded, NotFound, ServiceError
from services.runtime.threads import in_thread

log = structlog.get_logger()

# Computations on demand at once, each with a database connection that writers need too; and requests that wait.
COMPUTATIONS_MAX = 1
WAITING_MAX = 32
# Writes that are being described at once.
WRITES_MAX = 2


class GroupCommits(Protocol):
    """Says which commits a group has."""

    async def last_of(self, group_id: int, at_most: int) -> PublishedCommit | None:
        """The group's last commit up to a number."""
        ...


class LastCommit(Protocol):
    """Says how far the commits go."""

    async def last(self) -> int: ...


class RowStreams(Protocol):
    """Streams rows of queries."""

    def stream(
        self, stored: StoredGroup, query: GroupQuery, watermark: int
    ) -> contextlib.AbstractAsyncContextManager[BatchStream]: ...


class CommittedRows(Protocol):
    """Reads the rows of commits."""

    def of_writes(
        self, stored: StoredGroup, writes: Sequence[int], rows: int
    ) -> contextlib.AbstractAsyncContextManager[RowSource]: ...


class Batches(Protocol):
    """Rows to be gone through."""

    @property
    def schema(self) -> pa.Schema: ...

    def batches(self) -> Iterator[pa.RecordBatch]: ...


class Datasets(Protocol):
    """Reads training datasets."""

    async def get(self, dataset_id: str) -> object:
        """Raises NotFound."""
        ...

    def read(self, dataset_id: str, split: str) -> contextlib.AbstractAsyncContextManager[Batches]: ...


class StatisticsStore(Protocol):
    """Keeps statistics."""

    async def find(self, subject: Subject) -> Statistics | None:
        """What was kept of a subject."""
        ...

    async def erasures(self) -> int:
        """How often statistics were forgotten; read before the rows are."""
        ...

    async def keep(self, subject: Subject, statistics: Statistics, erasures: int) -> bool:
        """Keeps statistics, unless some were forgotten since `erasures` was read."""
        ...


class DescribedRows:
    """Gets, computes and compares statistics, and describes large commits as they are written."""

    def __init__(
        self,
        registry: Registry,
        commits: LastCommit,
        group_commits: GroupCommits,
        streams: RowStreams,
        committed_rows: CommittedRows,
        datasets: Datasets,
        store: StatisticsStore,
        engine: StatisticsEngine,
        metrics: StatisticsMetrics,
    ) -> None:
        self._registry = registry
        self._commits = commits
        self._group_commits = group_commits
        self._streams = streams
        self._committed_rows = committed_rows
        self._datasets = datasets
        self._store = store
        self._engine = engine
        self._metrics = metrics
        self._computing = asyncio.Semaphore(COMPUTATIONS_MAX)
        self._writing = asyncio.Semaphore(WRITES_MAX)
        self._waiting = 0
        # One lock per subject that is being computed: whoever waits for it finds the result kept.
        self._turns: WeakValueDictionary[tuple[str, int, str, int, str], asyncio.Lock] = WeakValueDictionary()

    async def get(self, target: Target) -> tuple[Subject, Statistics]:
        """What a target means now, and its statistics.

        Raises NotFound, OutOfRange for a commit that does not exist yet, FailedPrecondition when there are no rows to
        describe, LimitExceeded while WAITING_MAX others wait; and what reading a dataset raises.
        """
        subject = await self._resolve(target)
        found = await self._found(subject)
        if found is None:
            found = await self._computed_once(subject)
        return subject, found

    async def compare(self, reference: Target, current: Target) -> tuple[Subject, Subject, list[ColumnComparison]]:
        """How the rows of `current` differ from those of `reference`. Raises as `get` does."""
        before, reference_statistics = await self.get(reference)
        after, current_statistics = await self.get(current)
        return before, after, compare(reference_statistics, current_statistics)

    async def committed(self, stored: StoredGroup, commit: Commit, rows: RowSource) -> None:
        """Describes the rows of a commit that was published just now.

        A failure is logged and nothing else: whoever asks later finds nothing kept, and computes.
        """
        subject = subject_of_commit(stored, commit.number)
        async with self._writing:
            try:
                erasures = await self._store.erasures()
                batches = described_batches(stored.group, rows.batches())
                statistics = await self._computed(subject.kind, described_schema(stored.group), batches)
                await self._store.keep(subject, statistics, erasures)
            except (ServiceError, OSError, MemoryError, pa.ArrowException) as error:
                self._metrics.asked.labels(subject.kind, "failed").inc()
                log.warning("commit_not_described", group=stored.group.name, commit=commit.number, exc_info=error)

    async def _resolve(self, target: Target) -> Subject:
        match target:
            case CommitRows():
                stored, commit = await self._group_commit(target.group, target.commit)
                if target.commit and commit.number != target.commit:
                    raise NotFound(f"commit of {stored.group.name} version {stored.group.version},", str(target.commit))
                return subject_of_commit(stored, commit.number)
            case LatestRows():
                stored, commit = await self._group_commit(target.group, target.commit)
                return subject_of_latest(stored, commit.number)
            case DatasetRows():
                await self._datasets.get(target.dataset_id)
                return subject_of_dataset(target)
            case LogWindow():
                view = (await self._registry.plan(target.view)).view
                reference = Reference(group_name(PREDICTIONS, view.name, view.version))
                try:
                    stored, commit = await self._group_commit(reference, 0)
                except (NotFound, FailedPrecondition):
                    raise FailedPrecondition(
                        f"no predictions of {view.name} version {view.version} were reingested yet"
                    ) from None
                return subject_of_log(target, view.version, stored, commit.number)

    async def _group_commit(self, reference: Reference, at_most: int) -> tuple[StoredGroup, PublishedCommit]:
        """A group and its last commit up to a number."""
        stored = await self._registry.group(reference)
        limit = watermark(at_most, await self._commits.last())
        commit = await self._group_commits.last_of(stored.id, limit)
        if commit is None:
            by_then = f" by commit {at_most}" if at_most else " yet"
            raise FailedPrecondition(f"{stored.group.name} version {stored.group.version} has no rows{by_then}")
        return stored, commit

    async def _found(self, subject: Subject) -> Statistics | None:
        """What was kept, when it has all columns that the group has by now."""
        found = await self._store.find(subject)
        if found is None or not subject.columns <= {column.name for column in found.columns}:
            return None
        self._metrics.asked.labels(subject.kind, "found").inc()
        return found

    async def _computed_once(self, subject: Subject) -> Statistics:
        group_id = 0 if subject.group is None else subject.group.id
        key = (subject.kind, group_id, subject.dataset_id, subject.commit, subject.selection)
        turn = self._turns.setdefault(key, asyncio.Lock())
        with self._counted():
            async with turn:
                # Whoever had the turn before may have kept it.
                found = await self._found(subject)
                if found is not None:
                    return found
                async with self._computing:
                    erasures = await self._store.erasures()
                    try:
                        async with self._opened(subject) as (schema, batches):
                            statistics = await self._computed(subject.kind, schema, batches)
                    except ServiceError:
                        self._metrics.asked.labels(subject.kind, "failed").inc()
                        raise
                    await self._store.keep(subject, statistics, erasures)
        return statistics

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        if self._waiting >= WAITING_MAX:
            raise LimitExceeded("too many statistics are being computed; repeat later", limit="statistics")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _computed(self, kind: Kind, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Statistics:
        started = time.perf_counter()
        statistics = await in_thread(self._engine.describe, schema, batches)
        self._metrics.seconds.labels(kind).observe(time.perf_counter() - started)
        self._metrics.asked.labels(kind, "computed").inc()
        return statistics

    @contextlib.asynccontextmanager
    async def _opened(self, subject: Subject) -> AsyncIterator[tuple[pa.Schema, Iterable[pa.RecordBatch]]]:
        """The rows of a subject, to be gone through once."""
        if subject.group is None:
            assert isinstance(subject.target, DatasetRows)
            async with self._datasets.read(subject.dataset_id, subject.target.split) as rows:
                yield rows.schema, rows.batches()
            return
        group, schema = subject.group.group, described_schema(subject.group.group)
        if isinstance(subject.target, CommitRows):
            commit = await self._group_commits.last_of(subject.group.id, subject.commit)
            assert commit is not None
            async with self._committed_rows.of_writes(subject.group, [commit.write], commit.rows) as rows:
                yield schema, described_batches(group, rows.batches())
            return
        async with self._streams.stream(subject.group, _query(subject), subject.commit) as stream:
            yield schema, described_batches(group, iter(stream.next_batch, None))


def _query(subject: Subject) -> GroupQuery:
    assert subject.group is not None
    reference = Reference(subject.group.group.name, subject.group.group.version)
    if not isinstance(subject.target, LogWindow):
        return GroupQuery(reference, latest_only=True)
    deployment = subject.target.deployment
    where: list[Condition] = []
    if deployment:
        value = Column.build("log_deployment", DataType.STRING, [deployment])
        where.append(Condition("log_deployment", Operator.EQUAL, value))
    if any(f.name == SHADOW for f in subject.group.group.features):
        # What shadows made beside the answers would count every question again.
        where.append(Condition(SHADOW, Operator.EQUAL, Column.build(SHADOW, DataType.BOOL, [False])))
    return GroupQuery(reference, subject.target.times, where=tuple(where))
