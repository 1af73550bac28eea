"""Lets shadow arms score what was answered, so that nobody waits for them or fails with them.

A shadow's request is put into a queue when the answer is there. It is begun after the answer has left, while the
predictor is not busy with answers (BUSY_ROWS), and in a batch of its own, never together with requests that somebody
waits for. What it predicts is recorded as a shadow's, with ids of its own.

Bounds: at most `rows_max` rows wait, AT_ONCE requests run, and nothing waits longer than AGE_S: features would be
read of another time. What is beyond any of them, or left when the process stops, is dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from foresight.values import InvalidValue
from services.predictor.requests import Request
from services.predictor.telemetry import ShadowOutcome
from services.runtime.errors import ServiceError

log = structlog.get_logger()

ROWS_MAX = 8_192
AT_ONCE = 16
AGE_S = 5.0
BUSY_ROWS = 32
# The answer is on its way after so long.
AFTER_S = 0.005
# How often it is looked whether the predictor is still busy.
YIELD_S = 0.005


class Shadows:
    """The queue of shadows; one task runs `run`."""

    def __init__(
        self,
        score: Callable[[Request], Awaitable[None]],
        admitted_rows: Callable[[], int],
        count: Callable[[str, ShadowOutcome, int], None],
        *,
        rows_max: int = ROWS_MAX,
        after_s: float = AFTER_S,
    ) -> None:
        """`score` predicts and records a shadow's request; `admitted_rows` are those that somebody waits for."""
        self._score = score
        self._admitted_rows = admitted_rows
        self._count = count
        self._rows_max = rows_max
        self._after_s = after_s
        self._queue: deque[tuple[float, Request, int]] = deque()
        self._added = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._permits = asyncio.Semaphore(AT_ONCE)
        self._closed = False
        # Rows that wait or are scored, and whether there are none.
        self.rows = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, request: Request) -> None:
        """Queues a request that was answered; what does not fit is dropped."""
        rows = len(next(iter(request.columns.values())))
        if self._closed or (self.rows and self.rows + rows > self._rows_max):
            self._count(request.deployment, "dropped", rows)
            return
        self._queue.append((asyncio.get_running_loop().time(), request, rows))
        self.rows += rows
        self._idle.clear()
        self._added.set()

    async def run(self) -> None:
        """Scores what is queued, until it is cancelled."""
        while True:
            await self._added.wait()
            self._added.clear()
            await asyncio.sleep(self._after_s)
            while self._queue:
                await self._permits.acquire()
                try:
                    await self._until_quiet()
                except BaseException:
                    self._permits.release()
                    raise
                self._start_next()

    async def close(self, seconds: float) -> None:
        """Takes nothing more, and drops what is not done after so long."""
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        while self._queue:
            self._drop(self._queue.popleft())
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _until_quiet(self) -> None:
        """Lets those whom somebody waits for go first; too old ones are dropped meanwhile."""
        while self._queue:
            if self._queue[0][0] + AGE_S < asyncio.get_running_loop().time():
                self._drop(self._queue.popleft())
            elif self._admitted_rows() > BUSY_ROWS:
                await asyncio.sleep(YIELD_S)
            else:
                return

    def _start_next(self) -> None:
        if not self._queue:
            self._permits.release()
            return
        _, request, rows = self._queue.popleft()
        task = asyncio.get_running_loop().create_task(self._run_one(request, rows))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run_one(self, request: Request, rows: int) -> None:
        outcome: ShadowOutcome = "dropped"
        try:
            await self._score(request)
            outcome = "recorded"
        except (ServiceError, InvalidValue) as error:
            outcome = "failed"
            log.debug("shadow_failed", deployment=request.deployment, reason=str(error)[:300])
        except Exception as error:  # A supervised loop: a shadow harms nobody
            outcome = "failed"
            log.exception("shadow_failed", deployment=request.deployment, exc_info=error)
        finally:
            self._permits.release()
            self._leave(request, outcome, rows)

    def _drop(self, waiting: tuple[float, Request, int]) -> None:
        _, request, rows = waiting
        self._leave(request, "dropped", rows)

    def _leave(self, request: Request, outcome: ShadowOutcome, rows: int) -> None:
        self.rows -= rows
        if not self.rows:
            self._idle.set()
        self._count(request.deployment, outcome, rows)
