"""OnlineFeatureService: decode, one call, encode."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from foresight.feature_store.v1 import online_pb2
from foresight.values import InvalidValue
from foresight.values.instants import MICROS_MAX, MICROS_MIN
from foresight.wire import decode_columns, decode_instant
from services.feature_store.online.rebuild import OnlineRebuild
from services.feature_store.online.vectors import VectorReader
from services.feature_store.servicers.messages import Context, decode_reference
from services.feature_store.servicers.vector_bytes import VectorWriter
from services.runtime.identity import caller_of

SERVICE = "foresight.feature_store.v1.OnlineFeatureService"


class OnlineServicer:
    """OnlineFeatureService; vectors are answered as bytes, see `vector_bytes`."""

    def __init__(self, vectors: VectorReader, rebuild: OnlineRebuild) -> None:
        self._vectors = vectors
        self._rebuild = rebuild
        self._writer = VectorWriter()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the methods."""
        made: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetFeatureVectors": grpc.unary_unary_rpc_method_handler(
                self.GetFeatureVectors, request_deserializer=online_pb2.GetFeatureVectorsRequest.FromString
            ),
            "ReplayFeatureVectors": grpc.unary_unary_rpc_method_handler(
                self.ReplayFeatureVectors, request_deserializer=online_pb2.ReplayFeatureVectorsRequest.FromString
            ),
            "RebuildOnlineStore": grpc.unary_unary_rpc_method_handler(
                self.RebuildOnlineStore,
                request_deserializer=online_pb2.RebuildOnlineStoreRequest.FromString,
                response_serializer=online_pb2.RebuildOnlineStoreResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, made),))

    async def GetFeatureVectors(self, request: online_pb2.GetFeatureVectorsRequest, context: Context) -> bytes:
        vectors = await self._vectors.latest(
            decode_reference(request.view, "view"),
            decode_columns(request.entity_keys, "entity_keys"),
            _event_times(request),
        )
        return self._writer.message(vectors)

    async def ReplayFeatureVectors(self, request: online_pb2.ReplayFeatureVectorsRequest, context: Context) -> bytes:
        vectors = await self._vectors.replay(
            decode_reference(request.view, "view"),
            decode_columns(request.entity_keys, "entity_keys"),
            _event_time(request),
            request.applied_commit,
        )
        return self._writer.message(vectors)

    async def RebuildOnlineStore(
        self, request: online_pb2.RebuildOnlineStoreRequest, context: Context
    ) -> online_pb2.RebuildOnlineStoreResponse:
        rebuilt = await self._rebuild.rebuild(caller_of(context.invocation_metadata() or ()))
        return online_pb2.RebuildOnlineStoreResponse(applied_commit=rebuilt.applied_commit, keys=rebuilt.keys)


def _event_times(request: online_pb2.GetFeatureVectorsRequest) -> datetime | NDArray[np.int64]:
    """The one time of asking, or each row's in microseconds."""
    rows = len(request.event_time_micros)
    if not rows:
        return _event_time(request)
    if request.HasField("event_time"):
        raise InvalidValue("event_time_micros", "is given together with event_time")
    micros = np.fromiter(request.event_time_micros, np.int64, rows)
    if micros.min() < MICROS_MIN or micros.max() > MICROS_MAX:
        raise InvalidValue("event_time_micros", "has an instant outside of the years 1 to 9999")
    return micros


def _event_time(request: online_pb2.GetFeatureVectorsRequest | online_pb2.ReplayFeatureVectorsRequest) -> datetime:
    if not request.HasField("event_time"):
        raise InvalidValue("event_time", "is required")
    return decode_instant(request.event_time)
