"""Work that reports its progress, as a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

R = TypeVar("R")
PENDING_MAX = 64


@dataclass(frozen=True, slots=True)
class Progress:
    """A stage of the work, and the rows it has come to."""

    stage: str
    rows: int = 0


Report = Callable[[Progress], None]


async def streamed(work: Callable[[Report], Awaitable[R]]) -> AsyncIterator[Progress | R]:
    """Yields what the work reports, then its result. Closing or cancelling the stream cancels the work.

    A slow reader misses reports beyond PENDING_MAX, never the result.
    """
    events: asyncio.Queue[Progress | None] = asyncio.Queue(PENDING_MAX + 1)

    def report(progress: Progress) -> None:
        if events.qsize() < PENDING_MAX:
            events.put_nowait(progress)

    task = asyncio.ensure_future(work(report))
    # There is always room for this one.
    task.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        yield await task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            # Retrieved: a failure that came after the cancellation is nobody's any more.
            task.exception()
