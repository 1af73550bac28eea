"""The command that runs schedules and streams: pipelines worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foresight.cli.arguments import State, load_named_module
from foresight.client import Client, InvalidValue, NotConnected

if TYPE_CHECKING:
    from foresight.pipelines import JobsDatabase, Pipeline, Stream

# The libraries of pipelines are loaded when some are run.

WAIT_FOR_STACK_S = 120.0
_LOOKS_EVERY_S = 0.1
# A connection knows the certificate that it was opened with, and the stack renews them.
CLIENT_LIFETIME_S = 86_400.0
STOPPED_WITHIN_S = 9.0
EXIT_CODE_AT_ONCE = 130


def worker(
    modules: Annotated[list[str], typer.Argument(metavar="MODULE...", help="Modules that declare pipelines.")],
    jobs_url: Annotated[
        str,
        typer.Option(envvar="FORESIGHT_JOBS_URL", help="PostgreSQL URL of the jobs database; default: the stack's."),
    ] = "",
    jobs_password_file: Annotated[
        Path | None,
        typer.Option(envvar="FORESIGHT_JOBS_PASSWORD_FILE", exists=True, dir_okay=False, help="File of its password."),
    ] = None,
    ready_file: Annotated[Path | None, typer.Option(hidden=True)] = None,
    state: State = None,
) -> None:
    """Run the schedules and streams of modules until stopped. Several workers share the work.

    The first signal lets it finish what is being written, a second one ends it at once; nothing is lost by either.
    """
    from foresight.pipelines import declared

    found = declared([load_named_module(name) for name in modules])
    _log_as_services()
    if ready_file is not None:
        ready_file.touch()
    try:
        asyncio.run(_work(found, state, jobs_url, jobs_password_file))
    except OSError as error:
        raise InvalidValue("jobs_password_file", f"cannot be read: {error.strerror}") from None


async def _work(
    found: Sequence[Pipeline | Stream], state: Path | None, jobs_url: str, password_file: Path | None
) -> None:
    """Runs a worker once the stack is there, until a signal comes."""
    from foresight.pipelines import JobsDatabase, Worker

    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            os._exit(EXIT_CODE_AT_ONCE)
        stopping.set()
        # A function that does not come to its end holds a thread, and that the process; killing it loses nothing.
        last = threading.Timer(STOPPED_WITHIN_S, os._exit, [EXIT_CODE_AT_ONCE])
        last.daemon = True
        last.start()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    while (client := await _client_once_there(state, stopping)) is not None:
        with client:
            database = JobsDatabase(jobs_url, password_file) if jobs_url else _jobs_of_stack(state)
            worker = Worker(found, client, database)
            over = asyncio.create_task(_is_set_within(stopping, CLIENT_LIFETIME_S))
            running = asyncio.create_task(worker.run())
            await asyncio.wait([over, running], return_when=asyncio.FIRST_COMPLETED)
            worker.stop()
            await running


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        return await asyncio.wait_for(event.wait(), seconds)
    return False


async def _client_once_there(state: Path | None, stopping: asyncio.Event) -> Client | None:
    """A client of the stack, which may be starting still; None when it is not wanted any more."""
    give_up = time.monotonic() + WAIT_FOR_STACK_S
    while not stopping.is_set():
        try:
            return Client(state)
        except NotConnected:
            if time.monotonic() > give_up:
                raise
        await _is_set_within(stopping, _LOOKS_EVERY_S)
    return None


def _jobs_of_stack(state: Path | None) -> JobsDatabase:
    from deploy.local.state import read_json, state_folder
    from foresight.pipelines import JobsDatabase

    jobs = (read_json(state_folder(state).connection) or {}).get("jobs")
    if jobs is None:
        raise InvalidValue("jobs_url", "is required: the stack has no jobs database; give --jobs-url")
    return JobsDatabase(jobs["url"], Path(jobs["password_file"]))


def _log_as_services() -> None:
    """One JSON object per line; of libraries only what is wrong."""
    from services.runtime.logs import configure_logs

    configure_logs("pipelines", "INFO")
    logging.basicConfig(level=logging.WARNING, handlers=[_Forwarded()])


class _Forwarded(logging.Handler):
    """What libraries log, as an event."""

    def emit(self, record: logging.LogRecord) -> None:
        import structlog

        error = record.exc_info[1] if record.exc_info else None
        structlog.get_logger().warning(
            "library_warned", library=record.name, text=record.getMessage(), **({"error": str(error)} if error else {})
        )
