"""LogIngestionService: decode, one call, encode."""

from __future__ import annotations

from foresight.feature_store.v1 import log_ingestion_pb2, log_ingestion_pb2_grpc
from foresight.wire import encode_instant
from services.feature_store.logs.ingestion import LogIngestion
from services.feature_store.servicers.messages import Context


class LogIngestionServicer(log_ingestion_pb2_grpc.LogIngestionServiceServicer):
    """LogIngestionService."""

    def __init__(self, ingestion: LogIngestion) -> None:
        self._ingestion = ingestion

    async def GetIngestionStatus(
        self, request: log_ingestion_pb2.GetIngestionStatusRequest, context: Context
    ) -> log_ingestion_pb2.GetIngestionStatusResponse:
        status = await self._ingestion.status()
        return log_ingestion_pb2.GetIngestionStatusResponse(
            cursor=status.cursor,
            logger_head=status.head,
            predictions=status.predictions,
            outcomes=status.outcomes,
            last_pull_at=encode_instant(status.last_pull_at) if status.last_pull_at else None,
        )
