"""Folders for files that no process needs after its end.

Each process has a folder of its own below the given one and holds a lock on it; the next process that starts removes
the folders that nobody holds any more, whatever ended their owners.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from pathlib import Path


class ScratchFolder:
    """A folder of this process's own. Its methods block."""

    def __init__(self, parent: Path) -> None:
        """Makes the folder, and removes those of processes that are gone."""
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Held while folders are looked at, so that nobody finds one that is made but not locked yet.
        door = _lock(parent, wait=True)
        assert door is not None
        try:
            for folder in parent.iterdir():
                _remove_if_left(folder)
            self._path = parent / uuid.uuid4().hex
            self._path.mkdir(mode=0o700)
            self._lock = _lock(self._path, wait=True)
        finally:
            os.close(door)

    def new_path(self) -> Path:
        """A path in the folder that nothing has yet."""
        return self._path / uuid.uuid4().hex

    def free_bytes(self) -> int:
        """Bytes that the disk still has room for."""
        status = os.statvfs(self._path)
        return status.f_bavail * status.f_frsize

    def close(self) -> None:
        """Removes the folder and all that is in it."""
        shutil.rmtree(self._path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove_if_left(folder: Path) -> None:
    if not folder.is_dir():
        return
    lock = _lock(folder, wait=False)
    if lock is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """The open, locked folder; None when another process has it."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(opened)
        return None
    return opened
