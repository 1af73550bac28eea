"""Says whether a service that may be away is worth asking.

    closed     everybody asks.
    open       nobody asks: for SILENCE_S or longer whoever asked got no answer, and none came in between.
    half-open  the pause is over: one asks, for PROBE_S at most, and everybody else goes without.

A failed probe opens the breaker again with twice the pause, PAUSE_MAX_S at most. Any answer closes it, also a late one
to a question from before, and an answer that is an error: it is silence that counts. So one caller who has no time to
wait opens nothing as long as others are answered, and a connection that breaks once costs nobody a pause.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass

SILENCE_S = 0.5
PAUSE_MIN_S = 0.1
PAUSE_MAX_S = 0.5
PROBE_S = 0.5


class BreakerState(enum.Enum):
    """See the module."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One question that may be asked; `timeout_s` is the longest wait for its answer."""

    started: float
    probe: bool
    timeout_s: float


class Breaker:
    """Used by one event loop; `now` counts seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._answered = float("-inf")
        # When the first question was asked that got no answer, since the last answer.
        self._silent_since: float | None = None
        self._pause_s = PAUSE_MIN_S
        # When it may be asked again; None: closed.
        self._ask_at: float | None = None
        self._probing = False

    @property
    def state(self) -> BreakerState:
        """Where it stands now."""
        if self._ask_at is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._probing or self._now() >= self._ask_at else BreakerState.OPEN

    @property
    def closed(self) -> bool:
        """Whether everybody asks."""
        return self._ask_at is None

    def enter(self, timeout_s: float) -> Trial | None:
        """Leave to ask and to wait so long; None: go without. Ends with `answered`, `silent` or `left`."""
        now = self._now()
        if self._ask_at is None:
            return Trial(now, probe=False, timeout_s=timeout_s)
        if self._probing or now < self._ask_at:
            return None
        self._probing = True
        return Trial(now, probe=True, timeout_s=min(timeout_s, PROBE_S))

    def answered(self, trial: Trial) -> None:
        """An answer came."""
        self._probing = self._probing and not trial.probe
        self._answered = self._now()
        self._silent_since = self._ask_at = None
        self._pause_s = PAUSE_MIN_S

    def silent(self, trial: Trial) -> None:
        """No answer came, or none from the service itself."""
        now = self._now()
        if trial.probe:
            self._probing = False
            # Unless somebody else was answered meanwhile.
            if self._ask_at is not None:
                self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)
                self._ask_at = now + self._pause_s
                return
        if self._ask_at is not None:
            return
        if self._silent_since is None:
            self._silent_since = max(trial.started, self._answered)
        if now - self._silent_since >= SILENCE_S:
            self._ask_at = now + self._pause_s

    def left(self, trial: Trial) -> None:
        """Nobody waits for the answer any more: it says nothing."""
        self._probing = self._probing and not trial.probe
