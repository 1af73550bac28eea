"""Generations of the online store in a cluster: made, brought forward, replaced and removed (see `redis_layout.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TypeVar

import pyarrow as pa

from foresight.values import Column
from services.feature_store.groups import StoredGroup
from services.feature_store.online.key_codec import GROUP_BYTES, group_prefix, whole_key
from services.feature_store.online.redis_commands import Command, RedisCommands, Script
from services.feature_store.online.redis_layout import (
    ADVANCE,
    REPLACE,
    UPSERT,
    WHOLE,
    Names,
    State,
    bucket_of,
    current_row,
    generations_of,
)
from services.feature_store.online.row_codec import RowCodec, RowCodecs, latest_per_key
from services.feature_store.online.store import CommittedRows
from services.runtime.errors import FailedPrecondition, Unavailable
from services.runtime.threads import in_thread_unless

# Rows of one script, which a node runs without a break, and commands that are under way at once.
SCRIPT_ROWS = 100
COMMANDS_AT_ONCE = 128
SCANNED_AT_ONCE = 1_000
PAUSE_S = 0.005
# Nothing is applied to the live generation for so long at most while another one takes its place.
HOLD_MS = 10_000
# A rebuild whose process is gone ends so much later.
BUILDING_MS = 30_000
_UPSERT, _ADVANCE, _REPLACE = Script(UPSERT), Script(ADVANCE), Script(REPLACE)
SCRIPTS = (_UPSERT, _ADVANCE, _REPLACE)
# As many are encoded without a thread.
_SMALL_ROWS = 256
T = TypeVar("T")


class Replaced(Exception):
    """Another generation is the live one."""


class RedisGenerations:
    """The generations of one store. `buckets` counts for those that it makes."""

    def __init__(self, commands: RedisCommands, names: Names, buckets: int) -> None:
        self._commands = commands
        self._names = names
        self._buckets = buckets

    async def live(self) -> State:
        """The state of the live generation, which is made if there is none."""
        while True:
            state = State.of(await self._commands.one(("HGETALL", self._names.state)))
            if state is not None:
                return state
            mark = uuid.uuid4().hex
            await self.make(mark)
            if not await self.replace("", mark):
                # Another process was faster.
                await self.discard(mark)

    async def make(self, mark: str) -> State:
        """An empty generation with all of its buckets; the state knows it first, so that it can be removed."""
        await self._commands.one(("HSET", self._names.state, f"buckets:{mark}", self._buckets))
        for some in pieces(range(self._buckets), COMMANDS_AT_ONCE):
            await self._commands.many([("HSET", self._names.bucket(mark, b), WHOLE, "1") for b in some])
        return State(mark, self._buckets, 0, 0)

    async def discard(self, generation: str) -> None:
        """Removes a generation."""
        state = State.of(await self._commands.one(("HGETALL", self._names.state)), generation)
        if state is None:
            return
        for some in pieces(range(state.buckets), COMMANDS_AT_ONCE):
            await self._commands.many([("UNLINK", self._names.bucket(generation, b)) for b in some])
        fields = [f"{name}:{generation}" for name in ("applied", "erasure", "buckets")]
        await self._commands.one(("HDEL", self._names.state, *fields))

    async def discard_others(self, live: str) -> None:
        """Removes what rebuilds left that ended with their process."""
        for generation in generations_of(await self._commands.one(("HKEYS", self._names.state))):
            if generation != live:
                await self.discard(generation)

    async def advance(self, generation: str, applied: int, erasure: int, *, live: bool) -> None:
        """Notes progress of a generation, never backwards; of a live one not while it is held. Raises Replaced."""
        keys = [self._names.state, self._names.hold]
        while True:
            command = _ADVANCE.command(keys, generation, applied, erasure, "1" if live else "0")
            outcome = await self._commands.one(command)
            if outcome == b"OK":
                return
            if outcome == b"REPLACED":
                raise Replaced
            await asyncio.sleep(PAUSE_S)

    async def hold(self) -> None:
        """Keeps the live generation from going forward for HOLD_MS, or until it is replaced."""
        await self._commands.one(("SET", self._names.hold, "1", "PX", HOLD_MS))

    async def replace(self, live: str, generation: str) -> bool:
        """Makes a generation the live one in place of another ('': of none); False when that is no longer the live one
        or is further on."""
        command = _REPLACE.command([self._names.state, self._names.hold], live, generation)
        return bool(await self._commands.one(command) == b"OK")

    @contextlib.asynccontextmanager
    async def building(self, mark: str) -> AsyncIterator[None]:
        """The claim to build; it is renewed while the block runs. Raises FailedPrecondition."""
        claim = ("SET", self._names.building, mark, "PX", BUILDING_MS)
        if await self._commands.one((*claim, "NX")) is None:
            raise FailedPrecondition("the online store is being rebuilt already")

        async def renew() -> None:
            while True:
                await asyncio.sleep(BUILDING_MS / 6_000)
                with contextlib.suppress(Unavailable):
                    await self._commands.one(claim)

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])
            with contextlib.suppress(Unavailable):
                await self._commands.one(("DEL", self._names.building))


class RedisRows:
    """The rows of one generation."""

    def __init__(self, commands: RedisCommands, names: Names, codecs: RowCodecs, state: State) -> None:
        self._commands = commands
        self._names = names
        self._codecs = codecs
        self._state = state

    async def put(self, batches: Sequence[CommittedRows]) -> None:
        """Takes rows that come after what the generation's state has as applied. Raises NotWhole."""
        for batch in batches:
            codec, small = self._codecs.of(batch.group), batch.rows.num_rows <= _SMALL_ROWS
            arriving = batch.rows.batches()
            while (rows := await in_thread_unless(small, next, arriving, None)) is not None:
                commands = await in_thread_unless(small, self._upserts, codec, rows)
                for some in pieces(commands, COMMANDS_AT_ONCE):
                    await self._commands.many(some)

    async def remove(self, group: StoredGroup, columns: tuple[Column, ...]) -> int:
        """Removes keys; answers how many there were."""
        buckets: dict[int, list[bytes]] = defaultdict(list)
        codec = self._codecs.of(group)
        entities = codec.key.entities(columns)
        for entity, key in zip(entities, codec.key.stored_keys(entities), strict=True):
            if entity is not None and key is not None:
                buckets[bucket_of(entity, self._state.buckets)].append(key)
        commands: list[Command] = [("HDEL", self._name(bucket), *keys) for bucket, keys in buckets.items()]
        removed = 0
        for some in pieces(commands, COMMANDS_AT_ONCE):
            removed += sum(await self._commands.many(some))
        return removed

    async def keys(self, group: StoredGroup) -> AsyncIterator[tuple[Column, ...]]:
        """The keys of a group that have rows, batch by batch."""
        prefix, codec = group_prefix(group), self._codecs.of(group)
        for bucket in range(self._state.buckets):
            # A scan may come by a field more than once.
            seen: set[bytes] = set()
            cursor = 0
            while True:
                scan = ("HSCAN", self._name(bucket), cursor, "COUNT", SCANNED_AT_ONCE)
                cursor, fields = await self._commands.one(scan)
                found = {key: value for key, value in fields.items() if key.startswith(prefix) and key not in seen}
                seen.update(found)
                if found:
                    yield codec.key.columns([whole_key(key, current_row(value)) for key, value in found.items()])
                if not int(cursor):
                    break

    async def count(self) -> int:
        """How many keys there are."""
        counted = 0
        for some in pieces(range(self._state.buckets), COMMANDS_AT_ONCE):
            counted += sum(await self._commands.many([("HLEN", self._name(b)) for b in some])) - len(some)
        return counted

    def _upserts(self, codec: RowCodec, rows: pa.RecordBatch) -> list[Command]:
        encoded = codec.encode(rows)
        buckets: dict[int, list[bytes]] = defaultdict(list)
        for key, i in latest_per_key(encoded.keys, rows).items():
            buckets[bucket_of(encoded.whole_keys[i][GROUP_BYTES:], self._state.buckets)] += (key, encoded.rows[i])
        return [
            _UPSERT.command([self._name(bucket)], self._state.applied, *some)
            for bucket, items in buckets.items()
            for some in pieces(items, 2 * SCRIPT_ROWS)
        ]

    def _name(self, bucket: int) -> str:
        return self._names.bucket(self._state.generation, bucket)


def pieces(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in order, at most `size` at once."""
    return (items[start : start + size] for start in range(0, len(items), size))
