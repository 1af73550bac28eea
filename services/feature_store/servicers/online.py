"""OnlineFeatureService: decode, one call, encode."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from foresight.feature_store.v1 import online_pb2, online_pb2_grpc
from foresight.values import DataType, InvalidValue
from foresight.values.instants import MICROS_MAX, MICROS_MIN
from foresight.wire import decode_columns, decode_instant
from services.feature_store.online.rebuild import OnlineRebuild
from services.feature_store.online.vectors import FeatureVectors, VectorReader
from services.feature_store.servicers.messages import Context, decode_reference
from services.runtime.identity import caller_of

_VALUES = {
    DataType.INT64: "int64_values",
    DataType.FLOAT64: "float64_values",
    DataType.BOOL: "bool_values",
    DataType.STRING: "string_values",
}
_ALL_PRESENT = 1


class OnlineServicer(online_pb2_grpc.OnlineFeatureServiceServicer):
    """OnlineFeatureService."""

    def __init__(self, vectors: VectorReader, rebuild: OnlineRebuild) -> None:
        self._vectors = vectors
        self._rebuild = rebuild

    async def GetFeatureVectors(
        self, request: online_pb2.GetFeatureVectorsRequest, context: Context
    ) -> online_pb2.GetFeatureVectorsResponse:
        vectors = await self._vectors.latest(
            decode_reference(request.view, "view"),
            decode_columns(request.entity_keys, "entity_keys"),
            _event_times(request),
        )
        response = online_pb2.GetFeatureVectorsResponse()
        _fill(response.vectors, vectors)
        return response

    async def ReplayFeatureVectors(
        self, request: online_pb2.ReplayFeatureVectorsRequest, context: Context
    ) -> online_pb2.ReplayFeatureVectorsResponse:
        vectors = await self._vectors.replay(
            decode_reference(request.view, "view"),
            decode_columns(request.entity_keys, "entity_keys"),
            _event_time(request),
            request.applied_commit,
        )
        response = online_pb2.ReplayFeatureVectorsResponse()
        _fill(response.vectors, vectors)
        return response

    async def RebuildOnlineStore(
        self, request: online_pb2.RebuildOnlineStoreRequest, context: Context
    ) -> online_pb2.RebuildOnlineStoreResponse:
        rebuilt = await self._rebuild.rebuild(caller_of(context.invocation_metadata() or ()))
        return online_pb2.RebuildOnlineStoreResponse(applied_commit=rebuilt.applied_commit, keys=rebuilt.keys)


def _event_times(request: online_pb2.GetFeatureVectorsRequest) -> datetime | Sequence[int]:
    """The one time of asking, or each row's in microseconds."""
    micros = request.event_time_micros
    if not micros:
        return _event_time(request)
    if request.HasField("event_time"):
        raise InvalidValue("event_time_micros", "is given together with event_time")
    if min(micros) < MICROS_MIN or max(micros) > MICROS_MAX:
        raise InvalidValue("event_time_micros", "has an instant outside of the years 1 to 9999")
    return micros


def _event_time(request: online_pb2.GetFeatureVectorsRequest | online_pb2.ReplayFeatureVectorsRequest) -> datetime:
    if not request.HasField("event_time"):
        raise InvalidValue("event_time", "is required")
    return decode_instant(request.event_time)


def _fill(message: online_pb2.FeatureVectors, vectors: FeatureVectors) -> None:
    """Fills in place: building the parts and copying them would cost as much as the look-up."""
    message.applied_commit = vectors.applied_commit
    message.view.name, message.view.version = vectors.view.name, vectors.view.version
    for feature in vectors.features:
        into = message.features.add(statuses=feature.statuses, source=feature.source)
        column, type = into.column, feature.field.type
        column.name = feature.field.name
        if type is DataType.TIMESTAMP:
            column.timestamp_values.micros.extend(feature.values)
        elif type is DataType.FLOAT_VECTOR:
            column.vector_values.dimension = feature.field.dimension
            column.vector_values.values.extend([number for vector in feature.values for number in vector])
        else:
            getattr(column, _VALUES[type]).values.extend(feature.values)
        if feature.statuses.strip(b"\x01"):
            column.validity = bytes(status == _ALL_PRESENT for status in feature.statuses)
    for rows in vectors.rows:
        source = message.rows.add()
        source.event_time_micros.extend(rows.event_time_us)
        source.commits.extend(rows.commits)
        source.erased_commits.extend(rows.erased_commits)
        source.group.name, source.group.version = rows.group.group.name, rows.group.group.version
