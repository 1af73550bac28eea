"""Starts the trainer: `python -m services.trainer`, told by FORESIGHT_TRAINER_*."""

from __future__ import annotations

from services.runtime import termination

if __name__ == "__main__":
    # What follows takes a while to load, and may be told to stop meanwhile.
    termination.exit_when_told()

import asyncio
import contextlib
from pathlib import Path

from foresight.trainer.v1 import (
    batch_prediction_pb2_grpc,
    flywheel_pb2_grpc,
    model_registry_pb2_grpc,
    training_pb2_grpc,
)
from services.runtime.channel import open_channel
from services.runtime.clock import system_clock
from services.runtime.database import Database, open_database
from services.runtime.logs import configure_logs
from services.runtime.metrics import Metrics
from services.runtime.server import Server
from services.runtime.settings import load_settings
from services.trainer.artifacts import FolderArtifacts
from services.trainer.batch import BatchPrediction
from services.trainer.config import TrainerSettings
from services.trainer.declarations import Declarations, declare_again
from services.trainer.evaluation import Evaluation
from services.trainer.executor import open_executor
from services.trainer.feature_store_client import REPEATABLE, FeatureStoreClient
from services.trainer.flywheel import Flywheel
from services.trainer.metrics import TrainerMetrics
from services.trainer.postgres.sink import Sink
from services.trainer.registry import Registry
from services.trainer.scorers import Scorers
from services.trainer.servicer import (
    SERVICES,
    BatchPredictionServicer,
    FlywheelServicer,
    ModelRegistryServicer,
    TrainingServicer,
)
from services.trainer.training import Training
from services.trainer.watch import DeploymentWatch

MIGRATIONS = Path(__file__).parent / "migrations"


def main() -> None:
    """Runs until SIGTERM or SIGINT."""
    termination.run(_run(load_settings(TrainerSettings)))


async def _run(settings: TrainerSettings) -> None:
    async with contextlib.AsyncExitStack() as stack:
        configure_logs("trainer", settings.log_level)
        metrics = Metrics("trainer")
        stack.enter_context(metrics.served(settings.metrics_port))
        own_metrics = TrainerMetrics(metrics)
        database = await stack.enter_async_context(open_database(settings.database, "trainer", MIGRATIONS))
        sink_database = Database(settings.sink, "sink")
        stack.push_async_callback(sink_database.close)
        channel = await stack.enter_async_context(open_channel(settings.feature_store, REPEATABLE))

        feature_store = FeatureStoreClient(channel)
        artifacts = FolderArtifacts(settings.state_folder / "artifacts")
        registry = Registry(database, system_clock, Declarations(feature_store), feature_store.view)
        scorers = Scorers(artifacts)
        evaluation = Evaluation(registry, scorers, feature_store)
        flywheel = Flywheel(registry, evaluation, system_clock, own_metrics)
        batch = BatchPrediction(
            database, registry, scorers, feature_store, Sink(sink_database), system_clock, own_metrics
        )
        executor = await stack.enter_async_context(open_executor())
        training = Training(registry, artifacts, executor, feature_store, own_metrics)

        server = Server(settings, metrics)
        watch = DeploymentWatch(registry, server.stopping)
        training_pb2_grpc.add_TrainingServiceServicer_to_server(TrainingServicer(training, evaluation), server.grpc)
        model_registry_pb2_grpc.add_ModelRegistryServiceServicer_to_server(
            ModelRegistryServicer(registry, watch, artifacts), server.grpc
        )
        batch_prediction_pb2_grpc.add_BatchPredictionServiceServicer_to_server(
            BatchPredictionServicer(batch), server.grpc
        )
        flywheel_pb2_grpc.add_FlywheelServiceServicer_to_server(FlywheelServicer(flywheel, registry), server.grpc)
        async with asyncio.TaskGroup() as tasks:
            again = tasks.create_task(declare_again(registry.declare_again))
            await server.run(SERVICES, lambda: own_metrics.observe(registry))
            again.cancel()


if __name__ == "__main__":
    main()
