"""The online store in a cluster of the Redis protocol, which processes of several machines share.

A cluster has no transaction over its slots: rows of a batch come one after the other, and the applied commit when all
are in. A look-up nevertheless answers exactly what one applied commit has, by `row_as_of`, and one that is not earlier
than any that was announced before the look-up began: it takes the applied commit that it knew from before, reads the
rows and the applied commit of now in one round trip, and is done if both agree; else it reads the rows once more as of
the applied commit of now. See docs/decisions/0013.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from foresight.values import Column
from services.feature_store.config import RedisSettings
from services.feature_store.groups import StoredGroup
from services.feature_store.online.redis_commands import Command, NotWhole, RedisCommands, open_cluster
from services.feature_store.online.redis_generations import PAUSE_S, SCRIPTS, RedisGenerations, RedisRows, Replaced
from services.feature_store.online.redis_layout import GENERATION, WHOLE, Names, State, Unsettled, bucket_of, row_as_of
from services.feature_store.online.row_codec import RowCodec, RowCodecs
from services.feature_store.online.store import CommittedRows, FoundRows, KeyQuery, Lookup, Progress
from services.runtime.errors import Unavailable

LOOKUP_TIMEOUT_S = 5.0
TAKE_OVERS_MAX = 10
T = TypeVar("T")


@contextlib.asynccontextmanager
async def open_redis_store(settings: RedisSettings) -> AsyncIterator[RedisOnlineStore]:
    """The store of the settings; nothing is asked yet."""
    async with open_cluster(settings, SCRIPTS) as commands:
        yield RedisOnlineStore(commands, settings.prefix, settings.buckets)


class RedisOnlineStore:
    """An `OnlineStore` in a cluster. `buckets` counts for generations that it makes."""

    def __init__(self, commands: RedisCommands, prefix: str, buckets: int) -> None:
        self._commands = commands
        self._names = Names(prefix)
        self._generations = RedisGenerations(commands, self._names, buckets)
        self._codecs = RowCodecs()
        self._writer = asyncio.Lock()
        # The live generation as this process saw it last.
        self._known: State | None = None
        # The highest applied commit that it saw, of whatever generation.
        self._seen = 0

    async def apply(self, applied_commit: int, rows: Sequence[CommittedRows]) -> None:
        """See `OnlineStore.apply`."""

        async def put(state: State) -> None:
            await self._rows(state).put(rows)
            await self._advance(state, applied_commit, state.erasure)

        await self._change(put)

    async def remove(self, group: StoredGroup, keys: tuple[Column, ...]) -> int:
        """See `OnlineStore.remove`."""
        return await self._change(lambda state: self._rows(state).remove(group, keys))

    async def keys(self, group: StoredGroup) -> AsyncIterator[tuple[Column, ...]]:
        """See `OnlineStore.keys`."""
        async for keys in self._rows(await self._live()).keys(group):
            yield keys

    async def erased(self, erasure: int) -> None:
        """See `OnlineStore.erased`."""
        await self._change(lambda state: self._advance(state, state.applied, erasure))

    async def progress(self) -> Progress:
        """See `OnlineStore.progress`."""
        state = await self._live()
        return Progress(state.applied, state.erasure)

    async def applied_commit(self) -> int:
        """See `OnlineStore.applied_commit`."""
        return (await self.progress()).commit

    async def lookup(self, queries: Sequence[KeyQuery]) -> Lookup:
        """See `OnlineStore.lookup`."""
        codecs = [self._codecs.of(query.group) for query in queries]
        asked = [(codec, codec.key.entities(query.keys)) for codec, query in zip(codecs, queries, strict=True)]
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                return await self._lookup(asked)
        except TimeoutError:
            raise Unavailable("the online store does not come to rest") from None

    @contextlib.asynccontextmanager
    async def replacement(self) -> AsyncIterator[RedisReplacement]:
        """See `OnlineStore.replacement`."""
        mark, generations = uuid.uuid4().hex, self._generations
        async with generations.building(mark):
            live = (await self._live()).generation
            await generations.discard_others(live)
            made = RedisReplacement(generations, await generations.make(mark), live, self._rows)
            try:
                yield made
            finally:
                # What stays is removed by the next rebuild.
                with contextlib.suppress(Unavailable):
                    await generations.discard(live if made.took_over else mark)

    async def _change(self, work: Callable[[State], Awaitable[T]]) -> T:
        """Runs `work` on the live generation, again if another one took its place meanwhile."""
        async with self._writer:
            while True:
                state = await self._live()
                try:
                    return await work(state)
                except (Replaced, NotWhole) as error:
                    if (await self._live()).generation == state.generation:
                        raise _lost() from error

    async def _live(self) -> State:
        self._known = await self._generations.live()
        self._seen = max(self._seen, self._known.applied)
        return self._known

    async def _lookup(self, asked: Sequence[tuple[RowCodec, list[bytes | None]]]) -> Lookup:
        known, fresh, seen = self._known, False, self._seen
        while True:
            if known is None:
                known, fresh = await self._live(), True
            if fresh and known.applied < seen:
                # The state itself was lost, and all commits are applied once more.
                raise _lost()
            read = await self._read(asked, known)
            if read is None:
                # Another generation took its place.
                known = None
                continue
            values, now = read
            if fresh or now == known.applied:
                with contextlib.suppress(Unsettled):
                    found = [_decoded(codec, entities, values, known.applied) for codec, entities in asked]
                    return Lookup(found, known.applied)
                await asyncio.sleep(PAUSE_S)
            # What is announced from here on came after the look-up began.
            known, fresh = replace(known, applied=max(now, known.applied)), True
            self._remember(known)

    async def _read(
        self, asked: Sequence[tuple[RowCodec, list[bytes | None]]], known: State
    ) -> tuple[dict[bytes, bytes], int] | None:
        """Values by stored key, and the applied commit of now; None if another generation is the live one now."""
        buckets: dict[int, list[bytes]] = defaultdict(list)
        for codec, entities in asked:
            for entity, key in zip(entities, codec.key.stored_keys(entities), strict=True):
                if entity is not None and key is not None:
                    buckets[bucket_of(entity, known.buckets)].append(key)
        commands: list[Command] = [("HMGET", self._names.state, GENERATION, f"applied:{known.generation}")]
        commands += [("HMGET", self._names.bucket(known.generation, b), WHOLE, *keys) for b, keys in buckets.items()]
        (generation, applied), *answers = await self._commands.many(commands)
        if generation is None or generation.decode() != known.generation:
            return None
        values: dict[bytes, bytes] = {}
        for wanted, (whole, *rows) in zip(buckets.values(), answers, strict=True):
            if whole is None:
                if (await self._live()).generation == known.generation:
                    raise _lost()
                return None
            values.update((key, row) for key, row in zip(wanted, rows, strict=True) if row is not None)
        return values, int(applied or 0)

    async def _advance(self, state: State, applied: int, erasure: int) -> None:
        await self._generations.advance(state.generation, applied, erasure, live=True)
        self._remember(replace(state, applied=max(applied, state.applied)))

    def _remember(self, known: State) -> None:
        mine = self._known
        if mine is not None and mine.generation == known.generation and mine.applied < known.applied:
            self._known = known
            self._seen = max(self._seen, known.applied)

    def _rows(self, state: State) -> RedisRows:
        return RedisRows(self._commands, self._names, self._codecs, state)


class RedisReplacement:
    """A `Replacement` in the same cluster."""

    def __init__(
        self, generations: RedisGenerations, state: State, live: str, rows_of: Callable[[State], RedisRows]
    ) -> None:
        self._generations = generations
        self._state = state
        self._live = live
        self._rows_of = rows_of
        self.took_over = False

    async def apply(self, applied_commit: int, rows: Sequence[CommittedRows]) -> None:
        """See `Replacement.apply`."""
        try:
            await self._rows_of(self._state).put(rows)
        except NotWhole:
            raise Unavailable("the store that was being built is gone; rebuild again") from None
        await self._advance(max(applied_commit, self._state.applied), self._state.erasure)

    async def remove(self, group: StoredGroup, keys: tuple[Column, ...]) -> int:
        """See `Replacement.remove`."""
        return await self._rows_of(self._state).remove(group, keys)

    def keys(self, group: StoredGroup) -> AsyncIterator[tuple[Column, ...]]:
        """See `Replacement.keys`."""
        return self._rows_of(self._state).keys(group)

    async def erased(self, erasure: int) -> None:
        """See `Replacement.erased`."""
        await self._advance(self._state.applied, max(erasure, self._state.erasure))

    async def progress(self) -> Progress:
        """See `Replacement.progress`."""
        return Progress(self._state.applied, self._state.erasure)

    async def take_over(self, catch_up: Callable[[], Awaitable[None]]) -> int:
        """See `Replacement.take_over`."""
        await catch_up()
        for _ in range(TAKE_OVERS_MAX):
            await self._generations.hold()
            await catch_up()
            keys = await self._rows_of(self._state).count()
            if await self._generations.replace(self._live, self._state.generation):
                self.took_over = True
                return keys
        raise Unavailable("the online store is too busy to be replaced; try again")

    async def _advance(self, applied: int, erasure: int) -> None:
        await self._generations.advance(self._state.generation, applied, erasure, live=False)
        self._state = replace(self._state, applied=applied, erasure=erasure)


def _decoded(codec: RowCodec, entities: Sequence[bytes | None], values: dict[bytes, bytes], applied: int) -> FoundRows:
    rows: list[bytes | None] = []
    for key in codec.key.stored_keys(entities):
        value = None if key is None else values.get(key)
        rows.append(None if value is None else row_as_of(value, applied))
    return codec.decode_all(rows, entities)


def _lost() -> Unavailable:
    return Unavailable("the online store has lost rows; an operator can rebuild it")
