"""Removing predictions from the log, a bounded part per call; see `forgetting` for what it remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from foresight.values import Column
from services.logger.forgetting import FORGOTTEN_KEPT, Forgetting, Progress
from services.logger.metrics import LoggerMetrics
from services.logger.postgres import LogStore
from services.logger.postgres.forgetting import RemovedRows, StoredRecord, begin, count, records_at, remove_rows
from services.logger.records import PREDICTION_ID, RecordBytes
from services.runtime.clock import Clock
from services.runtime.errors import OutOfRange, PermissionDenied
from services.runtime.identity import is_operator

# Claims removed in one transaction.
CLAIMS_PER_TRANSACTION = 1_000


class PredictionRemoval:
    """Removes predictions over the log's store. Its steps can be repeated, and stop anywhere."""

    def __init__(self, store: LogStore, records: RecordBytes, clock: Clock, metrics: LoggerMetrics) -> None:
        self._store = store
        self._records = records
        self._clock = clock
        self._metrics = metrics

    async def forget(self, forgetting: Forgetting, after: int, caller: str) -> Progress:
        """Removes what is selected among the next positions after one; answers how far it came.

        Raises PermissionDenied, AlreadyExists for a request id that was used for something else, OutOfRange beyond the
        end, LimitExceeded when too much is being forgotten or too many writers wait.
        """
        if not is_operator(caller):
            raise PermissionDenied("predictions may be removed by operators only")
        now = self._clock()
        async with self._store.writing() as writing:
            progress = await begin(writing, forgetting, now, now + FORGOTTEN_KEPT, starting=not after)
        if after > progress.end:
            raise OutOfRange(f"position {after} lies beyond the end, {progress.end}", end=str(progress.end))
        claims = 0 if after else await self._drop_claims(forgetting, writing.salt)
        traces = [self._trace(selection.keys.values()) for selection in forgetting.selections]
        positions, reached = await self._store.find_candidates(forgetting, traces, after, progress.end)
        async with self._store.writing() as writing:
            records = await records_at(writing, positions)
            removed = await asyncio.to_thread(self._cut_out, records, forgetting)
            predictions, outcomes = await remove_rows(writing, removed)
            totals = await count(writing, forgetting.request_id, predictions, outcomes + claims)
        self._metrics.forgotten.inc(predictions)
        self._metrics.held.set(writing.held)
        return Progress(*totals, reached, progress.end)

    def _trace(self, keys: Iterable[Column]) -> bytes:
        """The longest bytes that every record of a selection contains."""
        return max((self._records.trace(key) for key in keys), key=len)

    async def _drop_claims(self, forgetting: Forgetting, salt: bytes) -> int:
        """Removes outcomes that were claimed by keys of the entity, also those whose prediction never came."""
        dropped = 0
        for selection in forgetting.selections:
            hashes = selection.claim_hashes(salt)
            targets = await self._store.find_claimed(hashes) if hashes else []
            for start in range(0, len(targets), CLAIMS_PER_TRANSACTION):
                async with self._store.writing() as writing:
                    dropped += await writing.drop_claims(targets[start : start + CLAIMS_PER_TRANSACTION])
        return dropped

    def _cut_out(self, records: Sequence[StoredRecord], forgetting: Forgetting) -> list[RemovedRows]:
        removed = []
        for record in records:
            keys = self._records.keys(record.payload)
            rows = forgetting.rows(record.view, keys)
            if not rows:
                continue
            ids = keys.columns[PREDICTION_ID].values.tolist()
            payload, forgotten = self._records.without(record.payload, rows)
            gone = [ids[row] for row in rows]
            removed.append(RemovedRows(record.position, gone, None if len(gone) == len(ids) else payload, forgotten))
        return removed
