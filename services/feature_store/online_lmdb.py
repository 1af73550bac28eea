"""The online store in LMDB: a memory-mapped file that one process writes and any number read without locks.

A transaction of the store holds the rows of one or more commits and the number of the last one. After a crash of the
process nothing is lost; after one of the machine the last transactions may be missing, and the applier repeats them.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa

from foresight.values import Column
from services.feature_store.groups import StoredGroup
from services.feature_store.online import CommittedRows, FoundRow, KeyQuery, Lookup
from services.feature_store.row_codec import RowCodec, stored_key, version_of
from services.runtime.errors import LimitExceeded
from services.runtime.threads import in_thread

MAP_BYTES = 256 << 20
# Address space, not memory or disk: the file grows with what is in it.
MAP_BYTES_MAX = 1 << 42
READERS_MAX = 512
# More rows than this are looked up in a thread, so that the event loop goes on.
INLINE_ROWS_MAX = 256
CODECS_MAX = 4_096
# Group ids count from 1, so this is no row's key.
_APPLIED_KEY = struct.pack(">I", 0) + b"applied"
_APPLIED = struct.Struct("<Q")


class LmdbOnlineStore:
    """An `OnlineStore` in a folder. Close it when nobody uses it any more."""

    def __init__(self, folder: Path, map_bytes: int = MAP_BYTES) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._environment = lmdb.open(
            str(folder), map_size=map_bytes, max_readers=READERS_MAX, metasync=False, max_spare_txns=16
        )
        self._gate = _Gate()
        self._writer = asyncio.Lock()
        self._codecs: dict[int, RowCodec] = {}

    async def apply(self, applied_commit: int, rows: Sequence[CommittedRows]) -> None:
        """See `OnlineStore.apply`."""
        async with self._writer:
            await in_thread(self._apply, applied_commit, rows)

    async def lookup(self, queries: Sequence[KeyQuery]) -> Lookup:
        """See `OnlineStore.lookup`."""
        if sum(len(query.keys[0]) for query in queries) > INLINE_ROWS_MAX:
            return await in_thread(self._lookup, queries)
        return self._lookup(queries)

    async def remove(self, group: StoredGroup, keys: tuple[Column, ...]) -> int:
        """See `OnlineStore.remove`."""
        async with self._writer:
            return await in_thread(self._remove, group, keys)

    async def applied_commit(self) -> int:
        """See `OnlineStore.applied_commit`."""
        with self._reading() as transaction:
            return _applied(transaction)

    def close(self) -> None:
        """Closes the file; what was applied is safe before."""
        self._environment.close()

    def _lookup(self, queries: Sequence[KeyQuery]) -> Lookup:
        found: list[list[FoundRow | None]] = []
        with self._reading() as transaction:
            get = transaction.get
            for query in queries:
                codec = self._codec(query.group)
                rows: list[FoundRow | None] = []
                for key in codec.keys(query.keys):
                    value = None if key is None else get(stored_key(key))
                    rows.append(None if key is None or value is None else codec.decode(bytes(value), key))
                found.append(rows)
            return Lookup(found, _applied(transaction))

    def _apply(self, applied_commit: int, batches: Sequence[CommittedRows]) -> None:
        items: dict[bytes, bytes] = {}
        for batch in batches:
            keys, rows = self._codec(batch.group).encode(batch.rows)
            # The last one of a key stays: the latest.
            order = _latest_last(batch.rows)
            items.update((keys[i], rows[i]) for i in order)
        while True:
            try:
                with self._gate.shared(), self._environment.begin(write=True) as transaction:
                    _upsert(transaction, items)
                    if applied_commit > _applied(transaction):
                        transaction.put(_APPLIED_KEY, _APPLIED.pack(applied_commit))
                return
            except lmdb.MapFullError:
                self._grow()
            except lmdb.MapResizedError:
                self._follow_growth()
            except lmdb.DiskError as error:
                raise LimitExceeded("the online store has no room left", limit="disk") from error

    def _remove(self, group: StoredGroup, columns: tuple[Column, ...]) -> int:
        codec = self._codec(group)
        removed = 0
        with self._gate.shared(), self._environment.begin(write=True) as transaction:
            for whole in codec.keys(columns):
                if whole is None:
                    continue
                key = stored_key(whole)
                row = transaction.get(key)
                if row is not None and codec.decode(bytes(row), whole) is not None:
                    removed += transaction.delete(key)
        return removed

    def _grow(self) -> None:
        with self._gate.exclusive():
            size = self._environment.info()["map_size"]
            if size >= MAP_BYTES_MAX:
                raise LimitExceeded("the online store has reached its largest size", limit="online_store_bytes")
            self._environment.set_mapsize(size * 2)

    def _follow_growth(self) -> None:
        """Another process made the file larger."""
        with self._gate.exclusive():
            self._environment.set_mapsize(0)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        while True:
            with self._gate.shared():
                try:
                    transaction = self._environment.begin()
                except lmdb.MapResizedError:
                    transaction = None
                if transaction is not None:
                    try:
                        yield transaction
                        return
                    finally:
                        transaction.abort()
            self._follow_growth()

    def _codec(self, stored: StoredGroup) -> RowCodec:
        codec = self._codecs.get(stored.id)
        if codec is None:
            if len(self._codecs) >= CODECS_MAX:
                self._codecs.clear()
            codec = self._codecs[stored.id] = RowCodec(stored)
        return codec


class _Gate:
    """Lets transactions pass side by side, and a change of the map's size only when there are none."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if not self._inside:
                    self._changed.notify_all()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._inside)
            yield


def _applied(transaction: lmdb.Transaction) -> int:
    stored = transaction.get(_APPLIED_KEY)
    return 0 if stored is None else int(_APPLIED.unpack(stored)[0])


def _latest_last(rows: pa.Table) -> list[int]:
    times = np.asarray(rows["event_time"].combine_chunks().cast(pa.int64()))
    commits = np.asarray(rows["commit"].combine_chunks())
    order: list[int] = np.lexsort((commits, times)).tolist()
    return order


def _upsert(transaction: lmdb.Transaction, items: dict[bytes, bytes]) -> None:
    """Stores the rows that are later than what is there."""
    keys = sorted(items)
    with transaction.cursor() as cursor:
        there = [(bytes(key), bytes(row)) for key, row in cursor.getmulti(keys)]
        stale = {key for key, row in there if version_of(row) >= version_of(items[key])}
        cursor.putmulti([(key, items[key]) for key in keys if key not in stale])
