"""A feature store in this process: the real database, the real online store, a hand-written log."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from foresight.tables import arrow_type
from foresight.transforms import TransformSet
from foresight.values import Column, DataType, FeatureGroup, FeatureView, Field, ViewFeature, ViewSource
from services.feature_store.__main__ import MIGRATIONS
from services.feature_store.commits import Commit, WriteOrigin
from services.feature_store.datasets.dataset_files import DatasetFiles
from services.feature_store.datasets.dataset_rows import DatasetRows
from services.feature_store.datasets.datasets import TrainingDatasets
from services.feature_store.datasets.logged_rows import LoggedRows
from services.feature_store.datasets.manifests import DatasetRequest, Manifest
from services.feature_store.erasure.eraser import ErasedParts, Eraser, LogRemoval
from services.feature_store.groups import Reference
from services.feature_store.logs.ingestion import LogIngestion
from services.feature_store.logs.log_groups import LogPage, LogSource, OutcomeEntry, PredictionEntry
from services.feature_store.metrics import FeatureStoreMetrics
from services.feature_store.online.applier import Applier
from services.feature_store.online.catch_up import CatchUp
from services.feature_store.online.leases import FileLease
from services.feature_store.online.lmdb_store import LmdbOnlineStore
from services.feature_store.online.rebuild import OnlineRebuild
from services.feature_store.online.vectors import FeatureVectors, VectorReader
from services.feature_store.postgres.catalogue import Catalogue
from services.feature_store.postgres.commit_log import CommitLog
from services.feature_store.postgres.erased_rows import ErasedRowTables
from services.feature_store.postgres.erasures import ErasureTable
from services.feature_store.postgres.labelled_rows import LabelledRows
from services.feature_store.postgres.lineage import LineageTable
from services.feature_store.postgres.manifests import ManifestTable
from services.feature_store.postgres.published_rows import PublishedRowReader
from services.feature_store.postgres.quarantine import Quarantine
from services.feature_store.postgres.registrations import Registrations
from services.feature_store.postgres.row_history import RowHistoryReader
from services.feature_store.postgres.rows import RowReader
from services.feature_store.postgres.statistics import GroupCommitTable, StatisticsTable
from services.feature_store.reads.asof import DuckDbAsOf
from services.feature_store.reads.histories import EventTimes
from services.feature_store.reads.queries import GroupQuery, SpineQuery
from services.feature_store.reads.reading import FeatureReads
from services.feature_store.reads.spine_queries import SpineQueries
from services.feature_store.reads.view_join import ViewJoin
from services.feature_store.reads.watermarks import Watermarks
from services.feature_store.registry.lineage import Lineage
from services.feature_store.registry.registry import Registry
from services.feature_store.servicers.vector_bytes import VectorWriter
from services.feature_store.statistics.described import DescribedRows
from services.feature_store.statistics.engine import SketchingEngine
from services.feature_store.statistics.measures import StatisticsMetrics
from services.feature_store.tables.row_source import RowSource, TableRows, read_all
from services.feature_store.tables.scratch import ScratchFolder
from services.feature_store.tables.spill import SpillFolder
from services.feature_store.tables.workspace import Workspace
from services.feature_store.writes.quarantined_rows import QuarantinedRows
from services.feature_store.writes.writing import FeatureWrites, Write
from services.runtime.database import Database, open_database
from services.runtime.errors import Unavailable
from services.runtime.identity import LOCAL
from services.runtime.metrics import Metrics
from services.runtime.settings import DatabaseSettings

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
T0 = datetime(2026, 2, 1, tzinfo=UTC)
UTC_MICROS = pa.timestamp("us", "UTC")
ALL = EventTimes()


class LogInMemory:
    """A log of entries, each its own position; `away` makes it unreachable."""

    def __init__(self) -> None:
        self.entries: list[PredictionEntry | OutcomeEntry] = []
        self.away = False
        self.reads = 0

    async def read(self, cursor: int, limit: int) -> LogPage:
        """See `LogSource.read`."""
        if self.away:
            raise Unavailable("the logger does not answer")
        self.reads += 1
        end = min(len(self.entries), cursor + limit)
        return LogPage(self.entries[cursor:end], end, len(self.entries))


@dataclass
class Store:
    """The parts of a feature store that tests call; `now` is its clock."""

    database: Database
    folder: Path
    registry: Registry
    lineage: Lineage
    commits: CommitLog
    rows: RowReader
    online: LmdbOnlineStore
    catch_up: CatchUp
    applier: Applier
    rebuild: OnlineRebuild
    writes: FeatureWrites
    workspace: Workspace
    quarantined: QuarantinedRows
    reads: FeatureReads
    datasets: TrainingDatasets
    erasures: ErasureTable
    erased_parts: ErasedParts
    eraser: Eraser
    described: DescribedRows
    statistics: StatisticsTable
    vectors: VectorReader
    ingestion: LogIngestion
    metrics: Metrics
    own_metrics: FeatureStoreMetrics
    clock: list[datetime] = field(default_factory=lambda: [NOW])
    applying: asyncio.Task[None] | None = None

    async def stop_applying(self) -> None:
        """Nobody feeds the online store any more."""
        if self.applying is not None:
            self.applying.cancel()
            await asyncio.wait([self.applying])

    async def group(self, name: str, keys: Sequence[Field], features: Sequence[Field], **options: Any) -> FeatureGroup:
        """Registers a group."""
        group, _ = await self.registry.register_group(FeatureGroup(name, tuple(keys), tuple(features), **options))
        return group

    async def view(self, name: str, *sources: ViewSource, **options: Any) -> FeatureView:
        """Registers a view with the label `late`."""
        label = options.pop("label", Field("late", DataType.BOOL))
        return (await self.registry.register_view(FeatureView(name, label, sources, **options))).view

    async def write(self, group: str, rows: Iterable[dict[str, Any]], write_id: str = "") -> Commit:
        """Writes rows given as dictionaries."""
        stored = await self.registry.group(Reference(group))
        return await self.write_table(group, table(stored.group, list(rows)), write_id)

    async def write_table(self, group: str, rows: pa.Table | RowSource, write_id: str = "", **origin: Any) -> Commit:
        """Writes an Arrow table, or rows of any size."""
        source = TableRows(rows) if isinstance(rows, pa.Table) else rows
        return await self.writes.write(Write(Reference(group), source, LOCAL, WriteOrigin(write_id, **origin)))

    async def read(self, group: str, commit: int = 0, *, latest_only: bool = False) -> list[dict[str, Any]]:
        """All rows of a group."""
        found: list[dict[str, Any]] = []
        async with self.reads.read(GroupQuery(Reference(group), latest_only=latest_only), commit) as stream:
            while (batch := await asyncio.to_thread(stream.next_batch)) is not None:
                found += batch.to_pylist()
        return found

    async def create(self, request: DatasetRequest, spine: pa.Table | None = None) -> Manifest:
        """Creates a training dataset."""
        return await self.datasets.create(request, None if spine is None else TableRows(spine))

    async def read_dataset(self, dataset_id: str, split: str = "") -> pa.Table:
        """The rows of a training dataset."""
        async with self.datasets.read(dataset_id, split) as rows:
            return await asyncio.to_thread(read_all, rows)

    async def read_as_of(self, view: str, spine: pa.Table | SpineQuery, **options: Any) -> pa.Table:
        """A spine joined with a view."""
        rows: RowSource | SpineQuery = TableRows(spine) if isinstance(spine, pa.Table) else spine
        async with self.reads.read_as_of(Reference(view), rows, **options) as joined:
            return await asyncio.to_thread(read_all, joined)


@contextlib.asynccontextmanager
async def running_store(
    settings: DatabaseSettings,
    folder: Path,
    *,
    log: LogSource | None = None,
    forgets: LogRemoval | None = None,
    applying: bool = True,
    modules: Sequence[str] = (),
) -> AsyncIterator[Store]:
    """A feature store on a database and a state folder; `applying` False: nobody feeds the online store."""
    clock = [NOW]

    def now() -> datetime:
        return clock[0]

    metrics = Metrics("feature_store")
    own = FeatureStoreMetrics(metrics.registry)
    async with open_database(settings, "feature_store", MIGRATIONS) as database:
        transforms = TransformSet(modules)
        registry = Registry(Catalogue(database), Registrations(database), transforms)
        commits, rows = CommitLog(database), RowReader(database)
        online, engine = LmdbOnlineStore(folder / "online"), DuckDbAsOf(folder / "duckdb")
        scratch = ScratchFolder(folder / "apply")
        published = PublishedRowReader(database, scratch)
        erasures = ErasureTable(database)
        catch_up = CatchUp(commits, published, registry, erasures)
        applier = Applier(catch_up, online, FileLease(folder / "lock"), own)
        rebuild = OnlineRebuild(online, catch_up, published)
        spills = SpillFolder(folder / "join")
        join = ViewJoin(rows, engine, transforms, spills)
        watermarks, queries = Watermarks(commits), SpineQueries(registry, rows, spills)
        dataset_rows = DatasetRows(registry, join, LoggedRows(registry, LabelledRows(database), spills), queries)
        files = DatasetFiles(folder / "datasets")
        datasets = TrainingDatasets(registry, watermarks, dataset_rows, files, ManifestTable(database), now)
        statistics, measured = StatisticsTable(database), StatisticsMetrics(metrics.registry)
        described = DescribedRows(
            registry,
            commits,
            GroupCommitTable(database),
            rows,
            published,
            datasets,
            statistics,
            SketchingEngine(),
            measured,
        )
        workspace = Workspace(folder / "transit")
        parts = ErasedParts(
            *(ErasedRowTables(database), applier, forgets, commits, datasets, statistics), users=LineageTable(database)
        )
        store = Store(
            database=database,
            folder=folder,
            registry=registry,
            lineage=Lineage(LineageTable(database)),
            commits=commits,
            rows=rows,
            online=online,
            catch_up=catch_up,
            applier=applier,
            rebuild=rebuild,
            writes=FeatureWrites(registry, commits, applier, now, own, workspace, described),
            workspace=workspace,
            quarantined=QuarantinedRows(registry, commits, Quarantine(database)),
            reads=FeatureReads(registry, watermarks, rows, queries, join),
            datasets=datasets,
            erasures=erasures,
            erased_parts=parts,
            eraser=Eraser(erasures, parts, now),
            described=described,
            statistics=statistics,
            vectors=VectorReader(registry, online, RowHistoryReader(database, commits), erasures),
            ingestion=LogIngestion(registry, commits, log, now, own, applier.pass_over),
            metrics=metrics,
            own_metrics=own,
            clock=clock,
        )
        store.applying = asyncio.create_task(applier.run()) if applying else None
        try:
            yield store
        finally:
            await store.stop_applying()
            online.close()
            scratch.close()
            workspace.close()
            engine.close()
            spills.close()


@contextlib.contextmanager
def state_folder() -> Any:
    """A state folder, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fs-state-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(group: FeatureGroup, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as an Arrow table with the group's types; columns that no row names are left out."""
    fields = {f.name: arrow_type(f) for f in group.fields}
    fields |= {"event_time": UTC_MICROS, "known_at": UTC_MICROS, "deleted": pa.bool_()}
    names = [name for name in fields if any(name in row for row in rows)]
    return pa.table({name: pa.array([row.get(name) for row in rows], fields[name]) for name in names})


def keys(**columns: Sequence[Any]) -> dict[str, Column]:
    """Entity keys of a look-up: texts, or integers."""
    made = {}
    for name, values in columns.items():
        some = next((v for v in values if v is not None), "")
        type = DataType.STRING if isinstance(some, str) else DataType.INT64
        made[name] = Column.build(name, type, values)
    return made


def as_sent(vectors: FeatureVectors) -> bytes:
    """The bytes that a client gets, which tell -0.0 from 0.0."""
    return VectorWriter().message(vectors)


def source(group: str, *features: str, **options: Any) -> ViewSource:
    """A source that takes features under their own names."""
    return ViewSource(group, tuple(ViewFeature(name) for name in features), **options)


def at(minutes: float) -> datetime:
    """T0 plus minutes."""
    return T0 + timedelta(minutes=minutes)
