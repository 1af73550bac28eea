"""One program of the stack: how it is run, and the task that keeps it running.

A program that ends is started again after a pause that doubles from 0.1 to 5 seconds and is short again once the
program has been ready for ten seconds. There is no last try: a database may be away for an hour.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deploy.local.leftovers import Birth, end_session
from deploy.local.log_files import open_log

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
STABLE_AFTER_S = 10.0
STARTING_CHECK_PERIOD_S = 0.03
READY_CHECK_PERIOD_S = 2.0
STOP_TIMEOUT_S = 10.0
# How services say that their settings are wrong: trying again cannot help.
EXIT_CODE_SETTINGS = 2

_LAUNCH = Path(__file__).with_name("launch.py")


class State(enum.StrEnum):
    """Where a program is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    NOT_READY = "not ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


async def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class Program:
    """What to run. `needs` names programs that must outlive this one; `waits_for` those that must be ready first."""

    name: str
    command: Callable[[], Sequence[str]]
    is_ready: Callable[[], Awaitable[bool]]
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: Sequence[str] = ()
    waits_for: Sequence[str] = ()
    before_start: Callable[[], Awaitable[None]] = _nothing
    stop_signal: signal.Signals = signal.SIGTERM
    # Sent by the kernel when the supervisor is gone.
    death_signal: signal.Signals = signal.SIGKILL
    # Numeric; None: as the supervisor.
    user_and_group: tuple[int, int] | None = None
    stop_timeout_s: float = STOP_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Status:
    """What a program is doing. `since` is the Unix time of its last start."""

    name: str
    state: State
    pid: int | None
    created: float | None
    restarts: int
    since: float | None


class Keeper:
    """Runs one program again and again, and knows how it is."""

    def __init__(
        self, program: Program, log_folder: Path, on_change: Callable[[], None], report: Callable[[str], None]
    ) -> None:
        self.program = program
        self._log_folder = log_folder
        self._on_change = on_change
        self._report = report
        self._process: asyncio.subprocess.Process | None = None
        self._birth: Birth | None = None
        self._since: float | None = None
        self._ready_since: float | None = None
        self._state = State.WAITING
        self._restarts = 0
        self.first_ready = asyncio.Event()

    @property
    def name(self) -> str:
        """The program's name."""
        return self.program.name

    @property
    def status(self) -> Status:
        """How the program is now."""
        return Status(
            name=self.name,
            state=self._state,
            pid=None if self._birth is None else self._birth.pid,
            created=None if self._birth is None else self._birth.created,
            restarts=self._restarts,
            since=self._since,
        )

    async def keep_running(self, is_starting_up: Callable[[], bool]) -> None:
        """Runs the program until cancelled. While the stack starts up, an end that cannot heal raises ProgramEnded."""
        backoff_s = BACKOFF_MIN_S
        while True:
            await self.program.before_start()
            process = await self._start()
            code = await self._ended_with(process)
            # Its own children must not go on, holding ports, sockets or locks.
            end_session(process.pid)
            if is_starting_up() and (code == EXIT_CODE_SETTINGS or self._restarts >= 4):
                self._ended(State.STOPPED)
                raise ProgramEnded(self.name, code)
            if self._ready_since is not None and time.monotonic() - self._ready_since > STABLE_AFTER_S:
                backoff_s = BACKOFF_MIN_S
            self._report(f"{self.name} ended ({describe(code)}); it starts again in {backoff_s:g} s")
            self._restarts += 1
            self._ended(State.RESTARTING)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _ended_with(self, process: asyncio.subprocess.Process) -> int:
        """Watches a process until it ends, and answers its exit code."""
        watch = asyncio.create_task(self._watch())
        end = asyncio.create_task(process.wait())
        try:
            await asyncio.wait([watch, end], return_when=asyncio.FIRST_COMPLETED)
            if not end.done():
                # A check never returns: it has failed in a way that it does not expect.
                await watch
            return await end
        finally:
            for task in (watch, end):
                task.cancel()
            await asyncio.gather(watch, end, return_exceptions=True)

    async def stop(self) -> None:
        """Asks the program to end, and kills it when it has not in time; `keep_running` is over by then."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(self.program.stop_signal)
            try:
                async with asyncio.timeout(self.program.stop_timeout_s):
                    await process.wait()
            except TimeoutError:
                self._report(f"{self.name} did not stop in time and is killed")
        await self.kill()

    async def kill(self) -> None:
        """Ends the program and what it started, at once."""
        process = self._process
        if process is not None:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            end_session(process.pid)
        self._ended(State.STOPPED)

    async def _start(self) -> asyncio.subprocess.Process:
        program = self.program
        user, group = program.user_and_group or ("", "")
        command = await asyncio.to_thread(program.command)
        log = open_log(self._log_folder, self.name)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_LAUNCH)),
                *(str(os.getpid()), str(int(program.death_signal)), str(user), str(group)),
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(program.environment),
                # A terminal's Ctrl-C is for the supervisor, which stops the programs in order.
                start_new_session=True,
            )
        finally:
            os.close(log)
        with contextlib.suppress(psutil.NoSuchProcess):
            self._birth = Birth.of(self._process.pid)
        self._since = time.time()
        self._ready_since = None
        self._change(State.STARTING)
        return self._process

    async def _watch(self) -> None:
        while True:
            ready = await self.program.is_ready()
            if ready and self._state is not State.READY:
                if self.first_ready.is_set():
                    self._report(f"{self.name} is ready again")
                self._ready_since = time.monotonic()
                self._change(State.READY)
                self.first_ready.set()
            elif not ready and self._state is State.READY:
                self._report(f"{self.name} is not ready any more")
                self._change(State.NOT_READY)
            await asyncio.sleep(READY_CHECK_PERIOD_S if ready else STARTING_CHECK_PERIOD_S)

    def _ended(self, state: State) -> None:
        self._birth = None
        self._change(state)

    def _change(self, state: State) -> None:
        self._state = state
        self._on_change()


class ProgramEnded(Exception):
    """A program ended while the stack was starting, and another try would not help."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} ended while it was starting ({describe(code)})")
        self.name = name


def describe(code: int) -> str:
    """A process's exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
