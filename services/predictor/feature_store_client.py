"""The predictor's calls to the feature store."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from foresight.feature_store.v1 import online_pb2, online_pb2_grpc, registry_pb2, registry_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import Column, FeatureView, InvalidValue
from foresight.wire import decode_view, encode_column, encode_instant, encode_view
from foresight.wire.column_bytes import column_bytes, delimited, tag
from services.predictor.vector_codec import VIEWS_MAX, VectorReader, decode_vectors
from services.predictor.vectors import Vectors
from services.predictor.versions import VersionRef
from services.runtime.channel import translated
from services.runtime.errors import Unavailable

_NAME = "feature store"
# What only reads: another process of the feature store may be asked again.
REPEATABLE = (
    ("foresight.feature_store.v1.OnlineFeatureService", "GetFeatureVectors"),
    ("foresight.feature_store.v1.OnlineFeatureService", "ReplayFeatureVectors"),
    ("foresight.feature_store.v1.FeatureRegistryService", "GetFeatureView"),
)
_LOOK_UP = "/foresight.feature_store.v1.OnlineFeatureService/GetFeatureVectors"
# Tags of GetFeatureVectorsRequest.
_KEY, _EVENT_TIME, _EVENT_TIMES = tag(2), tag(3), tag(4)
REGISTRY_TIMEOUT_S = 5.0
REPLAY_TIMEOUT_S = 30.0


class FeatureStoreClient:
    """Views and feature vectors."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._online = online_pb2_grpc.OnlineFeatureServiceStub(channel)
        # Bytes either way: most of a message's cost is in making its parts.
        self._look_up: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_LOOK_UP)
        self._reader = VectorReader()
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
        request = b"".join(
            (_view_bytes(view), *(column_bytes(key, _KEY) for key in keys), _event_times(event_time_micros))
        )
        with translated(_NAME):
            answer = await self._look_up(request, timeout=timeout_s)
        try:
            return self._reader.read(view, len(event_time_micros), answer)
        except (DecodeError, InvalidValue) as error:
            # Neither is the fault of whoever asked for a prediction.
            raise Unavailable("the feature store's answer cannot be read", upstream=_NAME) from error

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
        return decode_vectors(response.vectors)

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


@lru_cache(maxsize=VIEWS_MAX)
def _view_bytes(view: VersionRef) -> bytes:
    return online_pb2.GetFeatureVectorsRequest(view=_encode_ref(view)).SerializeToString()


def _event_times(micros: Sequence[int]) -> bytes:
    """The fields of a request with the times of asking: one where all are the same."""
    if micros.count(micros[0]) < len(micros):
        return delimited(_EVENT_TIMES, struct.pack(f"<{len(micros)}q", *micros))
    seconds, rest = divmod(micros[0], 1_000_000)
    return delimited(_EVENT_TIME, Timestamp(seconds=seconds, nanos=rest * 1_000).SerializeToString())
