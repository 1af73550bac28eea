"""A request that has a name of its caller's is answered once: asked again, it gets the first answer again.

Names hold per caller and deployment, for MEMORY. Whoever repeats a request that is still being answered waits for that
answer; one that failed has left nothing behind, and its repeat is tried anew. A named request that has begun is
answered to its end although its caller goes, for the caller will come again for the answer. A name that comes with
another content is refused: it would get the answer to a question that it did not ask.

Answers are kept in bytes, at most `bytes_max` with what it takes to find them; beyond that the oldest are forgotten
early, and a repeat of theirs is a new prediction. They are in the journal before they are sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

import structlog

from foresight.values import Column, DataType, InvalidValue, micros_from_instant
from foresight.values.names import check_text
from services.predictor.answer_journal import DIGEST_BYTES, AnswerJournal, Entry
from services.predictor.requests import Answer, Predicting, Request
from services.runtime.clock import Clock

log = structlog.get_logger()

MEMORY = timedelta(minutes=10)
NAME_BYTES_MAX = 128
# Of an entry in memory beside its answer: digests, objects and its places in the table.
ENTRY_BYTES = 400
_MEMORY_US = MEMORY // timedelta(microseconds=1)


class AnswerPacker(Protocol):
    """How answers are kept."""

    def pack(self, answer: Answer) -> bytes:
        """The bytes of an answer."""
        ...

    def unpack(self, data: bytes) -> Answer:
        """The answer of `pack`'s bytes."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    content: bytes
    task: asyncio.Task[Answer]


class Repeats:
    """Stands before `inner` and answers what was answered before; `on_repeat` is told of each."""

    def __init__(
        self,
        inner: Predicting,
        packer: AnswerPacker,
        journal: AnswerJournal,
        clock: Clock,
        *,
        bytes_max: int,
        on_repeat: Callable[[], None] = lambda: None,
    ) -> None:
        self._inner = inner
        self._packer = packer
        self._journal = journal
        self._clock = clock
        self._bytes_max = bytes_max
        self._on_repeat = on_repeat
        # Oldest first, by key.
        self._known: OrderedDict[bytes, Entry] = OrderedDict()
        self._bytes = 0
        self._running: dict[bytes, _Running] = {}

    @property
    def remembered(self) -> int:
        """Answers in memory."""
        return len(self._known)

    def restore(self) -> None:
        """Remembers what an earlier process answered; for a thread, before the first request. Raises OSError."""
        for entry in self._journal.read(self._now_us() - _MEMORY_US):
            self._keep(entry)

    async def predict(self, request: Request) -> Answer:
        """The answer, or the first one to a request of this name.

        Raises InvalidValue for a name that is too long, not plain text, or another request's, and what `inner` raises.
        """
        name = request.client_request_id
        if not name:
            return await self._inner.predict(request)
        check_text(name, "request_id", NAME_BYTES_MAX)
        key, content = _key_of(request), content_of(request)
        while True:
            known = self._recall(key)
            if known is not None:
                _check_same(known.content, content)
                self._on_repeat()
                return replace(self._packer.unpack(known.answer), repeated=True)
            running = self._running.get(key)
            if running is None:
                break
            _check_same(running.content, content)
            # Neither its error nor its end by cancellation is this caller's, and this caller's end is not its.
            await asyncio.wait([running.task])
            if not running.task.cancelled() and running.task.exception() is None:
                # Not from memory: it may have been too large for that.
                self._on_repeat()
                return replace(running.task.result(), repeated=True)
        task = asyncio.create_task(self._answer(key, content, request))
        self._running[key] = _Running(content, task)
        # Not by the task itself: one that is cancelled before it begins never runs.
        task.add_done_callback(lambda ended: self._forget_running(key, ended))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ends what still runs and gives the journal up."""
        tasks = [running.task for running in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._journal.close()

    async def _answer(self, key: bytes, content: bytes, request: Request) -> Answer:
        answer = await self._inner.predict(request)
        now_us = self._now_us()
        entry = Entry(key, content, now_us, self._packer.pack(answer))
        self._keep(entry)
        self._journal.write(entry, now_us - _MEMORY_US)
        return answer

    def _forget_running(self, key: bytes, ended: asyncio.Task[Answer]) -> None:
        del self._running[key]
        # Nobody may be left to be told.
        if not ended.cancelled():
            ended.exception()

    def _recall(self, key: bytes) -> Entry | None:
        """What was answered; everything that is out of date is forgotten first."""
        since_us = self._now_us() - _MEMORY_US
        while self._known and next(iter(self._known.values())).answered_us < since_us:
            self._drop_oldest()
        return self._known.get(key)

    def _keep(self, entry: Entry) -> None:
        if _bytes_of(entry) > self._bytes_max:
            # All others would have to go for it, and it would not stay either.
            return
        earlier = self._known.pop(entry.key, None)
        if earlier is not None:
            self._bytes -= _bytes_of(earlier)
        self._known[entry.key] = entry
        self._bytes += _bytes_of(entry)
        while self._bytes > self._bytes_max:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, entry = self._known.popitem(last=False)
        self._bytes -= _bytes_of(entry)

    def _now_us(self) -> int:
        return micros_from_instant(self._clock())


def content_of(request: Request) -> bytes:
    """A digest of what is asked: equal for requests with the same columns in any order, event time and options."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    asked_at = "" if request.event_time is None else request.event_time.isoformat()
    for text in (asked_at, repr(request.given), repr(request.explain), request.forced_arm):
        _add(digest, text.encode())
    for name in sorted(request.columns):
        column = request.columns[name]
        _add(digest, name.encode(errors="surrogatepass"))
        _add(digest, column.type.value.encode())
        _add(digest, repr(column.values.shape).encode())
        _add(digest, _bytes_of_values(column))
        _add(digest, b"" if column.valid is None else column.valid.tobytes())
    return digest.digest()


def _bytes_of_values(column: Column) -> bytes:
    if column.type is not DataType.STRING:
        return column.values.tobytes()
    texts = [text.encode(errors="surrogatepass") for text in column.values.tolist()]
    return struct.pack(f"<{len(texts)}I", *map(len, texts)) + b"".join(texts)


def _key_of(request: Request) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for text in (request.caller, request.deployment, request.client_request_id):
        _add(digest, text.encode(errors="surrogatepass"))
    return digest.digest()


def _add(digest: hashlib.blake2b, data: bytes) -> None:
    digest.update(struct.pack("<I", len(data)))
    digest.update(data)


def _check_same(known: bytes, content: bytes) -> None:
    if known != content:
        raise InvalidValue("request_id", "names another request of the last 10 minutes, with other content")


def _bytes_of(entry: Entry) -> int:
    return len(entry.answer) + ENTRY_BYTES
