"""The bytes of records: cut by rows, without some rows, and the keys in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from foresight.logger.v1 import prediction_log_pb2
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType, micros_from_instant
from foresight.wire import decode_column, decode_instant, encode_column
from services.logger.records import PREDICTION_ID, RecordKeys


class WireRecords:
    """`RecordBytes` of PredictionRecord messages."""

    def cut(self, payload: bytes, start: int, stop: int) -> bytes:
        """See `RecordBytes.cut`."""
        record = prediction_log_pb2.PredictionRecord.FromString(payload)
        _keep(record, range(start, stop))
        record.first_sequence += start
        return record.SerializeToString()

    def without(self, payload: bytes, rows: Collection[int]) -> tuple[bytes, list[int]]:
        """See `RecordBytes.without`."""
        record = prediction_log_pb2.PredictionRecord.FromString(payload)
        n, gone = len(record.prediction_ids), set(rows)
        known = set(record.forgotten_offsets)
        offsets = [offset for offset in range(n + len(known)) if offset not in known]
        _keep(record, [row for row in range(n) if row not in gone])
        forgotten = sorted(known | {offsets[row] for row in gone})
        _replace(record.forgotten_offsets, forgotten)
        return record.SerializeToString(), forgotten

    def keys(self, payload: bytes) -> RecordKeys:
        """See `RecordBytes.keys`."""
        record = prediction_log_pb2.PredictionRecord.FromString(payload)
        columns = {message.name: decode_column(message) for message in record.entity_keys}
        columns[PREDICTION_ID] = Column.build(PREDICTION_ID, DataType.STRING, list(record.prediction_ids))
        return RecordKeys(columns, micros_from_instant(decode_instant(record.served_at)))

    def trace(self, key: Column) -> bytes:
        """See `RecordBytes.trace`: texts stand in a message as they are, integers as variable-length ones."""
        value = key.python(0)
        if key.type is DataType.STRING:
            return str(value).encode()
        return _varint(value) if key.type is DataType.INT64 else b""


def _keep(record: prediction_log_pb2.PredictionRecord, rows: Sequence[int]) -> None:
    for column in (
        *record.entity_keys,
        *record.request_features,
        *(feature.column for feature in record.features),
        *record.outputs,
    ):
        column.CopyFrom(_taken(column, rows))
    for feature in record.features:
        feature.statuses = bytes(feature.statuses[row] for row in rows) if feature.statuses else b""
        feature.policies = bytes(feature.policies[row] for row in rows) if feature.policies else b""
    for source in record.sources:
        _replace(source.event_time_micros, [source.event_time_micros[row] for row in rows])
        _replace(source.commits, [source.commits[row] for row in rows])
    _replace(record.prediction_ids, [record.prediction_ids[row] for row in rows])


def _taken(column: types_pb2.Column, rows: Sequence[int]) -> types_pb2.Column:
    return encode_column(decode_column(column).take(rows))


def _replace(values: object, kept: Iterable[object]) -> None:
    values[:] = kept  # type: ignore[index]  # a repeated field


def _varint(value: int) -> bytes:
    rest, encoded = value & (1 << 64) - 1, bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)
