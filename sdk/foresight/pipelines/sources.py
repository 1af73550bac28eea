"""Where messages come from: any async iterator, or a `Source` that can be told what is done.

Each message has a position, a number that rises within the source. The position of the last message whose rows are
committed is kept with the rows; a source is opened after it. So the simplest source that survives a crash is a
function that starts there:

    async def landings(after: int) -> AsyncIterator[Message]:
        async for offset, line in read_from(after + 1):
            yield Message(offset, line)

Without a parameter `after`, an iterator starts from its beginning, what was done is passed over, and items that are no
messages get their number in the sequence, from 1.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from foresight.values import InvalidValue


@dataclass(frozen=True, slots=True)
class Message:
    """Something that happened. `position` is 1 or more, and rises within the source."""

    position: int
    data: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    subject: str = ""


class Subscription(Protocol):
    """An open source."""

    async def receive(self, limit: int) -> list[Message]:
        """Waits for messages and answers 1 to `limit` of them, in order; none: there will be no more.

        What was delivered before, as sources do after a crash, may come again.
        """
        ...

    async def acknowledge(self, position: int) -> None:
        """Takes note that everything up to a position is committed, and not needed any more."""
        ...


@runtime_checkable
class Source(Protocol):
    """Something that messages come from."""

    def open(self, after: int) -> AbstractAsyncContextManager[Subscription]:
        """Opens it: messages later than a position come first, in order; 0: from the beginning.

        Raises SourceError when the source cannot go on from there.
        """
        ...


class SourceError(Exception):
    """A source cannot give its messages; it says why."""


@dataclass(frozen=True, slots=True)
class IteratorSource:
    """The source of a function that makes an async iterator."""

    function: Callable[..., AsyncIterator[Any]]

    @contextlib.asynccontextmanager
    async def open(self, after: int) -> AsyncIterator[IteratorSubscription]:
        """Starts the iterator; it is closed afterwards."""
        resumes = "after" in inspect.signature(self.function).parameters
        iterator = self.function(after=after) if resumes else self.function()
        try:
            yield IteratorSubscription(aiter(iterator), after if resumes else 0)
        finally:
            if isinstance(iterator, AsyncGeneratorLike):
                await iterator.aclose()


class IteratorSubscription:
    """The messages of an async iterator, one at a time; there is nothing to acknowledge."""

    def __init__(self, iterator: AsyncIterator[Any], position: int) -> None:
        self._iterator = iterator
        self._position = position

    async def receive(self, limit: int) -> list[Message]:
        """The next message, or none at the end."""
        try:
            item = await anext(self._iterator)
        except StopAsyncIteration:
            return []
        self._position += 1
        return [item if isinstance(item, Message) else Message(self._position, item)]

    async def acknowledge(self, position: int) -> None:
        """Nothing has to be told."""


@runtime_checkable
class AsyncGeneratorLike(Protocol):
    """What can be closed before its end."""

    async def aclose(self) -> None:
        """Ends it."""
        ...


def source_of(thing: Any) -> Source:
    """The source of a `Source`, an async iterable, or a function that returns one. Raises InvalidValue."""
    if isinstance(thing, Source):
        return thing
    if hasattr(thing, "__aiter__"):
        return IteratorSource(lambda: thing)
    if inspect.isasyncgenfunction(thing) or inspect.isfunction(thing) or inspect.ismethod(thing):
        return IteratorSource(thing)
    raise InvalidValue(
        "source", f"is a {type(thing).__name__}, not a Source, an async iterator or a function that returns one"
    )
