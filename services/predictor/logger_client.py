"""The predictor's calls to the logger, and the bytes of a record.

A record's bytes in the spool are a `foresight.logger.v1.PredictionRecord` without replica, incarnation and sequence
number. Those are added when it is shipped: protobuf defines that appending a message's bytes to another's merges
them, so records go from the spool to the wire without being parsed.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from foresight.logger.v1 import prediction_log_pb2, prediction_log_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.wire import decode_column, decode_instant, encode_column, encode_instant
from services.predictor.incarnations import Lost, Spooled
from services.predictor.policies import ResolvedFeature
from services.predictor.records import PredictionRecord
from services.predictor.shipping import RecordsRefused
from services.predictor.vectors import SourceRows
from services.predictor.versions import VersionRef
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
        return _decode_record(response.record), response.row


def encode_record(record: PredictionRecord) -> bytes:
    """The bytes of a record for the spool."""
    message = prediction_log_pb2.PredictionRecord(
        prediction_ids=record.prediction_ids,
        request_id=record.request_id,
        caller=record.caller,
        deployment=record.deployment,
        model=_encode_ref(record.model),
        model_sha256=record.model_sha256,
        view=_encode_ref(record.view),
        transforms_sha256=record.transforms_sha256,
        applied_commit=record.applied_commit,
        event_time=encode_instant(record.event_time),
        served_at=encode_instant(record.served_at),
        latency_us=record.latency_us,
        entity_keys=[encode_column(c) for c in record.entity_keys],
        request_features=[encode_column(c) for c in record.request_features],
        features=[
            prediction_log_pb2.LoggedFeature(column=encode_column(f.column), statuses=f.statuses, policies=f.policies)
            for f in record.features
        ],
        sources=[
            prediction_log_pb2.LoggedSource(
                group=_encode_ref(s.group), event_time_micros=s.event_time_micros, commits=s.commits
            )
            for s in record.sources
        ],
        outputs=[encode_column(c) for c in record.outputs],
    )
    return message.SerializeToString()


def decode_record(payload: bytes) -> PredictionRecord:
    """The record of `encode_record`'s bytes."""
    return _decode_record(prediction_log_pb2.PredictionRecord.FromString(payload))


def _append_request(replica: str, incarnation: str, records: Sequence[Spooled], lost: Sequence[Lost]) -> bytes:
    parts = []
    for record in records:
        where = prediction_log_pb2.PredictionRecord(
            replica=replica, incarnation=incarnation, first_sequence=record.first_sequence
        ).SerializeToString()
        parts += [_RECORDS_TAG, _varint(len(record.payload) + len(where)), record.payload, where]
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


def _varint(number: int) -> bytes:
    """Protobuf's variable-length form of a number."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _encode_ref(ref: VersionRef) -> types_pb2.VersionRef:
    return types_pb2.VersionRef(name=ref.name, version=ref.version)


def _decode_ref(message: types_pb2.VersionRef) -> VersionRef:
    return VersionRef(message.name, message.version)


def _decode_record(message: prediction_log_pb2.PredictionRecord) -> PredictionRecord:
    return PredictionRecord(
        prediction_ids=tuple(message.prediction_ids),
        request_id=message.request_id,
        caller=message.caller,
        deployment=message.deployment,
        model=_decode_ref(message.model),
        model_sha256=message.model_sha256,
        view=_decode_ref(message.view),
        transforms_sha256=message.transforms_sha256,
        applied_commit=message.applied_commit,
        event_time=decode_instant(message.event_time),
        served_at=decode_instant(message.served_at, "served_at"),
        latency_us=message.latency_us,
        entity_keys=tuple(decode_column(c, "entity_keys") for c in message.entity_keys),
        request_features=tuple(decode_column(c, "request_features") for c in message.request_features),
        features=tuple(
            ResolvedFeature(decode_column(f.column, "features"), f.statuses, f.policies) for f in message.features
        ),
        sources=tuple(
            SourceRows(_decode_ref(s.group), tuple(s.event_time_micros), tuple(s.commits)) for s in message.sources
        ),
        outputs=tuple(decode_column(c, "outputs") for c in message.outputs),
    )
