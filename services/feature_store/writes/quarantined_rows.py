"""Reading rows that broke expectations and were kept apart."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.reads.histories import BatchStream
from services.feature_store.registry.registry import Registry
from services.runtime.errors import OutOfRange

# Each holds a database connection for as long as its caller reads; writers need the others.
STREAMS_MAX = 1


class LastCommit(Protocol):
    """Says how far the commits go."""

    async def last(self) -> int:
        """Number of the last commit."""
        ...


class QuarantineStreams(Protocol):
    """Streams rows that were kept apart."""

    def stream(
        self, stored: StoredGroup, after_commit: int, last_commit: int
    ) -> contextlib.AbstractAsyncContextManager[BatchStream]:
        """Keys, `event_time`, features, `deleted`, `commit`, `broken` of the commits after one up to another."""
        ...


class QuarantinedRows:
    """Reads what writes kept apart."""

    def __init__(self, registry: Registry, commits: LastCommit, streams: QuarantineStreams) -> None:
        self._registry = registry
        self._commits = commits
        self._streams = streams
        self._streaming = asyncio.Semaphore(STREAMS_MAX)

    @contextlib.asynccontextmanager
    async def read(self, reference: Reference, after_commit: int) -> AsyncIterator[BatchStream]:
        """The rows of a group from commits after one, in commit order; waits while STREAMS_MAX are being read.

        Raises NotFound, OutOfRange for a commit that does not exist yet.
        """
        stored = await self._registry.group(reference)
        last = await self._commits.last()
        if after_commit > last:
            raise OutOfRange(f"commit {after_commit} does not exist yet; the last one is {last}")
        async with self._streaming, self._streams.stream(stored, after_commit, last) as batches:
            yield batches
