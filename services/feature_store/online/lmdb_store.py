"""The online store in LMDB: a memory-mapped file that one process writes and any number read without locks.

A transaction of the store holds the rows of one or more commits and the number of the last one. After a crash of the
process nothing is lost; after one of the machine the last transactions may be missing, and the applier repeats them.
A store that was built anew takes the place of the former one by a transaction of that one (see `generations.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lmdb

from foresight.values import Column
from services.feature_store.groups import StoredGroup
from services.feature_store.online.generations import Generations
from services.feature_store.online.key_codec import group_prefix, stored_key, whole_key
from services.feature_store.online.lmdb_file import Closed, LmdbFile
from services.feature_store.online.row_codec import RowCodecs, latest_per_key, version_of
from services.feature_store.online.store import CommittedRows, FoundRows, KeyQuery, Lookup, Progress
from services.runtime.errors import Unavailable
from services.runtime.threads import in_thread

MAP_BYTES = 256 << 20
# More rows than this are looked up in a thread, so that the event loop goes on.
INLINE_ROWS_MAX = 2_048
# Room that a row takes beside its own bytes: key, node, half-empty pages, pages rewritten in the same transaction.
ROW_ROOM_BYTES = 512
KEYS_PER_PAGE = 10_000
# Group ids count from 1, so this is no row's key.
_STATE_KEY = struct.pack(">I", 0) + b"state"
_STATE = struct.Struct("<QQQ")
R = TypeVar("R")


class LmdbOnlineStore:
    """An `OnlineStore` in a folder. Close it when nobody uses it any more."""

    def __init__(self, folder: Path, map_bytes: int = MAP_BYTES) -> None:
        self._map_bytes = map_bytes
        self._generations = Generations(folder)
        self._codecs = RowCodecs()
        self._switching = threading.Lock()
        self._rows = self._open_live()
        self._writer = asyncio.Lock()

    async def apply(self, applied_commit: int, rows: Sequence[CommittedRows]) -> None:
        """See `OnlineStore.apply`."""
        async with self._writer:
            await in_thread(self._live, lambda live: live.apply(applied_commit, rows))

    async def lookup(self, queries: Sequence[KeyQuery]) -> Lookup:
        """See `OnlineStore.lookup`."""
        if sum(len(query.keys[0]) for query in queries) > INLINE_ROWS_MAX:
            return await in_thread(self._live, lambda live: live.lookup(queries))
        return self._live(lambda live: live.lookup(queries))

    async def remove(self, group: StoredGroup, keys: tuple[Column, ...]) -> int:
        """See `OnlineStore.remove`."""
        async with self._writer:
            return await in_thread(self._live, lambda live: live.remove(group, keys))

    def keys(self, group: StoredGroup) -> AsyncIterator[tuple[Column, ...]]:
        """See `OnlineStore.keys`."""
        return _pages(lambda after: self._live(lambda live: live.keys(group, after)))

    async def erased(self, erasure: int) -> None:
        """See `OnlineStore.erased`."""
        async with self._writer:
            await in_thread(self._live, lambda live: live.erased(erasure))

    async def progress(self) -> Progress:
        """See `OnlineStore.progress`."""
        state = self._live(lambda live: live.state())
        return Progress(state.applied, state.erasure)

    async def applied_commit(self) -> int:
        """See `OnlineStore.applied_commit`."""
        return (await self.progress()).commit

    @contextlib.asynccontextmanager
    async def replacement(self) -> AsyncIterator[LmdbReplacement]:
        """See `OnlineStore.replacement`."""
        # Makes sure that the generation that this process has open is the live one.
        await self.progress()
        with self._generations.building() as (number, path):
            file = LmdbFile(path, self._map_bytes, durable=False)
            made = LmdbReplacement(_Rows(file, self._codecs), number, self._take_place)
            try:
                yield made
            finally:
                file.close()
                if not made.took_over:
                    await in_thread(self._generations.discard, number)
        if made.took_over:
            # The first look opens the new one, and removes the old one.
            await self.progress()

    def close(self) -> None:
        """Closes the file; what was applied is safe before."""
        self._rows.file.close()

    def _live(self, work: Callable[[_Rows], R]) -> R:
        """Runs `work` on the live generation, on the next one when another one took its place meanwhile."""
        while True:
            rows = self._rows
            try:
                return work(rows)
            except (_Superseded, Closed):
                with self._switching:
                    if self._rows is rows:
                        rows.file.close()
                        self._rows = self._open_live()

    def _open_live(self) -> _Rows:
        return self._generations.open_live(
            lambda path: _Rows(LmdbFile(path, self._map_bytes), self._codecs),
            lambda rows: rows.raw_state().successor,
            lambda rows: rows.file.close(),
        )

    def _take_place(self, successor: int, catch_up: Callable[[], None]) -> None:
        """Names the successor of the live generation, to which nothing is applied from the last catching up on."""
        live = self._rows

        def name_successor(transaction: lmdb.Transaction) -> None:
            catch_up()
            _put_state(transaction, _state(transaction)._replace(successor=successor))

        # The work is not to be repeated.
        live.file.make_room(1 << 20)
        live.file.write(name_successor)


class LmdbReplacement:
    """A `Replacement` in a folder."""

    def __init__(self, rows: _Rows, number: int, take_place: Callable[[int, Callable[[], None]], None]) -> None:
        self._rows = rows
        self._number = number
        self._take_place = take_place
        self._keys = 0
        self.took_over = False

    async def apply(self, applied_commit: int, rows: Sequence[CommittedRows]) -> None:
        """See `Replacement.apply`."""
        await in_thread(self._rows.apply, applied_commit, rows)

    async def remove(self, group: StoredGroup, keys: tuple[Column, ...]) -> int:
        """See `Replacement.remove`."""
        return await in_thread(self._rows.remove, group, keys)

    def keys(self, group: StoredGroup) -> AsyncIterator[tuple[Column, ...]]:
        """See `Replacement.keys`."""
        return _pages(lambda after: self._rows.keys(group, after))

    async def erased(self, erasure: int) -> None:
        """See `Replacement.erased`."""
        await in_thread(self._rows.erased, erasure)

    async def progress(self) -> Progress:
        """See `Replacement.progress`."""
        state = self._rows.state()
        return Progress(state.applied, state.erasure)

    async def take_over(self, catch_up: Callable[[], Awaitable[None]]) -> int:
        """See `Replacement.take_over`."""
        loop = asyncio.get_running_loop()

        async def caught_up() -> None:
            await catch_up()

        def catch_up_and_close() -> None:
            asyncio.run_coroutine_threadsafe(caught_up(), loop).result()
            # All but the state.
            self._keys = self._rows.file.entries() - 1
            self._rows.file.sync()
            # This process opens it as the live one as soon as it is that.
            self._rows.file.close()

        await catch_up()
        await in_thread(self._rows.file.sync)
        await in_thread(self._swap, catch_up_and_close)
        return self._keys

    def _swap(self, catch_up_and_close: Callable[[], None]) -> None:
        try:
            self._take_place(self._number, catch_up_and_close)
        except Closed:
            raise Unavailable("the online store was not replaced, as it grew at that moment; try again") from None
        self.took_over = True


class _Superseded(Exception):
    """Another generation is the live one by now."""


class _State(NamedTuple):
    applied: int
    erasure: int
    successor: int


class _Rows:
    """The rows of one generation; its methods block."""

    def __init__(self, file: LmdbFile, codecs: RowCodecs) -> None:
        self.file = file
        self._codecs = codecs

    def raw_state(self) -> _State:
        return self.file.read(_state)

    def state(self) -> _State:
        return self.file.read(_live_state)

    def lookup(self, queries: Sequence[KeyQuery]) -> Lookup:
        return self.file.read(lambda transaction: self._lookup(transaction, queries))

    def _lookup(self, transaction: lmdb.Transaction, queries: Sequence[KeyQuery]) -> Lookup:
        found: list[FoundRows] = []
        applied = _live_state(transaction).applied
        get = transaction.get
        # Groups of a view often have the same keys.
        encoded: dict[tuple[Column, ...], list[bytes | None]] = {}
        for query in queries:
            codec = self._codecs.of(query.group)
            entities = encoded.get(query.keys)
            if entities is None:
                entities = encoded[query.keys] = codec.key.entities(query.keys)
            keys = codec.key.stored_keys(entities)
            rows: list[Any] = [None if key is None else get(key) for key in keys]
            found.append(codec.decode_all(rows, entities))
        return Lookup(found, applied)

    def apply(self, applied_commit: int, batches: Sequence[CommittedRows]) -> None:
        self.file.make_room(sum(batch.rows.num_rows for batch in batches) * ROW_ROOM_BYTES)

        def put(transaction: lmdb.Transaction) -> None:
            state = _live_state(transaction)
            for batch in batches:
                codec = self._codecs.of(batch.group)
                for rows in batch.rows.batches():
                    encoded = codec.encode(rows)
                    latest = latest_per_key(encoded.keys, rows)
                    _upsert(transaction, {key: encoded.rows[i] for key, i in latest.items()})
            if applied_commit > state.applied:
                _put_state(transaction, state._replace(applied=applied_commit))

        self.file.write(put)

    def remove(self, group: StoredGroup, columns: tuple[Column, ...]) -> int:
        codec = self._codecs.of(group)
        keys = [key for key in codec.key.keys(columns) if key is not None]

        def delete(transaction: lmdb.Transaction) -> int:
            _live_state(transaction)
            removed = 0
            for whole in keys:
                key = stored_key(whole)
                row = transaction.get(key)
                if row is not None and codec.is_of(bytes(row), whole):
                    removed += transaction.delete(key)
            return removed

        return self.file.write(delete)

    def keys(self, group: StoredGroup, after: bytes) -> tuple[tuple[Column, ...], bytes]:
        """The next keys of a group after a stored one, or from the first for b"", and the last stored one."""
        prefix = group_prefix(group)

        def page(transaction: lmdb.Transaction) -> tuple[list[bytes], bytes]:
            _live_state(transaction)
            whole, last = list[bytes](), after
            with transaction.cursor() as cursor:
                found = cursor.set_range(after or prefix)
                if found and cursor.key() == after:
                    found = cursor.next()
                while found and len(whole) < KEYS_PER_PAGE and (stored := bytes(cursor.key())).startswith(prefix):
                    whole.append(whole_key(stored, bytes(cursor.value())))
                    last, found = stored, cursor.next()
            return whole, last

        whole, last = self.file.read(page)
        return self._codecs.of(group).key.columns(whole), last

    def erased(self, erasure: int) -> None:
        def note(transaction: lmdb.Transaction) -> None:
            state = _live_state(transaction)
            _put_state(transaction, state._replace(erasure=max(erasure, state.erasure)))

        self.file.write(note)


async def _pages(
    page: Callable[[bytes], tuple[tuple[Column, ...], bytes]],
) -> AsyncIterator[tuple[Column, ...]]:
    after = b""
    while True:
        keys, after = await in_thread(page, after)
        if not len(keys[0]):
            return
        yield keys


def _state(transaction: lmdb.Transaction) -> _State:
    stored = transaction.get(_STATE_KEY)
    return _State(0, 0, 0) if stored is None else _State(*_STATE.unpack(stored))


def _live_state(transaction: lmdb.Transaction) -> _State:
    state = _state(transaction)
    if state.successor:
        raise _Superseded
    return state


def _put_state(transaction: lmdb.Transaction, state: _State) -> None:
    transaction.put(_STATE_KEY, _STATE.pack(*state))


def _upsert(transaction: lmdb.Transaction, items: dict[bytes, bytes]) -> None:
    """Stores the rows that are later than what is there."""
    keys = sorted(items)
    with transaction.cursor() as cursor:
        there = cursor.getmulti(keys)
        stale = {bytes(key) for key, row in there if version_of(bytes(row)) >= version_of(items[bytes(key)])}
        cursor.putmulti([(key, items[key]) for key in keys if key not in stale])
