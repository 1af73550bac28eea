"""The logger's gRPC services: decode, one call, encode. Decoding and encoding of many rows run in a thread."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from foresight.logger.v1 import outcome_pb2, outcome_pb2_grpc, prediction_log_pb2, prediction_log_pb2_grpc
from foresight.values import InvalidValue
from services.logger.codec import (
    check_id,
    decode_forgetting,
    decode_outcomes,
    encode_entries,
    encode_outcome,
)
from services.logger.entries import Page
from services.logger.log import PredictionLog
from services.logger.record_codec import ArrivingRecords
from services.logger.removal import PredictionRemoval
from services.runtime.identity import caller_of

PAGE_SIZE = 500
PAGE_SIZE_MAX = 1_000
SERVICES = (
    prediction_log_pb2.DESCRIPTOR.services_by_name["PredictionLogService"].full_name,
    outcome_pb2.DESCRIPTOR.services_by_name["OutcomeService"].full_name,
)

Context = grpc.aio.ServicerContext[Any, Any]


class PredictionLogServicer(prediction_log_pb2_grpc.PredictionLogServiceServicer):
    """Serves the prediction log."""

    def __init__(self, log: PredictionLog, removal: PredictionRemoval) -> None:
        self._log = log
        self._removal = removal
        self._arriving = ArrivingRecords()

    async def AppendRecords(
        self, request: prediction_log_pb2.AppendRecordsRequest, context: Context
    ) -> prediction_log_pb2.AppendRecordsResponse:
        """See the proto."""
        records, quarantined = await asyncio.to_thread(self._arriving.decode, request)
        done = await self._log.append(records, quarantined)
        return prediction_log_pb2.AppendRecordsResponse(
            appended=done.appended, duplicates=done.duplicates, commit=done.head
        )

    async def ReadLog(
        self, request: prediction_log_pb2.ReadLogRequest, context: Context
    ) -> prediction_log_pb2.ReadLogResponse:
        """See the proto."""
        page = await self._log.read(request.cursor, _decode_page_size(request.page_size))
        return await asyncio.to_thread(_encode_page, page)

    async def GetPrediction(
        self, request: prediction_log_pb2.GetPredictionRequest, context: Context
    ) -> prediction_log_pb2.GetPredictionResponse:
        """See the proto."""
        found = await self._log.find(check_id(request.prediction_id))
        return prediction_log_pb2.GetPredictionResponse(
            record=prediction_log_pb2.PredictionRecord.FromString(found.record),
            row=found.row,
            outcome=None if found.outcome is None else encode_outcome(found.outcome),
        )

    async def GetLedger(
        self, request: prediction_log_pb2.GetLedgerRequest, context: Context
    ) -> prediction_log_pb2.GetLedgerResponse:
        """See the proto."""
        return prediction_log_pb2.GetLedgerResponse(
            incarnations=[
                prediction_log_pb2.IncarnationLedger(
                    replica=row.source.replica,
                    incarnation=row.source.incarnation,
                    highest_sequence=row.highest_sequence,
                    logged=row.logged,
                    quarantined=row.quarantined,
                    duplicates=row.duplicates,
                )
                for row in await self._log.ledger()
            ]
        )

    async def ForgetPredictions(
        self, request: prediction_log_pb2.ForgetPredictionsRequest, context: Context
    ) -> prediction_log_pb2.ForgetPredictionsResponse:
        """See the proto."""
        caller = caller_of(context.invocation_metadata() or ())
        forgetting = await asyncio.to_thread(decode_forgetting, request)
        done = await self._removal.forget(forgetting, request.after, caller)
        return prediction_log_pb2.ForgetPredictionsResponse(
            predictions=done.predictions, outcomes=done.outcomes, position=done.position, end=done.end
        )


class OutcomeServicer(outcome_pb2_grpc.OutcomeServiceServicer):
    """Takes outcomes."""

    def __init__(self, log: PredictionLog) -> None:
        self._log = log

    async def RecordOutcomes(
        self, request: outcome_pb2.RecordOutcomesRequest, context: Context
    ) -> outcome_pb2.RecordOutcomesResponse:
        """See the proto."""
        claims = await asyncio.to_thread(decode_outcomes, request)
        done = await self._log.record_outcomes(claims)
        return outcome_pb2.RecordOutcomesResponse(matched=done.matched, held=done.held, duplicates=done.duplicates)


def _decode_page_size(page_size: int) -> int:
    if page_size > PAGE_SIZE_MAX:
        raise InvalidValue("page_size", f"is more than {PAGE_SIZE_MAX:,}")
    return page_size or PAGE_SIZE


def _encode_page(page: Page) -> prediction_log_pb2.ReadLogResponse:
    return prediction_log_pb2.ReadLogResponse(entries=encode_entries(page.entries), cursor=page.cursor, head=page.head)
