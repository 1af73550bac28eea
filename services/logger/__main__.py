"""Runs the logger: `python -m services.logger`, settings from FORESIGHT_LOGGER_*."""

from __future__ import annotations

from services.runtime import termination

if __name__ == "__main__":
    # What follows takes a while to load, and may be told to stop meanwhile.
    termination.exit_when_told()

from contextlib import AsyncExitStack
from pathlib import Path

from foresight.logger.v1 import outcome_pb2_grpc, prediction_log_pb2_grpc
from services.logger.config import LoggerSettings
from services.logger.log import PredictionLog
from services.logger.metrics import LoggerMetrics
from services.logger.postgres import SCHEMA, LogStore
from services.logger.record_codec import WireRecords
from services.logger.removal import PredictionRemoval
from services.logger.servicer import SERVICES, OutcomeServicer, PredictionLogServicer
from services.runtime.clock import system_clock
from services.runtime.database import open_database
from services.runtime.logs import configure_logs
from services.runtime.metrics import Metrics
from services.runtime.server import Server
from services.runtime.settings import load_settings

MIGRATIONS = Path(__file__).parent / "migrations"


async def serve(settings: LoggerSettings) -> None:
    """Runs the logger until it is told to stop."""
    async with AsyncExitStack() as stack:
        metrics = Metrics("logger")
        stack.enter_context(metrics.served(settings.metrics_port))
        database = await stack.enter_async_context(open_database(settings.database, SCHEMA, MIGRATIONS))
        store, records, own_metrics = LogStore(database), WireRecords(), LoggerMetrics(metrics)
        log = PredictionLog(store, records, system_clock, own_metrics)
        removal = PredictionRemoval(store, records, system_clock, own_metrics)
        await log.measure()
        server = Server(settings, metrics)
        prediction_log_pb2_grpc.add_PredictionLogServiceServicer_to_server(
            PredictionLogServicer(log, removal), server.grpc
        )
        outcome_pb2_grpc.add_OutcomeServiceServicer_to_server(OutcomeServicer(log), server.grpc)
        await server.run(SERVICES, store.ready)


def main() -> None:
    """Reads the settings and runs."""
    settings = load_settings(LoggerSettings)
    configure_logs("logger", settings.log_level)
    termination.run(serve(settings))


if __name__ == "__main__":
    main()
