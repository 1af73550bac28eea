"""Taking turns: so many at once, so many waiting, and a clear refusal beyond."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from services.runtime.errors import LimitExceeded


class Turns:
    """Lets `at_once` callers work and `waiting_max` wait, in order of arrival."""

    def __init__(self, what: str, at_once: int, waiting_max: int) -> None:
        self._what = what
        self._permits = asyncio.Semaphore(at_once)
        self._inside_max = at_once + waiting_max
        self._inside = 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for a turn. Raises LimitExceeded when too many wait already."""
        if self._inside >= self._inside_max:
            raise LimitExceeded(f"too many {self._what} are waiting; try again later", limit=self._what)
        self._inside += 1
        try:
            async with self._permits:
                yield
        finally:
            self._inside -= 1
