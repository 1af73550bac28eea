"""The bytes of records: `foresight.logger.v1.PredictionRecord` without replica, incarnation and sequence number."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

from foresight.logger.v1 import prediction_log_pb2
from foresight.types.v1 import types_pb2
from foresight.wire import decode_column, decode_instant, encode_instant
from foresight.wire.column_bytes import Bounds, columns_bytes, delimited, packed_varints, tag
from services.predictor.policies import ResolvedFeature
from services.predictor.records import PredictionRecord, RecordBatch, RecordedArm, RecordedRequest
from services.predictor.vectors import SourceRows
from services.predictor.versions import VersionRef

_FIELDS = prediction_log_pb2.PredictionRecord.DESCRIPTOR.fields_by_name
_KEYS, _REQUEST_FEATURES, _FEATURES, _SOURCES, _OUTPUTS = (
    tag(_FIELDS[name].number) for name in ("entity_keys", "request_features", "features", "sources", "outputs")
)
_FEATURE_FIELDS = prediction_log_pb2.LoggedFeature.DESCRIPTOR.fields_by_name
_COLUMN, _STATUSES, _POLICIES, _KNOWN_TIMES, _KNOWN_COMMITS = (
    tag(_FEATURE_FIELDS[name].number)
    for name in ("column", "statuses", "policies", "last_known_event_time_micros", "last_known_commits")
)
_SOURCE_FIELDS = prediction_log_pb2.LoggedSource.DESCRIPTOR.fields_by_name
_GROUP, _EVENT_TIMES, _COMMITS = (
    tag(_SOURCE_FIELDS[name].number) for name in ("group", "event_time_micros", "commits")
)
_PRESENT = b"\x01"
# A view has few source groups, and a predictor few views.
GROUPS_MAX = 4_096


def encode_records(batch: RecordBatch) -> list[bytes]:
    """The bytes of each request's record, in order: what each would have if it had been scored alone."""
    shared = prediction_log_pb2.PredictionRecord(
        model=_encode_ref(batch.model),
        model_sha256=batch.model_sha256,
        view=_encode_ref(batch.view),
        transforms_sha256=batch.transforms_sha256,
        applied_commit=batch.applied_commit,
        served_at=encode_instant(batch.served_at),
    ).SerializeToString()
    bounds = [(r.start, r.stop) for r in batch.requests]
    parts: list[Iterable[bytes]] = [[_encode_request(r) + shared for r in batch.requests]]
    parts += [columns_bytes(c, bounds, _KEYS) for c in batch.entity_keys]
    parts += [columns_bytes(c, bounds, _REQUEST_FEATURES) for c in batch.request_features]
    parts += [_feature_bytes(f, bounds) for f in batch.features]
    parts += [_source_bytes(s, bounds) for s in batch.sources]
    parts += [columns_bytes(c, bounds, _OUTPUTS) for c in batch.outputs]
    return [b"".join(record) for record in zip(*parts, strict=True)]


def decode_record(payload: bytes) -> PredictionRecord:
    """The record of `encode_records`' bytes."""
    return decode_message(prediction_log_pb2.PredictionRecord.FromString(payload))


def decode_message(message: prediction_log_pb2.PredictionRecord) -> PredictionRecord:
    """The record of a message."""
    return PredictionRecord(
        prediction_ids=tuple(message.prediction_ids),
        request_id=message.request_id,
        client_request_id=message.client_request_id,
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
            ResolvedFeature(
                decode_column(f.column, "features"),
                f.statuses,
                f.policies,
                tuple(f.last_known_event_time_micros),
                tuple(f.last_known_commits),
            )
            for f in message.features
        ),
        sources=tuple(
            SourceRows(_decode_ref(s.group), tuple(s.event_time_micros), tuple(s.commits)) for s in message.sources
        ),
        outputs=tuple(decode_column(c, "outputs") for c in message.outputs),
        arm=_decode_arm(message),
    )


def _encode_request(request: RecordedRequest) -> bytes:
    message = prediction_log_pb2.PredictionRecord(
        prediction_ids=request.prediction_ids,
        request_id=request.request_id,
        client_request_id=request.client_request_id,
        caller=request.caller,
        deployment=request.deployment,
        event_time=encode_instant(request.event_time),
        latency_us=request.latency_us,
    )
    if (arm := request.arm) is not None:
        message.arm, message.arm_probability = arm.name, arm.probability
        message.arm_forced, message.shadow = arm.forced, arm.shadow
    return message.SerializeToString()


def _decode_arm(message: prediction_log_pb2.PredictionRecord) -> RecordedArm | None:
    if not message.arm:
        return None
    return RecordedArm(message.arm, message.arm_probability, message.arm_forced, message.shadow)


def _feature_bytes(feature: ResolvedFeature, bounds: Bounds) -> list[bytes]:
    """For each request the field with the feature; statuses and policies only where something was missing, and rows of
    last known values only where there were any."""
    if not feature.statuses:
        return columns_bytes(feature.column, bounds, _FEATURES, _COLUMN)
    made = []
    for column, (start, stop) in zip(columns_bytes(feature.column, bounds, _COLUMN), bounds, strict=True):
        statuses = feature.statuses[start:stop]
        if statuses.strip(_PRESENT):
            column += delimited(_STATUSES, statuses) + delimited(_POLICIES, feature.policies[start:stop])
            if any(commits := feature.known_commits[start:stop]):
                column += _times_bytes(feature.known_micros[start:stop], _KNOWN_TIMES)
                column += delimited(_KNOWN_COMMITS, packed_varints(commits))
        made.append(delimited(_FEATURES, column))
    return made


def _source_bytes(source: SourceRows, bounds: Bounds) -> list[bytes]:
    """For each request the field with a source's rows."""
    group = _encode_group(source.group)
    times, commits = source.event_time_micros, source.commits
    return [
        delimited(
            _SOURCES, group + _times_bytes(times[start:stop]) + delimited(_COMMITS, packed_varints(commits[start:stop]))
        )
        for start, stop in bounds
    ]


def _times_bytes(times: Sequence[int], field: bytes = _EVENT_TIMES) -> bytes:
    return delimited(field, struct.pack(f"<{len(times)}q", *times))


@lru_cache(maxsize=GROUPS_MAX)
def _encode_group(group: VersionRef) -> bytes:
    return delimited(_GROUP, _encode_ref(group).SerializeToString())


def _encode_ref(ref: VersionRef) -> types_pb2.VersionRef:
    return types_pb2.VersionRef(name=ref.name, version=ref.version)


def _decode_ref(message: types_pb2.VersionRef) -> VersionRef:
    return VersionRef(message.name, message.version)
