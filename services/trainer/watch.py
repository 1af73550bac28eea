"""Watching deployments: everything at once, and again after every change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from services.runtime.errors import LimitExceeded
from services.trainer.models import Deployment
from services.trainer.registry import Registry

WATCHERS_MAX = 64
# Changes made by another replica are seen after this long.
REREAD_S = 5.0


class DeploymentWatch:
    """Feeds watchers until they go or `stopping` is set, so that no watcher holds a shutdown up."""

    def __init__(self, registry: Registry, stopping: asyncio.Event, reread_s: float = REREAD_S) -> None:
        self._registry = registry
        self._stopping = stopping
        self._reread_s = reread_s
        self._watchers = 0

    async def follow(self) -> AsyncIterator[Sequence[Deployment]]:
        """All deployments by name, at once and whenever they differ from what was sent last.

        Several changes while the watcher is busy come as one. Raises LimitExceeded beyond WATCHERS_MAX watchers.
        """
        if self._watchers >= WATCHERS_MAX:
            raise LimitExceeded(f"{WATCHERS_MAX} watchers are connected already", limit="watchers")
        self._watchers += 1
        try:
            with self._registry.subscribe() as changed:
                sent: list[tuple[str, str]] | None = None
                while not self._stopping.is_set():
                    # Before the reading: a change during it leads to another one.
                    changed.clear()
                    deployments = await self._registry.deployments()
                    state = [(d.name, d.etag) for d in deployments]
                    if state != sent:
                        yield deployments
                        sent = state
                    await self._pause(changed)
        finally:
            self._watchers -= 1

    async def _pause(self, changed: asyncio.Event) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (changed, self._stopping)]
        try:
            await asyncio.wait(waits, timeout=self._reread_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
