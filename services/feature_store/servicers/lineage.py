"""LineageService: decode, one call, encode."""

from __future__ import annotations

from foresight.feature_store.v1 import lineage_pb2, lineage_pb2_grpc
from foresight.values import InvalidValue
from foresight.wire import encode_instant
from services.feature_store.registry.lineage import Lineage, LineageGraph, Thing, ThingKind, Use
from services.feature_store.servicers.messages import Context


class LineageServicer(lineage_pb2_grpc.LineageServiceServicer):
    """LineageService."""

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage

    async def GetLineage(
        self, request: lineage_pb2.GetLineageRequest, context: Context
    ) -> lineage_pb2.GetLineageResponse:
        graph = await self._lineage.of(_decode(request.thing, "thing"), request.depth)
        return lineage_pb2.GetLineageResponse(
            things=[_encode(thing, graph) for thing in graph.things],
            uses=[_encode_use(use, graph) for use in graph.uses],
            truncated=graph.truncated,
        )

    async def DeclareUses(
        self, request: lineage_pb2.DeclareUsesRequest, context: Context
    ) -> lineage_pb2.DeclareUsesResponse:
        used = [_decode(thing, f"used[{i}]") for i, thing in enumerate(request.used)]
        await self._lineage.declare(_decode(request.user, "user"), used)
        return lineage_pb2.DeclareUsesResponse()


def _decode(message: lineage_pb2.Thing, field: str) -> Thing:
    try:
        kind = ThingKind(message.kind)
    except ValueError:
        raise InvalidValue(f"{field}.kind", "is unset or not known") from None
    try:
        return Thing(kind, message.name, message.version).checked()
    except InvalidValue as error:
        raise error.within(field) from None


def _encode(thing: Thing, graph: LineageGraph) -> lineage_pb2.Thing:
    return lineage_pb2.Thing(
        kind=lineage_pb2.ThingKind.ValueType(thing.kind.value),
        name=thing.name,
        version=thing.version,
        label=graph.labels.get(thing, ""),
    )


def _encode_use(use: Use, graph: LineageGraph) -> lineage_pb2.Use:
    return lineage_pb2.Use(
        user=_encode(use.user, graph),
        used=_encode(use.used, graph),
        since=encode_instant(use.since),
        known_at_asserted=use.known_at_asserted,
    )
