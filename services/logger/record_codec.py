"""Records as they arrive, and their bytes: cut by rows, without some rows, and the keys in them.

Records of single predictions, which most are, differ in a few values each: what they have in common is looked at once
and then recognised by its bytes. Such a record is accepted when all its parts are right at first sight or on a closer
look at one of them; every other record is looked at thoroughly, and that alone says what is wrong with it.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from foresight.logger.v1 import outline_pb2, prediction_log_pb2
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType, InvalidValue, check_name, micros_from_instant
from foresight.values.features import VIEW_KEYS_MAX
from foresight.values.instants import MICROS_MAX, MICROS_MIN
from foresight.values.names import check_text
from foresight.wire import decode_column, decode_instant, encode_column
from services.logger.codec import (
    check_features,
    check_id,
    check_reference,
    check_request,
    check_sha256,
    check_sources,
    decode_named,
    decode_record,
    decode_source,
)
from services.logger.forms import Forms, Sources
from services.logger.named_requests import name_of
from services.logger.records import PREDICTION_ID, Incarnation, LogRecord, QuarantinedRange, RecordKeys
from services.logger.scalars import int64_of_varint
from services.logger.targets import check_keys, part_of, parts_of, target_of_parts
from services.runtime.errors import LimitExceeded

RECORDS_MAX = 1_000
RANGES_MAX = 1_000
APPEND_BYTES_MAX = 4 << 20
# A record must fit into an answer of 4 MiB together with what surrounds it there.
RECORD_BYTES_MAX = APPEND_BYTES_MAX - 4_096


# Combinations of replica, deployment, model, view and caller; of more, those used last are remembered.
ORIGINS_MAX = 1_024
_INT64 = struct.Struct(">q")


class ArrivingRecords:
    """Takes requests to append; remembers what records have in common."""

    def __init__(self) -> None:
        self._keys = Forms(_look_at_key)
        self._columns = Forms(_look_at_column)
        self._features = Forms(_look_at_feature, column_at=2)
        self._sources = Sources(_look_at_source)

    def decode(
        self, request: prediction_log_pb2.AppendRecordsRequest
    ) -> tuple[list[LogRecord], list[QuarantinedRange]]:
        """The records and ranges of a request; InvalidValue names `records[i]` or `quarantined[i]` and the field.

        Raises LimitExceeded when the records are too many or too large together.
        """
        if len(request.records) > RECORDS_MAX:
            raise LimitExceeded(f"more than {RECORDS_MAX:,} records; send fewer at once", limit="records")
        if len(request.quarantined) > RANGES_MAX:
            raise LimitExceeded(f"more than {RANGES_MAX:,} ranges; send fewer at once", limit="quarantined")
        records = []
        size = 0
        # Written as a whole, which takes half the time of writing each.
        payloads = outline_pb2.AppendRecordsOutline.FromString(request.SerializeToString()).records
        for i, (message, payload) in enumerate(zip(request.records, payloads, strict=True)):
            try:
                records.append(self._decode_record(message, payload))
            except InvalidValue as error:
                raise error.within(f"records[{i}]") from None
            size += len(payload)
        if size > APPEND_BYTES_MAX:
            raise LimitExceeded("the records are larger than 4 MiB together; send fewer at once", limit="append_bytes")
        ranges = []
        for i, lost in enumerate(request.quarantined):
            try:
                source = decode_source(lost.replica, lost.incarnation)
                ranges.append(QuarantinedRange(source, lost.first_sequence, lost.last_sequence, lost.reason))
            except InvalidValue as error:
                raise error.within(f"quarantined[{i}]") from None
        return records, ranges

    def _decode_record(self, message: prediction_log_pb2.PredictionRecord, payload: bytes) -> LogRecord:
        if len(payload) > RECORD_BYTES_MAX:
            raise InvalidValue("", f"is larger than {RECORD_BYTES_MAX:,} bytes; cut it by rows")
        found = self.recognise(message, payload) if len(message.prediction_ids) == 1 else None
        return found or decode_record(message, payload)

    def recognise(self, message: prediction_log_pb2.PredictionRecord, payload: bytes) -> LogRecord | None:
        """The record of one prediction when all is right with it; None: look at it thoroughly.

        `payload` is the message as protobuf's library writes it.
        """
        try:
            return self._recognise(message, outline_pb2.PredictionRecordOutline.FromString(payload), payload)
        except (InvalidValue, IndexError):
            # What exactly is wrong, if anything, the thorough look says.
            return None

    def _recognise(
        self,
        message: prediction_log_pb2.PredictionRecord,
        outline: outline_pb2.PredictionRecordOutline,
        payload: bytes,
    ) -> LogRecord | None:
        origin = _origin(
            message.replica,
            message.incarnation,
            message.caller,
            message.deployment,
            outline.model,
            message.model_sha256,
            outline.view,
            message.transforms_sha256,
        )
        (prediction_id,) = message.prediction_ids
        check_id(prediction_id)
        check_request(message)
        if not (message.HasField("event_time") and message.HasField("served_at")):
            return None
        event_time = _micros(message.event_time)
        served_at = _micros(message.served_at)
        keys = self._key_parts(outline.entity_keys)
        outputs = self._columns.names(outline.outputs)
        others = self._columns.names(outline.request_features), self._features.names(outline.features)
        if not outputs or any(len(set(names)) != len(names) for names in (outputs, *others)):
            return None
        self._sources.check(outline.sources)
        return LogRecord(
            source=origin.source,
            first_sequence=message.first_sequence,
            prediction_ids=(prediction_id,),
            targets=(target_of_parts(origin.deployment, [keys[name] for name in sorted(keys)], event_time),),
            deployment=origin.deployment,
            view=origin.view,
            view_version=origin.view_version,
            event_time=event_time,
            payload=payload,
            name=name_of(message.caller, origin.deployment, message.client_request_id),
            served_at=served_at,
        )

    def _key_parts(self, columns: Sequence[bytes]) -> dict[str, bytes]:
        """`parts_of` the entity keys, by name."""
        parts: dict[str, bytes] = {}
        for column in columns:
            form = self._keys.form(column)
            if form is not None:
                value = column[form.start : form.stop]
                name = form.name
                part = part_of(
                    name, form.type, _INT64.pack(int64_of_varint(value)) if form.type is DataType.INT64 else value
                )
            else:
                key = _key(column)
                name, (part,) = key.name, parts_of(key)
                self._keys.learn(column, name, key.type)
            parts[name] = part
        if len(parts) != len(columns) or len(parts) > VIEW_KEYS_MAX:
            raise InvalidValue("entity_keys", "hold one twice, or are too many")
        return parts


@dataclass(frozen=True, slots=True)
class _Origin:
    """Who made a record, and with what."""

    source: Incarnation
    deployment: str
    view: str
    view_version: int


# An exception is not kept.
@functools.lru_cache(maxsize=ORIGINS_MAX)
def _origin(
    replica: str,
    incarnation: str,
    caller: str,
    deployment: str,
    model: bytes,
    model_sha256: str,
    view: bytes,
    transforms_sha256: str,
) -> _Origin:
    """The origin of a record. Raises InvalidValue."""
    source = decode_source(replica, incarnation)
    check_text(caller, "caller")
    check_name(deployment, "deployment")
    check_reference(types_pb2.VersionRef.FromString(model), "model")
    reference = types_pb2.VersionRef.FromString(view)
    check_reference(reference, "view")
    check_sha256(model_sha256, "model_sha256")
    if transforms_sha256:
        check_sha256(transforms_sha256, "transforms_sha256")
    return _Origin(source, deployment, reference.name, reference.version)


def _micros(instant: Timestamp) -> int:
    """The instant in microseconds since the epoch, as `decode_instant` cuts it. Raises InvalidValue."""
    micros = instant.seconds * 1_000_000 + instant.nanos // 1_000
    if not (0 <= instant.nanos < 1_000_000_000 and MICROS_MIN <= micros <= MICROS_MAX):
        raise InvalidValue("event_time", "is no instant of the years 1 to 9999")
    return micros


def _key(data: bytes) -> Column:
    """The entity key of one row in the bytes of a column. Raises InvalidValue."""
    keys = decode_named([types_pb2.Column.FromString(data)], "entity_keys", 1)
    check_keys(keys)
    return next(iter(keys.values()))


def _look_at_key(data: bytes) -> tuple[str, DataType]:
    key = _key(data)
    return key.name, key.type


def _look_at_column(data: bytes) -> tuple[str, DataType]:
    """Name and type of the one row in the bytes of a column. Raises InvalidValue."""
    ((name, column),) = decode_named([types_pb2.Column.FromString(data)], "columns", 1).items()
    return name, column.type


def _look_at_feature(data: bytes) -> tuple[str, DataType]:
    """The same of a logged feature."""
    feature = prediction_log_pb2.LoggedFeature.FromString(data)
    check_features([feature], 1)
    return feature.column.name, decode_column(feature.column).type


def _look_at_source(data: bytes) -> bytes:
    """The bytes of the group in those of a source of one row. Raises InvalidValue."""
    source = prediction_log_pb2.LoggedSource.FromString(data)
    check_sources([source], 1)
    return source.group.SerializeToString()


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

    def repeating(self, payload: bytes, prediction_id: str) -> bytes:
        """See `RecordBytes.repeating`: a message's bytes appended to another's are merged into it."""
        return payload + prediction_log_pb2.PredictionRecord(repeats_prediction_id=prediction_id).SerializeToString()


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
        if feature.last_known_commits:
            times = feature.last_known_event_time_micros
            _replace(times, [times[row] for row in rows])
            _replace(feature.last_known_commits, [feature.last_known_commits[row] for row in rows])
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
