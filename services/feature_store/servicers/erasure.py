"""ErasureService: decode, one call, encode."""

from __future__ import annotations

from foresight.feature_store.v1 import erasure_pb2, erasure_pb2_grpc, lineage_pb2
from foresight.wire import decode_columns, encode_instant
from services.feature_store.erasure.eraser import Eraser
from services.feature_store.erasure.erasures import ErasureReport
from services.feature_store.registry.lineage import ThingKind
from services.feature_store.servicers.messages import Context, encode_reference
from services.runtime.identity import caller_of


class ErasureServicer(erasure_pb2_grpc.ErasureServiceServicer):
    """ErasureService."""

    def __init__(self, eraser: Eraser) -> None:
        self._eraser = eraser

    async def ForgetEntity(
        self, request: erasure_pb2.ForgetEntityRequest, context: Context
    ) -> erasure_pb2.ForgetEntityResponse:
        caller = caller_of(context.invocation_metadata() or ())
        keys = decode_columns(request.entity_keys, "entity_keys")
        report = await self._eraser.forget(request.request_id, keys, caller)
        return erasure_pb2.ForgetEntityResponse(erasure=_encode(report))

    async def GetErasure(
        self, request: erasure_pb2.GetErasureRequest, context: Context
    ) -> erasure_pb2.GetErasureResponse:
        caller = caller_of(context.invocation_metadata() or ())
        report = await self._eraser.report(request.request_id, caller)
        return erasure_pb2.GetErasureResponse(erasure=_encode(report))


def _encode(report: ErasureReport) -> erasure_pb2.Erasure:
    erasure = report.erasure
    return erasure_pb2.Erasure(
        request_id=erasure.request_id,
        requested_at=encode_instant(erasure.requested_at),
        finished_at=None if erasure.finished_at is None else encode_instant(erasure.finished_at),
        rows=[
            erasure_pb2.ErasedRows(group=encode_reference(removed.group), rows=removed.rows) for removed in report.rows
        ],
        predictions=erasure.predictions,
        datasets=[_encode_thing(ThingKind.TRAINING_DATASET, *dataset) for dataset in report.datasets],
        affected=[_encode_thing(thing.kind, thing.name, "", thing.version) for thing in report.affected],
        doing="" if erasure.finished_at is not None else erasure.step.words,
    )


def _encode_thing(kind: ThingKind, name: str, label: str = "", version: int = 0) -> lineage_pb2.Thing:
    return lineage_pb2.Thing(kind=lineage_pb2.ThingKind.ValueType(kind.value), name=name, version=version, label=label)
