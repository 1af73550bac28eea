"""The ledger: every answered prediction is in the log, in a spool, or quarantined; and how far reingestion has come."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from foresight.client.connection import Calls, Connection
from foresight.client.errors import DeadlineExceeded
from foresight.feature_store.v1 import log_ingestion_pb2, log_ingestion_pb2_grpc
from foresight.logger.v1 import prediction_log_pb2, prediction_log_pb2_grpc
from foresight.predictor.v1 import prediction_pb2, prediction_pb2_grpc
from foresight.wire import decode_optional_instant

_POLL_S = 0.05
_SETTLE_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """Account of one life of a predictor replica, in predictions.

    Numbers 1 to `highest_sequence` were given out; each is logged, quarantined or spooled. `duplicates` arrived
    again and were not stored again.
    """

    replica: str
    incarnation: str
    highest_sequence: int
    logged: int
    quarantined: int
    spooled: int
    duplicates: int

    @property
    def unaccounted(self) -> int:
        """Numbers that are nowhere: 0 unless something was lost."""
        return max(0, self.highest_sequence - self.logged - self.quarantined - self.spooled)


@dataclass(frozen=True, slots=True)
class IngestionStatus:
    """How far the feature store has reingested the log. `last_pull_at` is None when the logger never answered."""

    cursor: int
    logger_head: int
    predictions: int
    outcomes: int
    last_pull_at: datetime | None


class LedgerCalls(Calls):
    """Calls about the log as a whole."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._entries = prediction_log_pb2_grpc.PredictionLogServiceStub(connection.channel)
        self._spools = prediction_pb2_grpc.PredictionServiceStub(connection.channel)
        self._ingestion = log_ingestion_pb2_grpc.LogIngestionServiceStub(connection.channel)

    def ledger(self) -> list[LedgerRow]:
        """One row per incarnation of every replica: the logger's account and what the spool still holds.

        Records on their way from spool to log while this reads may be counted in both; it looks again a few times.
        """
        after = self._spooled()
        for _ in range(_SETTLE_ATTEMPTS):
            # The spool as it was before the log was read: a record that moves meanwhile counts twice, never not at all.
            before = after
            logged = self._connection.call(self._entries.GetLedger, prediction_log_pb2.GetLedgerRequest()).incarnations
            after = self._spooled()
            if before == after:
                break
            self._connection.retry.sleep(_POLL_S)
        return _merged(logged, before)

    def ingestion(self) -> IngestionStatus:
        """How far reingestion has come."""
        status = self._connection.call(
            self._ingestion.GetIngestionStatus, log_ingestion_pb2.GetIngestionStatusRequest()
        )
        last_pull_at = decode_optional_instant(status.HasField("last_pull_at"), status.last_pull_at, "last_pull_at")
        return IngestionStatus(status.cursor, status.logger_head, status.predictions, status.outcomes, last_pull_at)

    def wait_ingested(self, timeout_s: float = 30.0) -> IngestionStatus:
        """Waits until every prediction and outcome given so far is reingested: spools empty, cursor at the log's end.

        Raises DeadlineExceeded, saying how far it came.
        """
        give_up = time.monotonic() + timeout_s
        while pending := sum(spool.pending for spool in self._spooled()):
            self._pause(give_up, f"{pending} predictions are still in the spool")
        status = self.ingestion()
        request = prediction_log_pb2.ReadLogRequest(cursor=status.cursor, page_size=1)
        head = self._connection.call(self._entries.ReadLog, request).head
        while status.cursor < head:
            self._pause(give_up, f"reingestion is at {status.cursor} of {head}")
            status = self.ingestion()
        return status

    def _pause(self, give_up: float, where: str) -> None:
        if time.monotonic() >= give_up:
            raise DeadlineExceeded(f"not everything is reingested: {where}")
        self._connection.retry.sleep(_POLL_S)

    def _spooled(self) -> list[prediction_pb2.SpooledIncarnation]:
        answers = self._connection.call_each_replica(self._spools.GetSpool, prediction_pb2.GetSpoolRequest())
        return [incarnation for answer in answers for incarnation in answer.incarnations]


def _merged(
    logged: Iterable[prediction_log_pb2.IncarnationLedger], spooled: Iterable[prediction_pb2.SpooledIncarnation]
) -> list[LedgerRow]:
    spools = {(spool.replica, spool.incarnation): spool for spool in spooled}
    rows = []
    for account in logged:
        spool = spools.pop((account.replica, account.incarnation), prediction_pb2.SpooledIncarnation())
        highest = max(account.highest_sequence, spool.highest_sequence)
        rows.append(
            LedgerRow(
                *(account.replica, account.incarnation, highest, account.logged, account.quarantined),
                spooled=spool.pending,
                duplicates=account.duplicates,
            )
        )
    rows += [
        LedgerRow(spool.replica, spool.incarnation, spool.highest_sequence, 0, 0, spool.pending, 0)
        for spool in spools.values()
    ]
    return rows
