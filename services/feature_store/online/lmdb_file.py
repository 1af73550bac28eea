"""An LMDB file that grows when it is full, for many threads and processes.

Transactions pass side by side. A change of the map's size, and closing, wait until there are none in this process.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import lmdb

from services.runtime.errors import LimitExceeded

# Address space, not memory or disk: the file grows with what is in it.
MAP_BYTES_MAX = 1 << 42
READERS_MAX = 512
R = TypeVar("R")


class Closed(Exception):
    """The file was closed, as another one took its place."""


class LmdbFile:
    """One environment in a folder of its own; open it once per process."""

    def __init__(self, folder: Path, map_bytes: int, *, durable: bool = True) -> None:
        self._environment = lmdb.open(
            str(folder), map_size=map_bytes, max_readers=READERS_MAX, sync=durable, metasync=False, max_spare_txns=16
        )
        self._gate = _Gate()

    def read(self, work: Callable[[lmdb.Transaction], R]) -> R:
        """Runs `work` on a snapshot. Raises Closed."""
        while True:
            self._gate.enter()
            try:
                transaction = self._environment.begin()
                try:
                    return work(transaction)
                finally:
                    transaction.abort()
            except lmdb.MapResizedError:
                pass
            finally:
                self._gate.leave()
            self._follow_growth()

    def write(self, work: Callable[[lmdb.Transaction], R]) -> R:
        """Runs `work` in a transaction, again in a larger file when it was full. Blocks while others write.

        Raises Closed, and LimitExceeded when the disk is full; nothing is changed then.
        """
        while True:
            try:
                with self._gate.shared(), self._environment.begin(write=True) as transaction:
                    return work(transaction)
            except lmdb.MapFullError:
                self._grow(0)
            except lmdb.MapResizedError:
                self._follow_growth()
            except lmdb.DiskError as error:
                raise LimitExceeded("the online store has no room left", limit="disk") from error

    def make_room(self, size: int) -> None:
        """Makes it likely that so many bytes more fit, so that `write` need not begin again."""
        with self._gate.shared():
            info, page = self._environment.info(), self._environment.stat()["psize"]
        if info["map_size"] - (info["last_pgno"] + 1) * page < size:
            self._grow(size)

    def entries(self) -> int:
        """Number of keys."""
        with self._gate.shared():
            return int(self._environment.stat()["entries"])

    def sync(self) -> None:
        """Returns when everything is on the disk."""
        with self._gate.shared():
            self._environment.sync(True)

    def close(self) -> None:
        """Closes it once no transaction is under way."""
        if self._gate.close():
            self._environment.close()

    def _grow(self, size: int) -> None:
        with self._gate.exclusive():
            now = self._environment.info()["map_size"]
            if now >= MAP_BYTES_MAX:
                raise LimitExceeded("the online store has reached its largest size", limit="online_store_bytes")
            self._environment.set_mapsize(min(MAP_BYTES_MAX, max(2 * now, now + size)))

    def _follow_growth(self) -> None:
        """Another process made the file larger."""
        with self._gate.exclusive():
            self._environment.set_mapsize(0)


class _Gate:
    """Lets transactions pass side by side, and a change of the file only when there are none."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    def enter(self) -> None:
        """Begins to use the file. Raises Closed."""
        with self._changed:
            if self._closed:
                raise Closed
            self._inside += 1

    def leave(self) -> None:
        """Ends what `enter` began."""
        with self._changed:
            self._inside -= 1
            if not self._inside:
                self._changed.notify_all()

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Uses the file for a block. Raises Closed."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._inside)
            if self._closed:
                raise Closed
            yield

    def close(self) -> bool:
        """Shuts it when nobody is inside; whether it was open."""
        with self._changed:
            was_open = not self._closed
            self._closed = True
            self._changed.wait_for(lambda: not self._inside)
            return was_open
