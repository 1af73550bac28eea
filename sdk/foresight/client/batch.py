"""Batch prediction: score whole sets of entities into a table that reports read."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from foresight.client.connection import TRAIN_S, Calls, Connection
from foresight.client.datasets import decode_ref
from foresight.client.errors import DataLoss
from foresight.client.features import VersionRef
from foresight.client.frames import Progress
from foresight.trainer.v1 import batch_prediction_pb2, batch_prediction_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.wire import decode_instant, encode_instant


@dataclass(frozen=True, slots=True)
class BatchRun:
    """A finished batch run; its rows are those of `sink_table` with its `run_id`."""

    run_id: str
    deployment: str
    model: VersionRef
    sink_table: str
    event_time: datetime
    rows: int
    finished_at: datetime
    duration_ms: int


class BatchCalls(Calls):
    """Calls about batch runs."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._batch = batch_prediction_pb2_grpc.BatchPredictionServiceStub(connection.channel)

    def batch(
        self,
        deployment: str,
        group: str,
        *,
        from_event_time: datetime,
        to_event_time: datetime,
        event_time: datetime,
        sink_table: str,
        run_id: str = "",
        version: int = 0,
        progress: Progress | None = None,
        timeout_s: float = TRAIN_S,
    ) -> BatchRun:
        """Scores the latest row per key of `group` in `[from_event_time, to_event_time)` with features as of
        `event_time`, and writes to `sink_table` in one transaction.

        `progress` hears (stage, rows): reading, scoring, writing. Without a `run_id` one is made; the same id answers
        the same run and writes nothing twice.
        """
        request = batch_prediction_pb2.RunBatchPredictionRequest(
            deployment=deployment,
            rows=batch_prediction_pb2.ScoringRows(
                group=types_pb2.VersionRef(name=group, version=version),
                from_event_time=encode_instant(from_event_time),
                to_event_time=encode_instant(to_event_time),
            ),
            event_time=encode_instant(event_time),
            sink_table=sink_table,
            run_id=run_id or str(uuid.uuid4()),
        )

        def last(responses: Iterator[batch_prediction_pb2.RunBatchPredictionResponse]) -> BatchRun:
            for response in responses:
                if response.WhichOneof("event") == "run":
                    return _decode_run(response.run)
                if progress is not None:
                    progress(response.progress.stage, response.progress.rows)
            raise DataLoss("the batch prediction ended without a run")

        return self._connection.download(lambda: self._batch.RunBatchPrediction(request, timeout=timeout_s), last)

    def batch_runs(self) -> list[BatchRun]:
        """Finished runs, newest first."""
        response = self._connection.call(self._batch.ListBatchRuns, batch_prediction_pb2.ListBatchRunsRequest())
        return [_decode_run(run) for run in response.runs]


def _decode_run(message: batch_prediction_pb2.BatchRun) -> BatchRun:
    return BatchRun(
        run_id=message.run_id,
        deployment=message.deployment,
        model=decode_ref(message.model),
        sink_table=message.sink_table,
        event_time=decode_instant(message.event_time, "event_time"),
        rows=message.rows,
        finished_at=decode_instant(message.finished_at, "finished_at"),
        duration_ms=message.duration_ms,
    )
