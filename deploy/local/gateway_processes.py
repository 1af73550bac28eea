"""The processes of the gateway: one, and two for the moment in which one hands over to the next.

Both listen on the same ports meanwhile (SO_REUSEPORT), each with a folder of its own for its administration. The former
one stops to listen, tells its callers with their next answer to connect anew, and is stopped once they have, or when
nothing goes on any more, or at the latest after HAND_OVER_S_MAX: a stream that takes longer is cut, and its caller
finds UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from deploy.local.health_client import EnvoyAdmin
from gateway.envoy import Gateway

# Callers with nothing to ask keep their connections; they find the new process when they ask again.
IDLE_S_MAX = 1.0
HAND_OVER_S_MAX = 30.0
_POLL_S = 0.05


class GatewayProcesses:
    """What a `Program` needs to know of its gateway; `make` gives one with a folder."""

    def __init__(self, folder: Path, make: Callable[[Path], Gateway]) -> None:
        self._folder = folder
        self._make = make
        self._number = 0
        self._former: Gateway | None = None
        self._latest: Gateway | None = None

    def prepare(self) -> None:
        """Writes the configuration of another process."""
        self._forget(self._former)
        self._number += 1
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._former, self._latest = self._latest, self._make(self._folder / str(self._number))
        self._latest.write()

    def command(self) -> list[str]:
        """The command of the latest process."""
        assert self._latest is not None
        return self._latest.command()

    async def is_ready(self) -> bool:
        """Whether the latest process listens, which it does once it has asked each service for its health."""
        return self._latest is not None and await EnvoyAdmin(self._latest.admin_socket).is_ready()

    async def hand_over(self, ready: bool) -> None:
        """The latest process is ready: callers leave the former one. Or it was given up."""
        if not ready:
            self._forget(self._latest)
            self._latest, self._former = self._former, None
        elif self._former is not None:
            # When its administration does not answer any more there is nothing to hand over.
            with contextlib.suppress(OSError, TimeoutError):
                await _callers_leave(EnvoyAdmin(self._former.admin_socket))

    @staticmethod
    def _forget(gateway: Gateway | None) -> None:
        if gateway is not None:
            shutil.rmtree(gateway.folder, ignore_errors=True)


async def _callers_leave(admin: EnvoyAdmin) -> None:
    await admin.post("/drain_listeners")
    await admin.post("/healthcheck/fail")
    started = time.monotonic()
    while (waited := time.monotonic() - started) < HAND_OVER_S_MAX:
        active = await admin.gauges("http.callers.downstream_(cx|rq)_active")
        if not active.get("http.callers.downstream_cx_active"):
            return
        if waited > IDLE_S_MAX and not active.get("http.callers.downstream_rq_active"):
            return
        await asyncio.sleep(_POLL_S)
