"""Runs the feature store: `python -m services.feature_store`."""

from __future__ import annotations

from services.runtime import termination

if __name__ == "__main__":
    # What follows takes a while to load, and may be told to stop meanwhile.
    termination.exit_when_told()

import asyncio
import contextlib
from pathlib import Path

from foresight.feature_store.v1 import (
    erasure_pb2_grpc,
    lineage_pb2_grpc,
    log_ingestion_pb2_grpc,
    offline_pb2_grpc,
    pipeline_pb2_grpc,
    registry_pb2_grpc,
    statistics_pb2_grpc,
    training_dataset_pb2_grpc,
)
from foresight.transforms import TransformSet
from services.feature_store.config import FeatureStoreSettings
from services.feature_store.datasets.dataset_files import DatasetFiles
from services.feature_store.datasets.dataset_rows import DatasetRows
from services.feature_store.datasets.datasets import TrainingDatasets
from services.feature_store.datasets.logged_rows import LoggedRows
from services.feature_store.erasure.eraser import ErasedParts, Eraser
from services.feature_store.logger_client import LoggerClient
from services.feature_store.logs.ingestion import LogIngestion
from services.feature_store.metrics import FeatureStoreMetrics
from services.feature_store.online.applier import Applier
from services.feature_store.online.catch_up import CatchUp
from services.feature_store.online.rebuild import OnlineRebuild
from services.feature_store.online.stores import open_online_store, reingestion_lease
from services.feature_store.online.vectors import VectorReader
from services.feature_store.pipelines import Pipelines
from services.feature_store.postgres.catalogue import Catalogue
from services.feature_store.postgres.commit_log import CommitLog
from services.feature_store.postgres.erased_rows import ErasedRowTables
from services.feature_store.postgres.erasures import ErasureTable
from services.feature_store.postgres.labelled_rows import LabelledRows
from services.feature_store.postgres.lineage import LineageTable
from services.feature_store.postgres.manifests import ManifestTable
from services.feature_store.postgres.pipelines import PipelineTable
from services.feature_store.postgres.published_rows import PublishedRowReader
from services.feature_store.postgres.quarantine import Quarantine
from services.feature_store.postgres.registrations import Registrations
from services.feature_store.postgres.row_history import RowHistoryReader
from services.feature_store.postgres.rows import RowReader
from services.feature_store.postgres.statistics import GroupCommitTable, StatisticsTable
from services.feature_store.reads.asof import DuckDbAsOf, NumpyAsOf, SizedAsOf
from services.feature_store.reads.reading import FeatureReads
from services.feature_store.reads.spine_queries import SpineQueries
from services.feature_store.reads.view_join import ViewJoin
from services.feature_store.reads.watermarks import Watermarks
from services.feature_store.registry.lineage import Lineage
from services.feature_store.registry.registry import Registry
from services.feature_store.servicers import (
    ErasureServicer,
    LineageServicer,
    LogIngestionServicer,
    OfflineServicer,
    OnlineServicer,
    PipelineServicer,
    RegistryServicer,
    StatisticsServicer,
    TrainingDatasetServicer,
)
from services.feature_store.statistics.described import DescribedRows
from services.feature_store.statistics.engine import SketchingEngine
from services.feature_store.statistics.measures import StatisticsMetrics
from services.feature_store.tables.scratch import ScratchFolder
from services.feature_store.tables.spill import SpillFolder
from services.feature_store.tables.transit import TablesInTransit
from services.feature_store.writes.quarantined_rows import QuarantinedRows
from services.feature_store.writes.writing import FeatureWrites
from services.runtime.channel import open_channel
from services.runtime.clock import system_clock
from services.runtime.database import open_database
from services.runtime.logs import configure_logs
from services.runtime.memory import keep_what_is_there
from services.runtime.metrics import Metrics
from services.runtime.server import Server
from services.runtime.settings import load_settings

MIGRATIONS = Path(__file__).parent / "migrations"
SERVICES = (
    "foresight.feature_store.v1.FeatureRegistryService",
    "foresight.feature_store.v1.LineageService",
    "foresight.feature_store.v1.OfflineFeatureService",
    "foresight.feature_store.v1.TrainingDatasetService",
    "foresight.feature_store.v1.StatisticsService",
    "foresight.feature_store.v1.OnlineFeatureService",
    "foresight.feature_store.v1.LogIngestionService",
    "foresight.feature_store.v1.ErasureService",
    "foresight.feature_store.v1.FeaturePipelineService",
)


async def serve(settings: FeatureStoreSettings) -> None:
    """Runs the service until it is told to stop."""
    async with contextlib.AsyncExitStack() as stack:
        metrics = Metrics("feature_store")
        stack.enter_context(metrics.served(settings.metrics_port))
        own_metrics = FeatureStoreMetrics(metrics.registry)
        database = await stack.enter_async_context(open_database(settings.database, "feature_store", MIGRATIONS))
        clock = system_clock

        transforms = TransformSet(settings.transform_modules)
        registry = Registry(Catalogue(database), Registrations(database), transforms)
        commits, rows = CommitLog(database), RowReader(database)
        online, lease = await stack.enter_async_context(
            open_online_store(settings.online, settings.state_folder, database)
        )
        scratch = ScratchFolder(settings.state_folder / "apply")
        stack.callback(scratch.close)
        published = PublishedRowReader(database, scratch)
        erasures = ErasureTable(database)
        catch_up = CatchUp(commits, published, registry, erasures)
        applier = Applier(catch_up, online, lease, own_metrics)
        rebuild = OnlineRebuild(online, catch_up, published)
        spills = SpillFolder(settings.state_folder / "join")
        stack.callback(spills.close)
        duckdb = DuckDbAsOf(spills.new_path())
        stack.callback(duckdb.close)
        engine = SizedAsOf(NumpyAsOf(), duckdb)
        join = ViewJoin(rows, engine, transforms, spills)
        watermarks, queries = Watermarks(commits), SpineQueries(registry, rows, spills)
        reads = FeatureReads(registry, watermarks, rows, queries, join)
        dataset_rows = DatasetRows(registry, join, LoggedRows(registry, LabelledRows(database), spills), queries)
        dataset_files = DatasetFiles(settings.state_folder / "datasets")
        stack.callback(dataset_files.close)
        datasets = TrainingDatasets(registry, watermarks, dataset_rows, dataset_files, ManifestTable(database), clock)
        described = DescribedRows(
            registry,
            commits,
            GroupCommitTable(database),
            rows,
            published,
            datasets,
            StatisticsTable(database),
            SketchingEngine(),
            StatisticsMetrics(metrics.registry),
        )
        transit = TablesInTransit(settings.state_folder / "transit")
        stack.callback(transit.close)
        writes = FeatureWrites(registry, commits, applier, clock, own_metrics, transit.workspace, described)
        quarantined = QuarantinedRows(registry, commits, Quarantine(database))
        vectors = VectorReader(registry, online, RowHistoryReader(database, commits), erasures)
        source = None
        if settings.logger is not None:
            source = LoggerClient(await stack.enter_async_context(open_channel(settings.logger)))
        following = reingestion_lease(settings.online, settings.state_folder, database)
        ingestion = LogIngestion(registry, commits, source, clock, own_metrics, applier.pass_over, following)
        uses = LineageTable(database)
        erased = ErasedParts(
            ErasedRowTables(database), applier, source, commits, datasets, StatisticsTable(database), uses
        )
        eraser = Eraser(erasures, erased, clock)

        server = Server(settings, metrics)
        registry_pb2_grpc.add_FeatureRegistryServiceServicer_to_server(RegistryServicer(registry), server.grpc)
        lineage_pb2_grpc.add_LineageServiceServicer_to_server(LineageServicer(Lineage(uses)), server.grpc)
        offline_pb2_grpc.add_OfflineFeatureServiceServicer_to_server(
            OfflineServicer(writes, reads, quarantined, transit), server.grpc
        )
        training_dataset_pb2_grpc.add_TrainingDatasetServiceServicer_to_server(
            TrainingDatasetServicer(datasets, transit), server.grpc
        )
        statistics_pb2_grpc.add_StatisticsServiceServicer_to_server(StatisticsServicer(described), server.grpc)
        OnlineServicer(vectors, rebuild).add_to(server.grpc)
        log_ingestion_pb2_grpc.add_LogIngestionServiceServicer_to_server(LogIngestionServicer(ingestion), server.grpc)
        erasure_pb2_grpc.add_ErasureServiceServicer_to_server(ErasureServicer(eraser), server.grpc)
        pipeline_pb2_grpc.add_FeaturePipelineServiceServicer_to_server(
            PipelineServicer(Pipelines(PipelineTable(database), clock)), server.grpc
        )

        async def ready() -> bool:
            return applier.caught_up and await database.ping()

        keep_what_is_there()
        async with asyncio.TaskGroup() as tasks:
            loops = [
                tasks.create_task(registry.run()),
                tasks.create_task(applier.run()),
                tasks.create_task(ingestion.run()),
                tasks.create_task(eraser.run()),
            ]
            await server.run(SERVICES, ready)
            for loop in loops:
                loop.cancel()


def main() -> None:
    """Reads the settings and serves."""
    settings = load_settings(FeatureStoreSettings)
    configure_logs("feature_store", settings.log_level)
    termination.run(serve(settings))


if __name__ == "__main__":
    main()
