"""The predictor's calls to the logger.

Replica, incarnation and sequence number are added to a spooled record when it is shipped: protobuf defines that
appending a message's bytes to another's merges them, so records go from the spool to the wire without being parsed.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from foresight.logger.v1 import prediction_log_pb2, prediction_log_pb2_grpc
from foresight.wire.column_bytes import varint
from services.predictor.incarnations import Lost, Spooled
from services.predictor.record_codec import decode_message
from services.predictor.records import PredictionRecord
from services.predictor.shipping import RecordsRefused
from services.runtime.channel import translated

_NAME = "logger"
APPEND_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 5.0
REASON_BYTES_MAX = 1_024
_APPEND = "/foresight.logger.v1.PredictionLogService/AppendRecords"
# The tag of AppendRecordsRequest.records: field 1, length-delimited.
_RECORDS_TAG = b"\x0a"
# Repeating a record that the logger will never take would hold up all that come after it.
_REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS)


class LoggerClient:
    """Appends records and finds them again."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._log = prediction_log_pb2_grpc.PredictionLogServiceStub(channel)
        self._append: grpc.aio.UnaryUnaryMultiCallable[bytes, prediction_log_pb2.AppendRecordsResponse]
        self._append = channel.unary_unary(
            _APPEND, response_deserializer=prediction_log_pb2.AppendRecordsResponse.FromString
        )

    async def append(self, replica: str, incarnation: str, records: Sequence[Spooled], lost: Sequence[Lost]) -> None:
        """Stores records and lost ranges; durable when it returns. Raises RecordsRefused and Unavailable."""
        request = _append_request(replica, incarnation, records, lost)
        with translated(_NAME):
            try:
                await self._append(request, timeout=APPEND_TIMEOUT_S)
            except grpc.RpcError as error:
                if error.code() in _REFUSALS:
                    raise RecordsRefused(error.details() or "no reason given") from error
                raise

    async def find(self, prediction_id: str) -> tuple[PredictionRecord, int]:
        """The record that holds a prediction, and the prediction's row. Raises NotFound and Unavailable."""
        request = prediction_log_pb2.GetPredictionRequest(prediction_id=prediction_id)
        with translated(_NAME):
            response = await self._log.GetPrediction(request, timeout=READ_TIMEOUT_S)
        return decode_message(response.record), response.row


def _append_request(replica: str, incarnation: str, records: Sequence[Spooled], lost: Sequence[Lost]) -> bytes:
    parts = []
    for record in records:
        where = prediction_log_pb2.PredictionRecord(
            replica=replica, incarnation=incarnation, first_sequence=record.first_sequence
        ).SerializeToString()
        parts += [_RECORDS_TAG, varint(len(record.payload) + len(where)), record.payload, where]
    quarantined = [
        prediction_log_pb2.QuarantinedRange(
            replica=replica,
            incarnation=incarnation,
            first_sequence=item.first_sequence,
            last_sequence=item.last_sequence,
            reason=item.reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore"),
        )
        for item in lost
    ]
    parts.append(prediction_log_pb2.AppendRecordsRequest(quarantined=quarantined).SerializeToString())
    return b"".join(parts)
