"""The log as the logger serves it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import grpc

from foresight.logger.v1 import prediction_log_pb2, prediction_log_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import DataType, FeatureStatus, Field, micros_from_instant
from foresight.wire import decode_instant, encode_column, encode_instant
from services.feature_store.erasure.eraser import LogProgress, LogSelection
from services.feature_store.groups import Reference
from services.feature_store.logs.log_groups import LoggedColumn, LogPage, OutcomeEntry, PredictionEntry
from services.runtime.channel import translated
from services.runtime.threads import in_thread

TIMEOUT_S = 10.0
# Looks at ten thousand positions.
FORGET_TIMEOUT_S = 60.0
_UNAVAILABLE = bytes([FeatureStatus.UNAVAILABLE])
_ARMS = {
    "int64_values": DataType.INT64,
    "float64_values": DataType.FLOAT64,
    "bool_values": DataType.BOOL,
    "string_values": DataType.STRING,
}


class LoggerClient:
    """A `LogSource` behind the logger's RPC."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = prediction_log_pb2_grpc.PredictionLogServiceStub(channel)

    async def read(self, cursor: int, limit: int) -> LogPage:
        """See `LogSource.read`."""
        request = prediction_log_pb2.ReadLogRequest(cursor=cursor, page_size=limit)
        with translated("logger"):
            response = await self._stub.ReadLog(request, timeout=TIMEOUT_S)
        return await in_thread(_page, response)

    async def forget(
        self, request_id: str, served_before: datetime, selections: Sequence[LogSelection], after: int
    ) -> LogProgress:
        """See `LogRemoval.forget`."""
        request = prediction_log_pb2.ForgetPredictionsRequest(
            request_id=request_id,
            served_before=encode_instant(served_before),
            selections=[
                prediction_log_pb2.PredictionSelection(
                    views=[types_pb2.VersionRef(name=view.name, version=view.version) for view in selection.views],
                    keys=[encode_column(column) for column in selection.keys],
                    entity_keys=selection.entity_keys,
                )
                for selection in selections
            ],
            after=after,
        )
        with translated("logger"):
            response = await self._stub.ForgetPredictions(request, timeout=FORGET_TIMEOUT_S)
        return LogProgress(response.predictions, response.position, response.end)


def _page(response: prediction_log_pb2.ReadLogResponse) -> LogPage:
    entries: list[PredictionEntry | OutcomeEntry] = []
    for entry in response.entries:
        match entry.WhichOneof("entry"):
            case "record":
                entries.append(_prediction(entry.record))
            case "outcome":
                entries.append(_outcome(entry.outcome))
    return LogPage(entries, response.cursor, response.head)


def _prediction(record: prediction_log_pb2.PredictionRecord) -> PredictionEntry:
    features = (feature.column for feature in record.features)
    return PredictionEntry(
        view=Reference(record.view.name, record.view.version),
        prediction_ids=list(record.prediction_ids),
        deployment=record.deployment,
        model=record.model.name,
        model_version=record.model.version,
        caller=record.caller,
        event_time_us=micros_from_instant(decode_instant(record.event_time)),
        served_at_us=micros_from_instant(decode_instant(record.served_at, "served_at")),
        # What the model got comes last: a request feature that a policy replaced counts as replaced.
        columns=_columns([*record.entity_keys, *record.request_features, *features]),
        outputs=_columns(record.outputs),
        arm=record.arm,
        arm_probability=record.arm_probability if record.arm else 1.0,
        arm_forced=record.arm_forced,
        shadow=record.shadow,
        degraded=any(_UNAVAILABLE in feature.statuses for feature in record.features),
    )


def _outcome(outcome: prediction_log_pb2.LoggedOutcome) -> OutcomeEntry:
    return OutcomeEntry(
        view=Reference(outcome.view.name, outcome.view.version),
        prediction_id=outcome.prediction_id,
        observed_at_us=micros_from_instant(decode_instant(outcome.observed_at, "observed_at")),
        value=_column(outcome.value),
    )


def _columns(messages: Iterable[types_pb2.Column]) -> dict[str, LoggedColumn]:
    return {message.name: _column(message) for message in messages}


def _column(message: types_pb2.Column) -> LoggedColumn:
    """The values as Python lists: the logger checked them, and small NumPy arrays per record would cost more."""
    arm = message.WhichOneof("values") or ""
    dimension = 0
    values: list[Any]
    if arm in _ARMS:
        type, values = _ARMS[arm], list(getattr(message, arm).values)
    elif arm == "timestamp_values":
        type, values = DataType.TIMESTAMP, list(message.timestamp_values.micros)
    else:
        flat, dimension = list(message.vector_values.values), max(1, message.vector_values.dimension)
        type, values = DataType.FLOAT_VECTOR, [flat[i : i + dimension] for i in range(0, len(flat), dimension)]
    if message.validity:
        values = [v if ok else None for v, ok in zip(values, message.validity, strict=True)]
    return LoggedColumn(Field(message.name, type, dimension), values)
