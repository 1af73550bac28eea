"""Building the online store anew from the offline rows, beside the one that serves, and putting it in its place.

The new store gets the latest row of every key as of one commit, then what was published since, until nothing is
missing; then it takes over in one step for all processes. Whatever ends a rebuild before that leaves the store that
serves as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import structlog

from services.feature_store.groups import StoredGroup
from services.feature_store.online.catch_up import CatchUp
from services.feature_store.online.store import CommittedRows, OnlineStore, Replacement
from services.feature_store.reads.histories import BatchStream
from services.feature_store.tables.row_source import BATCH_BYTES_MAX, BATCH_ROWS_MAX, TableRows
from services.runtime.errors import NotFound, PermissionDenied
from services.runtime.identity import is_operator
from services.runtime.threads import in_thread

log = structlog.get_logger()


class LatestRows(Protocol):
    """The latest offline rows."""

    async def group_ids(self, watermark: int) -> Sequence[int]:
        """The groups that have commits up to `watermark`."""
        ...

    def latest(self, stored: StoredGroup, watermark: int) -> AbstractAsyncContextManager[BatchStream]:
        """The latest row per key among commits up to `watermark`, tombstones too: they keep late rows out.

        Raises NotFound for a group that was dropped."""
        ...


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A store that took over: how many keys it had then, and the commit as of which offline rows were read."""

    applied_commit: int
    keys: int


class OnlineRebuild:
    """Rebuilds the online store."""

    def __init__(self, store: OnlineStore, catch_up: CatchUp, rows: LatestRows) -> None:
        self._store = store
        self._catch_up = catch_up
        self._rows = rows

    async def rebuild(self, caller: str) -> Rebuilt:
        """Returns when the new store serves.

        Raises PermissionDenied for others than operators, FailedPrecondition while another rebuild goes on, by whatever
        process, Unavailable and LimitExceeded of the store.
        """
        if not is_operator(caller):
            raise PermissionDenied("the online store may be rebuilt by operators only")
        async with self._store.replacement() as made:
            # Before any row is read: what is erased from here on is carried out in the new store too.
            await self._catch_up.begin(made)
            watermark = await self._catch_up.commits.last()
            for group_id in await self._rows.group_ids(watermark):
                await self._fill(made, group_id, watermark)
            await made.apply(watermark, [])
            keys = await made.take_over(lambda: self._catch_up.all(made))
        log.info("online_store_rebuilt", commit=watermark, keys=keys, caller=caller)
        return Rebuilt(watermark, keys)

    async def _fill(self, made: Replacement, group_id: int, watermark: int) -> None:
        stored = await self._catch_up.group(group_id)
        if stored is None:
            return
        async with contextlib.AsyncExitStack() as stack:
            try:
                stream = await stack.enter_async_context(self._rows.latest(stored, watermark))
            except NotFound:
                # Dropped since it was asked for.
                return
            async for rows in _joined(stream):
                await made.apply(0, [CommittedRows(stored, TableRows(rows))])


async def _joined(stream: BatchStream) -> AsyncIterator[pa.Table]:
    """The rows of a stream, many at once: a transaction of the store costs as much as thousands of rows."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    while (batch := await in_thread(stream.next_batch)) is not None:
        held.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if rows >= BATCH_ROWS_MAX or size >= BATCH_BYTES_MAX:
            yield pa.Table.from_batches(held).combine_chunks()
            held, rows, size = [], 0, 0
    if rows:
        yield pa.Table.from_batches(held).combine_chunks()
