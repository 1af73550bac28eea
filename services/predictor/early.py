"""Answers those of a batch who have less time than the others, while the others wait on for the feature store.

The wait ends when those answers are given: whoever goes on with the batch finds each of its members answered or not,
and none of them about to be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

M = TypeVar("M")

# Whose time is over within so long of one another are answered together.
TOGETHER_S = 0.002


class EarlyAnswers(Generic[M]):
    """Around a wait: whoever's time is over meanwhile is handed to `answer`, in a task of `tasks`.

    `due` has for each of them the time of the loop's clock when that is; may be empty. It ends when they have theirs.
    """

    def __init__(
        self,
        due: Sequence[tuple[float, M]],
        answer: Callable[[list[M]], Coroutine[Any, Any, None]],
        tasks: set[asyncio.Task[None]],
    ) -> None:
        self._due = sorted(due, key=lambda entry: entry[0])
        self._answer = answer
        self._tasks = tasks
        self._begun: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        if self._due:
            self._set_timer()

    async def __aexit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._begun:
            await asyncio.wait(self._begun)

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_at(self._due[0][0], self._ring)

    def _ring(self) -> None:
        loop = asyncio.get_running_loop()
        # At least the one for whom it rings, whatever the clock's resolution.
        until = max(loop.time(), self._due[0][0]) + TOGETHER_S
        over = [member for at, member in self._due if at <= until]
        self._due = self._due[len(over) :]
        task = loop.create_task(self._answer(over))
        self._begun.append(task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._due:
            self._set_timer()
