"""Blocking work in threads, owned by the task that started it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


async def in_thread_unless(small: bool, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Runs `function` at once where the caller knows that it takes less than a millisecond, else in a thread: handing
    small work over costs more than doing it."""
    return function(*args, **kwargs) if small else await in_thread(function, *args, **kwargs)


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Runs `function` in a thread. A cancelled caller still waits for the thread to finish, so that whatever the
    function works with (a connection, a file) is never closed under it."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            # Retrieved, so that a failure of abandoned work is not reported as an orphan.
            work.exception()
        raise
