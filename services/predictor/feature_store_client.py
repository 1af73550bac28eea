"""The predictor's calls to the feature store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import grpc
from google.protobuf.message import DecodeError

from foresight.feature_store.v1 import online_pb2, online_pb2_grpc, registry_pb2, registry_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import Column, FeatureView, InvalidValue
from foresight.wire import decode_column, decode_view, encode_column, encode_instant, encode_view
from services.predictor.vectors import FeatureValues, SourceRows, Vectors
from services.predictor.versions import VersionRef
from services.runtime.channel import translated

_NAME = "feature store"
# What only reads: another process of the feature store may be asked again.
REPEATABLE = (
    ("foresight.feature_store.v1.OnlineFeatureService", "GetFeatureVectors"),
    ("foresight.feature_store.v1.OnlineFeatureService", "ReplayFeatureVectors"),
    ("foresight.feature_store.v1.FeatureRegistryService", "GetFeatureView"),
)
REGISTRY_TIMEOUT_S = 5.0
REPLAY_TIMEOUT_S = 30.0


class FeatureStoreClient:
    """Views and feature vectors."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._online = online_pb2_grpc.OnlineFeatureServiceStub(channel)
        self._registry = registry_pb2_grpc.FeatureRegistryServiceStub(channel)

    async def view(self, ref: VersionRef) -> FeatureView:
        """The registered view. Raises NotFound and Unavailable."""
        request = registry_pb2.GetFeatureViewRequest(view=_encode_ref(ref))
        with translated(_NAME):
            response = await self._registry.GetFeatureView(request, timeout=REGISTRY_TIMEOUT_S)
        return decode_view(response.view)

    async def vectors(
        self, view: VersionRef, keys: Sequence[Column], event_time_micros: Sequence[int], timeout_s: float
    ) -> Vectors:
        """The latest values, each row as of its own event time. Raises Unavailable."""
        request = online_pb2.GetFeatureVectorsRequest(
            view=_encode_ref(view),
            entity_keys=[encode_column(key) for key in keys],
            event_time_micros=event_time_micros,
        )
        with translated(_NAME):
            response = await self._online.GetFeatureVectors(request, timeout=timeout_s)
        return _decode_vectors(response.vectors)

    async def replay(
        self, view: VersionRef, keys: Sequence[Column], event_time: datetime, applied_commit: int
    ) -> Vectors:
        """What `vectors` answered when the online store had applied the commit. Raises OutOfRange and Unavailable."""
        request = online_pb2.ReplayFeatureVectorsRequest(
            view=_encode_ref(view),
            entity_keys=[encode_column(key) for key in keys],
            event_time=encode_instant(event_time),
            applied_commit=applied_commit,
        )
        with translated(_NAME):
            response = await self._online.ReplayFeatureVectors(request, timeout=REPLAY_TIMEOUT_S)
        return _decode_vectors(response.vectors)

    def pack_view(self, view: FeatureView) -> bytes:
        """The bytes of a view, for a file."""
        return encode_view(view).SerializeToString()

    def unpack_view(self, data: bytes) -> FeatureView:
        """The view of `pack_view`'s bytes. Raises InvalidValue."""
        try:
            return decode_view(registry_pb2.FeatureView.FromString(data))
        except DecodeError as error:
            raise InvalidValue("view", "is not a feature view") from error


def _encode_ref(ref: VersionRef) -> types_pb2.VersionRef:
    return types_pb2.VersionRef(name=ref.name, version=ref.version)


def _decode_vectors(message: online_pb2.FeatureVectors) -> Vectors:
    return Vectors(
        tuple(FeatureValues(decode_column(f.column, "features"), f.statuses) for f in message.features),
        tuple(
            SourceRows(
                VersionRef(r.group.name, r.group.version),
                tuple(r.event_time_micros),
                tuple(r.commits),
                tuple(r.erased_commits),
            )
            for r in message.rows
        ),
        message.applied_commit,
    )
