"""OfflineFeatureService: decode, one call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator

from foresight.feature_store.v1 import offline_pb2, offline_pb2_grpc
from foresight.values import InvalidValue
from foresight.values.pipelines import PositionMove
from foresight.wire import encode_instant
from services.feature_store.commits import WriteOrigin
from services.feature_store.reads.reading import FeatureReads
from services.feature_store.servicers.messages import Context, decode_reference, decode_set_instant, receive
from services.feature_store.servicers.queries import decode_group_query, received_spine
from services.feature_store.tables.transit import TablesInTransit, chunks_of_rows, chunks_of_stream
from services.feature_store.writes.quarantined_rows import QuarantinedRows
from services.feature_store.writes.writing import FeatureWrites, Write
from services.runtime.identity import caller_of


class OfflineServicer(offline_pb2_grpc.OfflineFeatureServiceServicer):
    """OfflineFeatureService."""

    def __init__(
        self, writes: FeatureWrites, reads: FeatureReads, quarantined: QuarantinedRows, transit: TablesInTransit
    ) -> None:
        self._writes = writes
        self._reads = reads
        self._quarantined = quarantined
        self._transit = transit

    async def WriteFeatures(
        self, request_iterator: AsyncIterator[offline_pb2.WriteFeaturesRequest], context: Context
    ) -> offline_pb2.WriteFeaturesResponse:
        async with self._transit.upload() as upload:
            header = (await receive(request_iterator, upload)).header
            group, origin = decode_reference(header.group, "header.group"), _decode_origin(header)
            caller = caller_of(context.invocation_metadata() or ())
            commit = await self._writes.write(Write(group, await upload.rows(), caller, origin))
        return offline_pb2.WriteFeaturesResponse(
            commit=commit.number,
            committed_at=encode_instant(commit.committed_at),
            rows=commit.rows,
            duplicate=commit.duplicate,
            quarantined_rows=commit.quarantined_rows,
            broken=[
                offline_pb2.BrokenExpectation(name=broken.name, rows=broken.rows, samples=broken.samples)
                for broken in commit.broken
            ],
        )

    async def ReadFeatures(
        self, request: offline_pb2.ReadFeaturesRequest, context: Context
    ) -> AsyncIterator[offline_pb2.ReadFeaturesResponse]:
        query = decode_group_query(request.query)
        as_of_time = decode_set_instant(request, "as_of_time")
        async with self._reads.read(query, request.commit, as_of_time) as batches:
            async for chunk in chunks_of_stream(batches):
                yield offline_pb2.ReadFeaturesResponse(arrow=chunk)

    async def ReadQuarantine(
        self, request: offline_pb2.ReadQuarantineRequest, context: Context
    ) -> AsyncIterator[offline_pb2.ReadQuarantineResponse]:
        group = decode_reference(request.group, "group")
        async with self._quarantined.read(group, request.after_commit) as batches:
            async for chunk in chunks_of_stream(batches):
                yield offline_pb2.ReadQuarantineResponse(arrow=chunk)

    async def ReadAsOf(
        self, request_iterator: AsyncIterator[offline_pb2.ReadAsOfRequest], context: Context
    ) -> AsyncIterator[offline_pb2.ReadAsOfResponse]:
        async with self._transit.upload() as upload:
            header = (await receive(request_iterator, upload)).header
            joined = self._reads.read_as_of(
                decode_reference(header.view, "header.view"),
                await received_spine(header, upload),
                known_by=header.known_by,
                commit=header.commit,
                as_of_time=decode_set_instant(header, "as_of_time"),
            )
            async with joined as rows:
                async for chunk in chunks_of_rows(rows):
                    yield offline_pb2.ReadAsOfResponse(arrow=chunk)


def _decode_origin(header: offline_pb2.WriteHeader) -> WriteOrigin:
    try:
        progress = _decode_progress(header.progress) if header.HasField("progress") else None
        return WriteOrigin(header.write_id, header.source, progress)
    except InvalidValue as error:
        raise error.within("header") from None


def _decode_progress(message: offline_pb2.PipelineProgress) -> PositionMove:
    try:
        return PositionMove(message.pipeline, message.position_before, message.position_after)
    except InvalidValue as error:
        raise error.within("progress") from None
