"""Streams of requests: many are worked on at a time, and they are answered in the order in which they came.

Pure asyncio: what a request is and how it is answered is the business of whoever serves the stream.

- A stream takes the next request while it has fewer than `unanswered_max` without an answer and these are smaller than
  `unanswered_bytes_max` together, each of their rows counting for ROW_BYTES at least, so that no stream fills the queue
  of all; the first one is taken whatever its size. A request counts until its answer was handed over, so that a caller
  who does not read his answers is not read from either, and the transport's flow control holds him.
- When the caller has sent all, what is left is answered. When he goes away, what is not answered is dropped.
- `end` is for a process that stops: no stream takes any more, each answers what it has taken and then ends with
  Unavailable.
- A process has at most `streams_max` streams; one more ends at once with Overloaded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, Generic, TypeVar

from services.runtime.errors import Overloaded, Unavailable

Q = TypeVar("Q")
A = TypeVar("A")

STREAMS_MAX = 128
UNANSWERED_MAX = 64
UNANSWERED_BYTES_MAX = 1 << 20
# 2,048 rows are as many bytes as a stream may have unanswered.
ROW_BYTES = 512


class Streams:
    """The streams of one process."""

    def __init__(
        self,
        *,
        streams_max: int = STREAMS_MAX,
        unanswered_max: int = UNANSWERED_MAX,
        unanswered_bytes_max: int = UNANSWERED_BYTES_MAX,
    ) -> None:
        self._streams_max = streams_max
        self._unanswered_max = unanswered_max
        self._unanswered_bytes_max = unanswered_bytes_max
        self._open: set[_Stream[Any, Any]] = set()
        self._ending = False

    @property
    def open(self) -> int:
        """Streams under way."""
        return len(self._open)

    @property
    def unanswered(self) -> int:
        """Requests that were taken and whose answers were not handed over."""
        return sum(stream.unanswered for stream in self._open)

    async def end_after(self, closing: asyncio.Event) -> None:
        """Ends the streams once the event is set."""
        await closing.wait()
        self.end()

    def end(self) -> None:
        """Ends all streams, each after the requests that it has taken, and those that begin later at once."""
        self._ending = True
        for stream in self._open:
            stream.end()

    async def answers(
        self, requests: AsyncIterator[Q], answer: Callable[[Q], Coroutine[Any, Any, A]], size_of: Callable[[Q], int]
    ) -> AsyncGenerator[A, None]:
        """What `answer` says to each request, in order; `size_of` is a request's size, see `size_of_rows`.

        `answer` runs for several requests at a time; what it raises ends the stream, and so does a fault of
        `requests`, after the requests before it were answered. Raises Overloaded and Unavailable, see the module.
        """
        if self._ending:
            raise _stopping()
        if len(self._open) >= self._streams_max:
            raise Overloaded("too many streams are open", limit="streams_max")
        stream = _Stream(requests, answer, size_of, self._unanswered_max, self._unanswered_bytes_max)
        self._open.add(stream)
        try:
            while (waiting := await stream.next()) is not None:
                yield await waiting
                stream.handed_over()
        finally:
            self._open.discard(stream)
            await stream.close()


class _Stream(Generic[Q, A]):
    """One stream: a task reads and starts answers, whoever asks for `next` takes them in order."""

    def __init__(
        self,
        requests: AsyncIterator[Q],
        answer: Callable[[Q], Coroutine[Any, Any, A]],
        size_of: Callable[[Q], int],
        unanswered_max: int,
        unanswered_bytes_max: int,
    ) -> None:
        self._requests = requests
        self._answer = answer
        self._size_of = size_of
        self._unanswered_max = unanswered_max
        self._unanswered_bytes_max = unanswered_bytes_max
        self._loop = asyncio.get_running_loop()
        # Answers that are being made, with the sizes of their requests.
        self._answers: deque[tuple[asyncio.Task[A], int]] = deque()
        self._bytes = 0
        # The reader waits here for room, and the taker of answers for the next one.
        self._room: asyncio.Future[None] | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._over = False
        self._fault: Exception | None = None
        self._reader = self._loop.create_task(self._read())

    @property
    def unanswered(self) -> int:
        """Requests that were taken and whose answers were not handed over."""
        return len(self._answers)

    async def next(self) -> asyncio.Task[A] | None:
        """The answer that is next, perhaps not made yet; None when all was answered. Raises what ended the stream."""
        while not self._answers:
            if self._over:
                if self._fault is not None:
                    raise self._fault
                return None
            self._arrival = self._loop.create_future()
            await self._arrival
        return self._answers[0][0]

    def handed_over(self) -> None:
        """The answer that `next` gave is the transport's."""
        _, size = self._answers.popleft()
        self._bytes -= size
        if self._room is not None and self._has_room:
            _wake(self._room)

    def end(self) -> None:
        """Takes no more requests; those that were taken are answered, then `next` raises Unavailable."""
        if not self._over:
            self._fault = _stopping()
            self._reader.cancel()
            self._finish()

    async def close(self) -> None:
        """Drops what is not answered."""
        tasks = [self._reader, *(task for task, _ in self._answers)]
        self._answers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _has_room(self) -> bool:
        few = len(self._answers) < self._unanswered_max and self._bytes < self._unanswered_bytes_max
        return few or not self._answers

    async def _read(self) -> None:
        loop, answers = self._loop, self._answers
        try:
            async for request in self._requests:
                size = self._size_of(request)
                answers.append((loop.create_task(self._answer(request)), size))
                self._bytes += size
                if self._arrival is not None:
                    _wake(self._arrival)
                while not self._has_room:
                    self._room = loop.create_future()
                    await self._room
        except Exception as fault:  # noqa: BLE001 - the fault is the stream's, and raised where its answers are taken
            self._fault = fault
        self._finish()

    def _finish(self) -> None:
        """Nothing more is taken."""
        self._over = True
        if self._arrival is not None:
            _wake(self._arrival)


def size_of_rows(rows: int, size: int) -> int:
    """The size of a request of so many rows and bytes."""
    return max(size, rows * ROW_BYTES)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _stopping() -> Unavailable:
    return Unavailable("the service stops and takes no more requests of a stream")
