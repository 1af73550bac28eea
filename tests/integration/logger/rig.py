"""A logger in this process on a Unix socket, and the messages that tests send to it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from foresight.logger.v1 import outcome_pb2, outcome_pb2_grpc, prediction_log_pb2, prediction_log_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType
from foresight.wire import encode_column, encode_instant
from services.logger.__main__ import MIGRATIONS
from services.logger.log import PredictionLog
from services.logger.metrics import LoggerMetrics
from services.logger.postgres import SCHEMA, LogStore
from services.logger.record_codec import WireRecords
from services.logger.removal import PredictionRemoval
from services.logger.servicer import OutcomeServicer, PredictionLogServicer
from services.runtime.database import Database, open_database
from services.runtime.ids import new_id
from services.runtime.metrics import Metrics
from services.runtime.server import Server
from services.runtime.settings import DatabaseSettings, ServiceSettings

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ASKED = datetime(2026, 3, 1, 11, tzinfo=UTC)
ASKED_MICROS = int(ASKED.timestamp()) * 1_000_000
KNOWN_MICROS = int(NOW.timestamp()) * 1_000_000

Record = prediction_log_pb2.PredictionRecord


@dataclass
class Logger:
    """The stubs of a running logger, its clock, its store and its metrics."""

    channel: grpc.aio.Channel
    log: prediction_log_pb2_grpc.PredictionLogServiceAsyncStub
    outcomes: outcome_pb2_grpc.OutcomeServiceAsyncStub
    database: Database
    metrics: Metrics
    store: LogStore
    now: datetime = NOW

    async def append(
        self, *records: Record, quarantined: Sequence[prediction_log_pb2.QuarantinedRange] = ()
    ) -> prediction_log_pb2.AppendRecordsResponse:
        """Appends records."""
        request = prediction_log_pb2.AppendRecordsRequest(records=records, quarantined=quarantined)
        return await self.log.AppendRecords(request)

    async def read(self, cursor: int = 0, page_size: int = 0) -> prediction_log_pb2.ReadLogResponse:
        """Reads one page."""
        return await self.log.ReadLog(prediction_log_pb2.ReadLogRequest(cursor=cursor, page_size=page_size))

    async def read_all(self, page_size: int = 0) -> list[prediction_log_pb2.LogEntry]:
        """Reads to the head."""
        entries: list[prediction_log_pb2.LogEntry] = []
        cursor = 0
        while True:
            page = await self.read(cursor, page_size)
            entries.extend(page.entries)
            cursor = page.cursor
            if cursor == page.head:
                return entries

    async def ledger(self) -> dict[str, tuple[int, int, int, int]]:
        """(highest sequence, logged, quarantined, duplicates) by incarnation."""
        answer = await self.log.GetLedger(prediction_log_pb2.GetLedgerRequest())
        return {
            row.incarnation: (row.highest_sequence, row.logged, row.quarantined, row.duplicates)
            for row in answer.incarnations
        }

    def metric(self, name: str, **labels: str) -> float:
        """The present value of a metric."""
        value = self.metrics.registry.get_sample_value(name, labels)
        assert value is not None, name
        return value


@contextlib.asynccontextmanager
async def running_logger(settings: DatabaseSettings) -> AsyncIterator[Logger]:
    """Serves a logger on a socket of its own."""
    folder = Path(tempfile.mkdtemp(prefix="fs-log-"))
    address = f"unix:{folder}/s"
    metrics = Metrics("logger")
    async with open_database(settings, SCHEMA, MIGRATIONS) as database:
        store = LogStore(database)
        server = Server(ServiceSettings(listen=address), metrics)
        async with grpc.aio.insecure_channel(address, [("grpc.default_authority", "localhost")]) as channel:
            logger = Logger(
                channel,
                prediction_log_pb2_grpc.PredictionLogServiceStub(channel),
                outcome_pb2_grpc.OutcomeServiceStub(channel),
                database,
                metrics,
                store,
            )
            records, own = WireRecords(), LoggerMetrics(metrics)
            log = PredictionLog(store, records, lambda: logger.now, own)
            removal = PredictionRemoval(store, records, lambda: logger.now, own)
            prediction_log_pb2_grpc.add_PredictionLogServiceServicer_to_server(
                PredictionLogServicer(log, removal), server.grpc
            )
            outcome_pb2_grpc.add_OutcomeServiceServicer_to_server(OutcomeServicer(log), server.grpc)
            server.grpc.add_insecure_port(address)
            await server.grpc.start()
            try:
                yield logger
            finally:
                await server.grpc.stop(1)
                shutil.rmtree(folder, ignore_errors=True)


def new_incarnation() -> str:
    """The id of a new life of a replica."""
    return str(uuid.uuid4())


def record(
    incarnation: str,
    first_sequence: int,
    n: int = 1,
    *,
    ids: Sequence[str] | None = None,
    flights: Sequence[int | None] | None = None,
    event_time: datetime = ASKED,
    deployment: str = "delays",
    replica: str = "predictor-0",
) -> Record:
    """A record as the predictor writes it: n predictions, with the sequence number as flight unless told otherwise."""
    keys = list(range(first_sequence, first_sequence + n)) if flights is None else list(flights)
    rows = range(n)
    return Record(
        replica=replica,
        incarnation=incarnation,
        first_sequence=first_sequence,
        prediction_ids=ids or [new_id() for _ in rows],
        request_id="request",
        caller="spiffe://foresight/application/demo",
        deployment=deployment,
        model=types_pb2.VersionRef(name="delay", version=1),
        model_sha256="ab" * 32,
        view=types_pb2.VersionRef(name="flight_delay", version=2),
        applied_commit=7,
        event_time=encode_instant(event_time),
        served_at=encode_instant(event_time),
        latency_us=900,
        entity_keys=[column("flight", DataType.INT64, keys), column("origin", DataType.STRING, ["JFK"] * n)],
        request_features=[column("hour", DataType.INT64, [k or 0 for k in keys])],
        features=[
            prediction_log_pb2.LoggedFeature(
                column=column("wind", DataType.FLOAT64, [None if i % 2 else i / 4 for i in rows]),
                statuses=bytes([2 if i % 2 else 1 for i in rows]),
                policies=bytes([1 if i % 2 else 0 for i in rows]),
            )
        ],
        sources=[
            prediction_log_pb2.LoggedSource(
                group=types_pb2.VersionRef(name="weather", version=1),
                event_time_micros=[ASKED_MICROS - i for i in rows],
                commits=[i + 1 for i in rows],
            )
        ],
        outputs=[column("probability", DataType.FLOAT64, [i / 2_048 for i in rows])],
    )


def lost(incarnation: str, first: int, last: int) -> prediction_log_pb2.QuarantinedRange:
    """A range that was damaged in the spool."""
    return prediction_log_pb2.QuarantinedRange(
        replica="predictor-0", incarnation=incarnation, first_sequence=first, last_sequence=last, reason="bad CRC"
    )


def column(name: str, type: DataType, values: Sequence[Any]) -> types_pb2.Column:
    """The message of a column."""
    return encode_column(Column.build(name, type, values))


def by_id(
    ids: Sequence[str],
    values: Sequence[Any],
    revisions: Sequence[int] = (),
    *,
    type: DataType = DataType.BOOL,
    observed_at: int = KNOWN_MICROS,
) -> outcome_pb2.RecordOutcomesRequest:
    """Outcomes by prediction id."""
    return outcome_pb2.RecordOutcomesRequest(
        prediction_ids=ids,
        values=column("late", type, values),
        observed_at_micros=[observed_at] * len(values),
        revisions=revisions,
    )


def by_keys(
    flights: Sequence[int | None],
    values: Sequence[Any],
    revisions: Sequence[int] = (),
    *,
    event_time_micros: int = ASKED_MICROS,
    deployment: str = "delays",
) -> outcome_pb2.RecordOutcomesRequest:
    """Outcomes by keys; the columns come in another order than in the record."""
    n = len(flights)
    return outcome_pb2.RecordOutcomesRequest(
        deployment=deployment,
        entity_keys=[column("origin", DataType.STRING, ["JFK"] * n), column("flight", DataType.INT64, flights)],
        event_time_micros=[event_time_micros] * n,
        values=column("late", DataType.BOOL, values),
        observed_at_micros=[KNOWN_MICROS] * n,
        revisions=revisions,
    )
