"""Starts programs in order, keeps them running, and stops them in the opposite order.

Whatever happens while it starts (a program that cannot run, a timeout, a cancellation), nothing is left running.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from deploy.local.keeper import Keeper
from deploy.local.log_files import tail
from deploy.local.programs import Program, ProgramEnded, State, Status
from deploy.local.state import StackError

START_TIMEOUT_S = 90.0
TAIL_LINES = 8


class Supervisor:
    """Keeps programs running. `report` gets one line for everything that a person should know.

    `chores` are what else has to go on meanwhile; they never return.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        log_folder: Path,
        report: Callable[[str], None],
        on_change: Callable[[Sequence[Status]], None],
        chores: Sequence[Callable[[], Coroutine[None, None, None]]] = (),
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self._log_folder = log_folder
        self._on_change = on_change
        self._start_timeout_s = start_timeout_s
        self._keepers = {program.name: Keeper(program, log_folder, self._changed, report) for program in programs}
        for program in programs:
            unknown = {*program.needs, *program.waits_for} - set(self._keepers)
            if unknown:
                raise ValueError(f"{program.name} needs {', '.join(sorted(unknown))}, which is not among the programs")
        self._chores = chores
        self._tasks: list[asyncio.Task[None]] = []
        self._starting_up = True

    @property
    def statuses(self) -> list[Status]:
        """How every program is now, in the order in which they were given."""
        return [keeper.status for keeper in self._keepers.values()]

    def status(self, name: str) -> Status:
        """How one program is now."""
        return self._keepers[name].status

    async def start(self) -> None:
        """Starts everything and returns once all are ready. Raises StackError, and then nothing runs any more."""
        self._tasks = [asyncio.create_task(self._run(keeper)) for keeper in self._keepers.values()]
        self._tasks += [asyncio.create_task(chore()) for chore in self._chores]
        ready = asyncio.create_task(self._all_ready())
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await asyncio.wait([ready, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                self._raise_failure()
            self._starting_up = False
        except TimeoutError:
            late = [status.name for status in self.statuses if status.state is not State.READY]
            await self.stop()
            raise StackError(
                f"{', '.join(late)} did not get ready within {self._start_timeout_s:g} s{self._last_lines(late[0])}"
            ) from None
        except BaseException:
            await self.stop()
            raise
        finally:
            ready.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ready

    async def run(self) -> None:
        """Goes on until cancelled; raises when a program or a chore can no longer go on, which is a bug."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self._raise_failure()

    def replace(self, name: str) -> None:
        """Puts a new process in the place of a program's, without a gap; see `Keeper.replace`."""
        self._keepers[name].replace()

    async def stop(self) -> None:
        """Stops everything: each program once those that need it have ended. When cancelled, kills them at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        stopped = {name: asyncio.Event() for name in self._keepers}

        async def stop_one(keeper: Keeper) -> None:
            for other in self._keepers.values():
                if keeper.name in other.program.needs:
                    await stopped[other.name].wait()
            await keeper.stop()
            stopped[keeper.name].set()

        try:
            async with asyncio.TaskGroup() as group:
                for keeper in self._keepers.values():
                    group.create_task(stop_one(keeper))
        except asyncio.CancelledError:
            for keeper in self._keepers.values():
                await keeper.kill()
            raise

    async def wait_ready(self, name: str, other_than: int | None = None) -> int:
        """Waits until a program is ready in a process other than `other_than`, and answers its process id."""
        while True:
            status = self.status(name)
            if status.state is State.READY and status.pid is not None and status.pid != other_than:
                return status.pid
            await asyncio.sleep(0.02)

    async def _run(self, keeper: Keeper) -> None:
        for name in keeper.program.waits_for:
            await self._keepers[name].first_ready.wait()
        await keeper.keep_running(lambda: self._starting_up)

    async def _all_ready(self) -> None:
        for keeper in self._keepers.values():
            await keeper.first_ready.wait()

    def _raise_failure(self) -> None:
        for task in self._tasks:
            if task.done():
                try:
                    task.result()
                except ProgramEnded as ended:
                    raise StackError(f"{ended}{self._last_lines(ended.name)}") from None

    def _last_lines(self, name: str) -> str:
        lines = tail(self._log_folder / f"{name}.log", TAIL_LINES)
        return "; the end of its log:" + "".join(f"\n  {line[:500]}" for line in lines) if lines else ""

    def _changed(self) -> None:
        self._on_change(self.statuses)
