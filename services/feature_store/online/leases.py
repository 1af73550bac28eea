"""Leases: who feeds the online store.

One process at a time holds the lease and applies commits; whoever waits takes over when it ends. Two that both believe
to hold it do no harm, as rows are taken by (event time, commit) and the applied commit only rises: there is no need to
fence the former holder.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Protocol


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


class FileLease:
    """A lock on a file, for processes of one machine: as a rule there is one."""

    poll_s = 0.5

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    async def take(self) -> bool:
        """See `Lease.take`."""
        if self._file is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                return False
            self._file = file
        return True

    async def release(self) -> None:
        """See `Lease.release`."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
