"""The task that keeps one program of the stack running.

A program that ends is started again after a pause that doubles from 0.1 to 5 seconds and is short again once the
program has been ready for ten seconds. There is no last try: a database may be away for an hour.

A program whose processes can overlap is replaced without a gap: its successor starts beside it, and once that is ready
the former process hands over and is stopped. A successor that does not get ready changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from deploy.local.leftovers import Birth, end_session
from deploy.local.log_files import open_log
from deploy.local.programs import Program, ProgramEnded, State, Status, describe

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
STABLE_AFTER_S = 10.0
STARTING_CHECK_PERIOD_S = 0.03
READY_CHECK_PERIOD_S = 2.0
HAND_OVER_TIMEOUT_S = 30.0
# How services say that their settings are wrong: trying again cannot help.
EXIT_CODE_SETTINGS = 2

_LAUNCH = Path(__file__).with_name("launch.py")


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
        self._successor_asked = asyncio.Event()
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
            while (code := await self._ended_with(process)) is None:
                process = await self._handed_over(process)
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

    def replace(self) -> None:
        """Asks for a new process in the place of the running one, which serves until that is ready.

        Nothing happens when the program is not ready, or its processes cannot overlap.
        """
        if self.program.hand_over is not None and self._state is State.READY:
            self._successor_asked.set()

    async def _ended_with(self, process: asyncio.subprocess.Process) -> int | None:
        """Watches a process until it ends, and answers its exit code; None as soon as a successor is asked for."""
        watch = asyncio.create_task(self._watch())
        end = asyncio.create_task(process.wait())
        asked = asyncio.create_task(self._successor_asked.wait())
        try:
            await asyncio.wait([watch, end, asked], return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                return await end
            if asked.done():
                return None
            # A check never returns: it has failed in a way that it does not expect.
            await watch
            return await end
        finally:
            for task in (watch, end, asked):
                task.cancel()
            await asyncio.gather(watch, end, asked, return_exceptions=True)

    async def _handed_over(self, former: asyncio.subprocess.Process) -> asyncio.subprocess.Process:
        """Starts a successor, and stops the former process once that is ready; answers which one runs now."""
        self._successor_asked.clear()
        assert self.program.hand_over is not None
        await self.program.before_start()
        successor = await self._spawned()
        leaving = successor
        try:
            ready = await self._becomes_ready(successor)
            if ready:
                leaving = former
                self._took_over(successor)
            await self.program.hand_over(ready)
        finally:
            # Whatever happens, one of the two is left.
            if leaving.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    leaving.send_signal(self.program.stop_signal if leaving is former else signal.SIGKILL)
        if await self._ended_in_time(leaving):
            end_session(leaving.pid)
        else:
            await _killed(leaving)
        self._report(
            f"{self.name} was handed over to a new process"
            if leaving is former
            else f"the new process of {self.name} did not get ready; the former one goes on"
        )
        return former if leaving is successor else successor

    async def _becomes_ready(self, process: asyncio.subprocess.Process) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HAND_OVER_TIMEOUT_S):
                while process.returncode is None:
                    if await self.program.is_ready():
                        return True
                    await asyncio.sleep(STARTING_CHECK_PERIOD_S)
        return False

    async def stop(self) -> None:
        """Asks the program to end, and kills it when it has not in time; `keep_running` is over by then."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(self.program.stop_signal)
            await self._ended_in_time(process)
        await self.kill()

    async def _ended_in_time(self, process: asyncio.subprocess.Process) -> bool:
        try:
            async with asyncio.timeout(self.program.stop_timeout_s):
                await process.wait()
        except TimeoutError:
            self._report(f"{self.name} did not stop in time and is killed")
            return False
        return True

    async def kill(self) -> None:
        """Ends the program and what it started, at once."""
        if self._process is not None:
            await _killed(self._process)
        self._ended(State.STOPPED)

    async def _start(self) -> asyncio.subprocess.Process:
        process = await self._spawned()
        self._ready_since = None
        self._now_runs(process, State.STARTING)
        return process

    def _took_over(self, process: asyncio.subprocess.Process) -> None:
        self._ready_since = time.monotonic()
        self._now_runs(process, State.READY)

    def _now_runs(self, process: asyncio.subprocess.Process, state: State) -> None:
        self._process = process
        with contextlib.suppress(psutil.NoSuchProcess):
            self._birth = Birth.of(process.pid)
        self._since = time.time()
        self._change(state)

    async def _spawned(self) -> asyncio.subprocess.Process:
        program = self.program
        user, group = program.user_and_group or ("", "")
        command = await asyncio.to_thread(program.command)
        log = open_log(self._log_folder, self.name)
        try:
            return await asyncio.create_subprocess_exec(
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


async def _killed(process: asyncio.subprocess.Process) -> None:
    """Returns when a process and what it started are gone."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    end_session(process.pid)
