"""What the RPCs of several services decode and encode alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias, TypeVar

import grpc

from foresight.feature_store.v1 import offline_pb2, training_dataset_pb2
from foresight.types.v1 import types_pb2
from foresight.values import InvalidValue
from foresight.wire import decode_optional_instant
from services.feature_store.groups import Reference
from services.feature_store.tables.transit import Upload

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
M = TypeVar(
    "M",
    offline_pb2.WriteFeaturesRequest,
    offline_pb2.ReadAsOfRequest,
    training_dataset_pb2.CreateTrainingDatasetRequest,
)


async def receive(requests: AsyncIterator[M], upload: Upload) -> M:
    """The first message of an upload, once all have come."""
    first: M | None = None
    async for request in requests:
        if first is None:
            first = request
            if not request.HasField("header"):
                raise InvalidValue("header", "is required in the first message")
        elif request.HasField("header"):
            raise InvalidValue("header", "belongs into the first message only")
        await upload.add(request.arrow)
    if first is None:
        raise InvalidValue("header", "is required; no message came")
    return first


def decode_reference(message: types_pb2.VersionRef, field: str) -> Reference:
    try:
        return Reference(message.name, message.version)
    except InvalidValue as error:
        raise error.within(field) from None


def encode_reference(reference: Reference) -> types_pb2.VersionRef:
    return types_pb2.VersionRef(name=reference.name, version=reference.version)


def decode_set_instant(message: Any, field: str) -> Any:
    return decode_optional_instant(message.HasField(field), getattr(message, field), field)
