"""The end of a process that is told to stop before it serves: orderly, from its first moment on.

Loading libraries takes a second or more, and so may waiting for a database. A signal that comes then ends the process
with exit code 0: while it loads there is nothing to put away, and afterwards everything that was opened is closed. From
the moment on that it serves, `Server` says what signals do.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Coroutine
from types import FrameType
from typing import Any

# What takes long to load is loaded where it is used: the first line of a program is to run early.

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def exit_when_told() -> None:
    """From now on SIGTERM and SIGINT end the process at once; for the first line of a program, before its imports."""
    for number in SIGNALS:
        signal.signal(number, _exit)


def run(service: Coroutine[Any, Any, None]) -> None:
    """Runs a service to its end; a signal that comes before its server runs cancels it, and then returns too."""
    import asyncio

    asyncio.run(_until_told(service))


async def _until_told(service: Coroutine[Any, Any, None]) -> None:
    import asyncio

    loop = asyncio.get_running_loop()
    serving = asyncio.ensure_future(service)
    told = False

    def stop() -> None:
        nonlocal told
        told = True
        serving.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        await serving
    except asyncio.CancelledError:
        if not told:
            raise


def _exit(number: int, frame: FrameType | None) -> None:
    # Not by an exception: an import that catches everything would go on.
    os._exit(0)
