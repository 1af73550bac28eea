"""Running pipelines over messages.

A batch of messages is one commit, in which the position moves to that of its last message; only then are they
acknowledged. What comes again after a crash, up to the position, is passed over: each message counts once.

Memory holds one batch. While it is being written nothing is taken from the source, which is how a slow store slows
the source down. A batch that is being gathered when the run is stopped is dropped: the next run gets it again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import pyarrow as pa

from foresight.client import PositionMove
from foresight.pipelines.declarations import OnError, Stream
from foresight.pipelines.rows import collect, together
from foresight.pipelines.runs import Run, Store
from foresight.pipelines.sources import Message, Subscription
from foresight.values import FeatureGroup, InvalidValue
from foresight.values.pipelines import PipelineRun, Trigger, cut_error


class TooManySkipped(Exception):
    """The function failed on more messages than may be skipped."""


async def run_stream(
    stream: Stream,
    client: Store,
    *,
    trigger: Trigger = Trigger.MANUAL,
    stop: asyncio.Event | None = None,
    idle_s: float | None = None,
) -> PipelineRun:
    """Runs until the source ends, `stop` is set, or no message has come for `idle_s` seconds (None: for ever).

    Raises what the source, the function and the store raise; what was committed before stays.
    """
    position = _number((await asyncio.to_thread(client.pipeline, stream.name)).position)
    run = StreamRun(stream, client, trigger, position)
    async with _recorded(run), stream.source.open(position) as subscription:
        batches = Batches(subscription, stream, position, stop or asyncio.Event(), idle_s)
        async with contextlib.aclosing(batches.all()) as gathered:
            async for batch in gathered:
                await asyncio.to_thread(run.commit, batch)
                await subscription.acknowledge(batch[-1].position)
    return run.record


class StreamRun(Run):
    """A run over batches of messages."""

    def __init__(self, stream: Stream, client: Store, trigger: Trigger, position: int) -> None:
        super().__init__(stream.name, stream.group, client, trigger)
        self._stream = stream
        self._position = position

    def commit(self, batch: Sequence[Message]) -> None:
        """Commits the rows of messages together with the position of the last one."""
        group = self._described()
        table = together(self._tables(batch, group), group)
        before, after = self._position, batch[-1].position
        move = PositionMove(self._stream.name, str(before) if before else "", str(after))
        self._write(table, f"{self._stream.name}/{before}/{after}", move, read=len(batch))
        self._position = after
        self.report()

    def _tables(self, batch: Sequence[Message], group: FeatureGroup) -> list[pa.Table]:
        """The rows of messages; under "skip" halves are tried where the whole fails, down to the one at fault."""
        try:
            return [collect(self._stream.function(list(batch)), group)]
        except Exception as error:
            if self._stream.on_error is OnError.FAIL:
                error.add_note(f"in the messages {batch[0].position} to {batch[-1].position}")
                raise
            if len(batch) == 1:
                self._skip(batch[0], error)
                return []
        half = len(batch) // 2
        return self._tables(batch[:half], group) + self._tables(batch[half:], group)

    def _skip(self, message: Message, error: Exception) -> None:
        if self.record.skipped >= self._stream.skip_max:
            raise TooManySkipped(f"the function failed on more than {self._stream.skip_max} messages") from error
        text = cut_error(f"message {message.position} was skipped: {type(error).__name__}: {error}")
        self._note(skipped=self.record.skipped + 1, error=text)


class Batches:
    """The messages of a subscription in batches, each message once."""

    def __init__(
        self, subscription: Subscription, stream: Stream, after: int, stop: asyncio.Event, idle_s: float | None
    ) -> None:
        self._subscription = subscription
        self._rows_max = stream.batch_rows
        self._batch_s = stream.batch_s
        self._idle_s = idle_s
        self._received = after
        self._stop = stop
        self._over = False
        self._pending: asyncio.Task[list[Message]] | None = None

    async def all(self) -> AsyncGenerator[list[Message], None]:
        """The batches, until the source ends, is silent, or the run is stopped."""
        stopped = asyncio.create_task(self._stop.wait())
        try:
            while not self._over:
                batch = await self._next(stopped)
                if not batch:
                    return
                yield batch
        finally:
            for task in (stopped, self._pending):
                if task is not None:
                    task.cancel()
                    await asyncio.wait([task])

    async def _next(self, stopped: asyncio.Task[bool]) -> list[Message]:
        """The next batch; empty at the end."""
        loop = asyncio.get_running_loop()
        batch: list[Message] = []
        deadline = None if self._idle_s is None else loop.time() + self._idle_s
        while len(batch) < self._rows_max and not self._over:
            if self._pending is None:
                self._pending = asyncio.create_task(self._subscription.receive(self._rows_max - len(batch)))
            timeout = None if deadline is None else max(deadline - loop.time(), 0)
            await asyncio.wait([self._pending, stopped], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                return []
            if not self._pending.done():
                break
            messages = self._pending.result()
            self._pending = None
            self._over = not messages
            fresh = self._fresh(messages)
            if fresh and not batch:
                deadline = loop.time() + self._batch_s
            batch += fresh
        return batch

    def _fresh(self, messages: Sequence[Message]) -> list[Message]:
        """Those that did not come before."""
        fresh: list[Message] = []
        for message in messages:
            if message.position > self._received:
                self._received = message.position
                fresh.append(message)
        return fresh


@contextlib.asynccontextmanager
async def _recorded(run: StreamRun) -> AsyncIterator[None]:
    """A run's block, with its calls of the store in threads."""
    await asyncio.to_thread(run.__enter__)
    try:
        yield
    except BaseException as error:
        await asyncio.to_thread(run.__exit__, type(error), error, error.__traceback__)
        raise
    await asyncio.to_thread(run.__exit__, None, None, None)


def _number(position: str) -> int:
    if position and not position.isdecimal():
        raise InvalidValue("position", f"{position!r} is no message's: the pipeline had windows before")
    return int(position or 0)
