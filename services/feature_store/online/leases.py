"""Leases: who feeds the online store, and who follows the log of predictions.

One process at a time holds a lease and does the work; whoever waits takes over when it ends. Two that both believe to
hold it do no harm: rows of the online store are taken by (event time, commit) and the applied commit only rises, and
the log's cursor moves in the transaction of its rows. So there is no need to fence the former holder.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Protocol

# How long the holder rests before it looks for what others published: there may be writers that wait for it, or nobody.
SHARED_POLL_S = 0.05
ALONE_POLL_S = 0.5


class Lease(Protocol):
    """An exclusive claim that ends with the process, whatever ends that."""

    @property
    def poll_s(self) -> float:
        """How long the holder rests before it looks for what other processes published."""
        ...

    async def take(self) -> bool:
        """Whether this process holds the lease, now or since before. Raises Unavailable when nobody can say."""
        ...

    async def release(self) -> None:
        """Lets another process take it."""
        ...


class Unrivalled:
    """The lease of a process that shares its work with nobody."""

    poll_s = ALONE_POLL_S

    async def take(self) -> bool:
        """See `Lease.take`."""
        return True

    async def release(self) -> None:
        """See `Lease.release`."""


class FileLease:
    """A lock on a file, for processes of one machine.

    Those who wait hold a lock on a second file together, so that the holder knows whether there is anybody else who
    publishes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._waiting: int | None = None

    @property
    def poll_s(self) -> float:
        """See `Lease.poll_s`."""
        waiting = self._locked(".waiting", fcntl.LOCK_EX)
        if waiting is None:
            return SHARED_POLL_S
        os.close(waiting)
        return ALONE_POLL_S

    async def take(self) -> bool:
        """See `Lease.take`."""
        if self._file is not None:
            return True
        self._file = self._locked("", fcntl.LOCK_EX)
        if self._file is None:
            if self._waiting is None:
                self._waiting = self._locked(".waiting", fcntl.LOCK_SH)
            return False
        self._wait_no_longer()
        return True

    async def release(self) -> None:
        """See `Lease.release`."""
        self._wait_no_longer()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _wait_no_longer(self) -> None:
        if self._waiting is not None:
            os.close(self._waiting)
            self._waiting = None

    def _locked(self, suffix: str, lock: int) -> int | None:
        """The open, locked file; None when others hold it."""
        path = self._path.with_name(self._path.name + suffix)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, lock | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file
