"""Runs the stack until it is told to stop, by a signal or by the end of whoever started it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

from deploy.local.processes import GATEWAY
from deploy.local.stack import Report, StackOptions, running_stack


async def serve(
    options: StackOptions, report: Report, on_ready: Callable[[], None], lifeline: int | None = None
) -> None:
    """Runs the stack until SIGINT, SIGTERM or SIGHUP, or until the other end of the pipe `lifeline` is closed.

    A second signal kills everything at once. SIGUSR1 puts a new process of the gateway in the place of the running one,
    without a gap. Raises StackError when the stack cannot start.
    """

    async def run() -> None:
        async with running_stack(options, report) as supervisor:
            loop.add_signal_handler(signal.SIGUSR1, supervisor.replace, GATEWAY)
            on_ready()
            await supervisor.run()

    loop = asyncio.get_running_loop()
    # Until there is a gateway that could be replaced.
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    task = asyncio.create_task(run())

    def stop() -> None:
        if lifeline is not None:
            loop.remove_reader(lifeline)
        report("stopping")
        # The first one ends the block in `run`, which stops everything in order; the second one ends that.
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    if lifeline is not None:
        loop.add_reader(lifeline, stop)
    with contextlib.suppress(asyncio.CancelledError):
        await task
