"""Ships the spool to the logger: in order, earlier incarnations first, each record until it is acknowledged.

A batch that the logger refuses as invalid is halved until the record at fault is alone; that one is set aside and its
numbers are reported as lost, so that one bad record never holds up the others. While the logger is away the shipper
waits with growing, jittered pauses; nothing is given up.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from services.predictor.incarnations import Lost, Spooled
from services.predictor.spool import Batch, Spool
from services.runtime.errors import ServiceError

log = structlog.get_logger()

BATCH_RECORDS_MAX = 500
BATCH_BYTES_MAX = 2 << 20
# A write wakes the shipper; what comes within this time goes along. Few records at a time cost the logger and its
# database several times as much each as many.
GATHER_S = 0.1
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 2.0
REASON_CHARACTERS_MAX = 500


class RecordsRefused(Exception):
    """The logger says that the records are invalid; repeating them is of no use."""


class RecordTaker(Protocol):
    """Where records go."""

    async def append(self, replica: str, incarnation: str, records: Sequence[Spooled], lost: Sequence[Lost]) -> None:
        """Stores the records and lost ranges; durable when it returns.

        Raises RecordsRefused, and ServiceError when the logger cannot take them now.
        """
        ...


class Shipper:
    """Moves the spool's records to the logger; one task runs `run`."""

    def __init__(
        self,
        spool: Spool,
        logger: RecordTaker,
        *,
        jitter: Callable[[], float] = random.random,
        gather_s: float = GATHER_S,
    ) -> None:
        self._spool = spool
        self._logger = logger
        self._jitter = jitter
        self._gather_s = gather_s
        self._written = asyncio.Event()
        self._written.set()
        self._one_at_a_time = asyncio.Lock()
        spool.on_append = self._written.set

    async def run(self) -> None:
        """Ships until it is cancelled."""
        pause = BACKOFF_MIN_S
        while True:
            await self._written.wait()
            await asyncio.sleep(self._gather_s)
            self._written.clear()
            try:
                while await self._ship_next():
                    pause = BACKOFF_MIN_S
                    if self._written.is_set():
                        await asyncio.sleep(self._gather_s)
                        self._written.clear()
            except Exception as error:  # A supervised loop: records stay in the spool and are tried again
                self._written.set()
                if isinstance(error, ServiceError):
                    log.warning("records_not_shipped", reason=error.message[:REASON_CHARACTERS_MAX])
                else:
                    log.exception("shipping_failed", exc_info=error)
                await asyncio.sleep(pause * (0.5 + self._jitter() / 2))
                pause = min(2 * pause, BACKOFF_MAX_S)

    async def flush(self, seconds: float) -> None:
        """Ships what is left, for at most so long, beside a `run` that is still there.

        What then remains is shipped by the next incarnation.
        """
        try:
            async with asyncio.timeout(seconds):
                while await self._ship_next():
                    pass
        except Exception as error:  # noqa: BLE001 - the process ends, whatever the fault; the records stay
            log.warning("spool_not_flushed", error=type(error).__name__)
        log.info("spool_flushed", pending=self._spool.pending)

    async def _ship_next(self) -> bool:
        """Ships one batch; False when there was none."""
        async with self._one_at_a_time:
            batch = await asyncio.to_thread(self._spool.next_batch, BATCH_RECORDS_MAX, BATCH_BYTES_MAX)
            if batch is None or batch.incarnation.live:
                self._spool.tidy()
            if batch is None:
                return False
            await self._ship(batch)
            return True

    async def _ship(self, batch: Batch) -> None:
        for item in batch.lost:
            log.error("records_lost", first=item.first_sequence, last=item.last_sequence, reason=item.reason)
            await asyncio.to_thread(self._spool.set_aside, batch.incarnation, item)
        name = batch.incarnation.name
        try:
            await self._logger.append(self._spool.replica, name, batch.records, batch.lost)
        except RecordsRefused as refused:
            if len(batch.items) > 1:
                for half in batch.halves():
                    await self._ship(half)
                return
            await self._give_up(batch, str(refused)[:REASON_CHARACTERS_MAX])
        self._spool.acknowledge(batch)

    async def _give_up(self, batch: Batch, reason: str) -> None:
        """Reports the numbers of the one record that the logger will never take."""
        item = batch.items[0]
        if isinstance(item, Lost):
            raise RuntimeError(f"the logger refuses a lost range: {reason}")
        log.error("record_refused", first=item.first_sequence, count=item.count, reason=reason)
        await asyncio.to_thread(self._spool.set_aside, batch.incarnation, item)
        last = item.first_sequence + item.count - 1
        reason = f"the logger refused the record: {reason}"
        lost = Lost(item.first_sequence, last, reason, b"", item.end)
        await self._logger.append(self._spool.replica, batch.incarnation.name, [], [lost])
