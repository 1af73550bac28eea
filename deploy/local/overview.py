"""What runs, as seen from outside: the supervisor's record, checked against the processes that there are."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import psutil

from deploy.local.leftovers import Birth
from deploy.local.programs import State
from deploy.local.state import StateFolder, read_json


@dataclass(frozen=True, slots=True)
class ProgramView:
    """One program; `memory_bytes` is its share of physical memory, its children included."""

    service: str
    state: State
    pid: int | None
    restarts: int
    uptime_s: float | None
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class StackView:
    """A stack; `supervisor` is None when it does not run."""

    supervisor: int | None
    programs: list[ProgramView]

    @property
    def is_ready(self) -> bool:
        """Whether it runs and every program is ready."""
        return self.supervisor is not None and all(program.state is State.READY for program in self.programs)


def view(state: StateFolder) -> StackView:
    """How the stack of a state folder is now."""
    supervisor = state.holder()
    run = read_json(state.run)
    if supervisor is None or run is None:
        return StackView(supervisor, [])
    return StackView(supervisor, [_program(name, entry) for name, entry in run["programs"].items()])


def _program(name: str, entry: dict[str, int | float | str | None]) -> ProgramView:
    process = None
    if entry["pid"] is not None and entry["created"] is not None:
        process = Birth(int(entry["pid"]), float(entry["created"])).process()
    return ProgramView(
        service=name,
        state=State(str(entry["state"])),
        pid=None if process is None else process.pid,
        restarts=int(entry["restarts"] or 0),
        uptime_s=None if process is None else time.time() - float(entry["since"] or time.time()),
        memory_bytes=None if process is None else _memory(process),
    )


def _memory(process: psutil.Process) -> int | None:
    total = 0
    with contextlib.suppress(psutil.Error):
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                try:
                    # What is shared counts by parts: PostgreSQL's processes share most of theirs.
                    total += int(member.memory_full_info().pss)
                except psutil.AccessDenied:
                    total += int(member.memory_info().rss)
        return total
    return None
