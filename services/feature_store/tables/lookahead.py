"""Work on what comes next while the former is still being used."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
# How often a thread that nobody takes anything from looks whether it is to stop.
_STOP_CHECK_S = 0.1


@contextlib.contextmanager
def looked_ahead(items: Iterator[T], most: int) -> Iterator[Iterator[T]]:
    """The items, made in a thread of their own, at most `most` before they are taken.

    What making them raises is raised where the next one is taken. At the end of the block the thread is stopped and
    waited for.
    """
    thread = _Ahead(items, most)
    thread.start()
    try:
        yield thread.taken()
    finally:
        thread.stop()


class _Ahead(threading.Thread, Generic[T]):
    def __init__(self, items: Iterator[T], most: int) -> None:
        super().__init__(name="lookahead", daemon=True)
        self._items = items
        self._made: queue.Queue[T | _End] = queue.Queue(most)
        self._stopped = threading.Event()

    def run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                if not self._put(item):
                    return
        except BaseException as raised:  # noqa: BLE001 - raised again where the items are taken
            error = raised
        self._put(_End(error))

    def taken(self) -> Iterator[T]:
        while True:
            item = self._made.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def _put(self, item: T | _End) -> bool:
        while not self._stopped.is_set():
            try:
                self._made.put(item, timeout=_STOP_CHECK_S)
            except queue.Full:
                continue
            return True
        return False


class _End:
    """Nothing follows."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
