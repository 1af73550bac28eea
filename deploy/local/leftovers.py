"""What an earlier run left behind when it was killed: its processes end before a new run begins.

Programs die with their supervisor by themselves (see launch.py). This finds those that could not: a process counts
only when its id and its time of birth are the recorded ones, or when it is in such a process's session and carries
the state folder in its environment. So a number that was given to somebody else meanwhile is never signalled.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psutil

from deploy.local.state import ENVIRONMENT_VARIABLE, StateFolder, read_json

# psutil computes times of birth from the boot time, which moves a little with the clock.
_BIRTH_TOLERANCE_S = 2.0
_END_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Birth:
    """What identifies a process for good."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> Birth:
        """Raises psutil.NoSuchProcess."""
        return cls(pid, psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """The process, if it is still there."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < _BIRTH_TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def recorded_births(run: dict[str, Any] | None) -> list[Birth]:
    """The processes in the content of run.json."""
    programs = (run or {}).get("programs")
    births = []
    for program in programs.values() if isinstance(programs, dict) else ():
        with contextlib.suppress(TypeError, KeyError, ValueError):
            births.append(Birth(int(program["pid"]), float(program["created"])))
    return births


def end_leftovers(state: StateFolder) -> int:
    """Kills what is left of an earlier run and waits until it is gone; the caller holds the lock. Returns how many."""
    births = recorded_births(read_json(state.run))
    leftovers = {process.pid: process for birth in births if (process := birth.process())}
    leftovers |= {process.pid: process for process in _members(births, str(state.path))}
    for process in leftovers.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(leftovers.values(), timeout=_END_TIMEOUT_S)
    return len(leftovers)


def end_session(leader: int) -> None:
    """Kills what is left of the process group that a program led."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, 9)


def _members(births: Iterable[Birth], marker: str) -> Iterable[psutil.Process]:
    sessions = {birth.pid for birth in births}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) in sessions and process.environ().get(ENVIRONMENT_VARIABLE) == marker:
                yield process
