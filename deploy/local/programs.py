"""What the programs of a stack are: how each is run, and what is known of it."""

from __future__ import annotations

import enum
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

STOP_TIMEOUT_S = 10.0


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
    # For one whose processes can overlap: what to do once a successor is ready, before the former process is stopped,
    # or, with False, once it was given up. `before_start` and `is_ready` are about the successor until then.
    hand_over: Callable[[bool], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """What a program is doing. `since` is the Unix time of its last start."""

    name: str
    state: State
    pid: int | None
    created: float | None
    restarts: int
    since: float | None


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
