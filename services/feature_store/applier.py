"""The applier: brings commits into the online store, in order, once each.

One process holds the lease (a lock on a file beside the store) and applies; the others follow what it applied and
take over when it goes. A commit that was published before a crash is applied at the next start, before readiness.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import structlog

from foresight.tables import arrow_type
from services.feature_store.commits import Commit, PublishedCommit, StagedRows
from services.feature_store.groups import StoredGroup
from services.feature_store.metrics import FeatureStoreMetrics
from services.feature_store.online import CommittedRows, OnlineStore
from services.feature_store.registry import Registry
from services.runtime.errors import ServiceError, Unavailable

log = structlog.get_logger()

POLL_S = 0.5
FOLLOW_S = 0.05
# What is applied in one transaction of the store: at least one commit, else at most so much.
BATCH_COMMITS = 256
BATCH_ROWS = 500_000
# What local writes hand over at most, all together; the rest is read from the database.
AT_HAND_COMMITS = 64
AT_HAND_ROWS = 1_000_000


class PublishedCommits(Protocol):
    """The commit log."""

    async def last(self) -> int:
        """Number of the last commit."""
        ...

    async def after(self, commit: int, limit: int) -> list[PublishedCommit]:
        """The next commits after one, in order."""
        ...


class PublishedRows(Protocol):
    """The rows of commits."""

    async def of_writes(self, stored: StoredGroup, writes: Sequence[int]) -> pa.Table:
        """Keys, features, `event_time`, `deleted` and `commit` of the rows of published writes."""
        ...


class Lease:
    """An exclusive lock on a file; it ends with the process, whatever ends that."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def take(self) -> bool:
        """Whether this process holds the lease, now or since before."""
        if self._file is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                return False
            self._file = file
        return True

    def release(self) -> None:
        """Lets another process take it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Applier:
    """Applies published commits. `run` it in one task; `wake` it after a local write."""

    def __init__(
        self,
        commits: PublishedCommits,
        rows: PublishedRows,
        registry: Registry,
        store: OnlineStore,
        lease: Lease,
        metrics: FeatureStoreMetrics,
    ) -> None:
        self._commits = commits
        self._rows = rows
        self._registry = registry
        self._store = store
        self._lease = lease
        self._metrics = metrics
        self._woken = asyncio.Event()
        self._advanced = asyncio.Condition()
        self._applied = 0
        # None: a commit that has no rows for the online store.
        self._at_hand: dict[int, CommittedRows | None] = {}
        self.caught_up = False

    def hand_over(self, commit: Commit, staged: StagedRows) -> None:
        """Gives the rows of a commit that this process just published, which need not be read again then."""
        held = sum(rows.rows.num_rows for rows in self._at_hand.values() if rows is not None)
        if held + commit.rows > AT_HAND_ROWS or len(self._at_hand) >= AT_HAND_COMMITS:
            return
        rows = staged.rows.append_column("commit", pa.array(np.full(commit.rows, commit.number, np.int64)))
        if "deleted" not in rows.column_names:
            rows = rows.append_column("deleted", pa.array(np.zeros(commit.rows, np.bool_)))
        missing = [f for f in staged.group.group.features if f.name not in rows.column_names]
        for field in missing:
            rows = rows.append_column(field.name, pa.nulls(commit.rows, arrow_type(field)))
        self._at_hand[commit.number] = CommittedRows(staged.group, rows)

    def pass_over(self, commits: Sequence[Commit]) -> None:
        """Says that this process published commits without rows for the online store."""
        for commit in commits[: AT_HAND_COMMITS - len(self._at_hand)]:
            self._at_hand[commit.number] = None
        self.wake()

    def wake(self) -> None:
        """Says that a commit was published."""
        self._woken.set()

    async def applied(self, commit: int, timeout_s: float) -> None:
        """Returns once the online store has a commit. Raises Unavailable when that takes too long."""
        self.wake()
        try:
            async with asyncio.timeout(timeout_s), self._advanced:
                await self._advanced.wait_for(lambda: self._applied >= commit)
        except TimeoutError:
            raise Unavailable(
                f"commit {commit} is published, and offline reads see it, but the online store is behind; "
                "repeating the write with its write id is safe",
                commit=str(commit),
            ) from None

    async def run(self) -> None:
        """Applies until it is cancelled; then lets the lease go."""
        failures = 0
        try:
            while True:
                self._woken.clear()
                try:
                    leading = self._lease.take()
                    if await (self._apply_next() if leading else self._follow()):
                        continue
                    failures, wait_s = 0, POLL_S if leading else FOLLOW_S
                except Exception as error:
                    failures += 1
                    wait_s = min(5.0, 0.1 * 2**failures)
                    expected = isinstance(error, ServiceError)
                    log.warning("apply_failed", failures=failures, reason=str(error)[:300], exc_info=not expected)
                await self._pause(wait_s, woken_early=not failures)
        finally:
            self._lease.release()

    async def _apply_next(self) -> bool:
        """Applies the next commits; answers whether there were any."""
        applied = await self._store.applied_commit()
        if self.caught_up and applied + 1 in self._at_hand:
            await self._apply_at_hand(applied)
            # When the next one is missing, another process may have published it.
            return bool(self._at_hand)
        batch = _bounded(await self._commits.after(applied, BATCH_COMMITS))
        if not batch:
            await self._advance(applied)
            self.caught_up = True
            return False
        rows: list[CommittedRows] = []
        writes: dict[int, list[int]] = defaultdict(list)
        for commit in batch:
            if commit.number in self._at_hand:
                rows += self._take_at_hand(commit.number)
            else:
                writes[commit.group_id].append(commit.write)
        for group_id, numbers in writes.items():
            stored = await self._registry.group_by_id(group_id)
            # Log-derived groups are read offline only.
            if not stored.group.derived:
                rows.append(CommittedRows(stored, await self._rows.of_writes(stored, numbers)))
        await self._store.apply(batch[-1].number, rows)
        await self._advance(batch[-1].number)
        return True

    async def _apply_at_hand(self, applied: int) -> None:
        """Applies the commits that follow without a gap on the applied one, which need not be asked for."""
        last, rows, taken = applied, list[CommittedRows](), 0
        while last + 1 in self._at_hand and taken <= BATCH_ROWS:
            last += 1
            rows += self._take_at_hand(last)
            taken = sum(batch.rows.num_rows for batch in rows)
        await self._store.apply(last, rows)
        await self._advance(last)

    def _take_at_hand(self, number: int) -> list[CommittedRows]:
        rows = self._at_hand[number]
        return [] if rows is None else [rows]

    async def _follow(self) -> bool:
        """Sees how far the process with the lease has come."""
        await self._advance(await self._store.applied_commit())
        if not self.caught_up:
            self.caught_up = self._applied >= await self._commits.last()
        return False

    async def _advance(self, applied: int) -> None:
        self._metrics.applied_commit.set(applied)
        for number in [number for number in self._at_hand if number <= applied]:
            del self._at_hand[number]
        if applied > self._applied:
            async with self._advanced:
                self._applied = applied
                self._advanced.notify_all()

    async def _pause(self, seconds: float, *, woken_early: bool) -> None:
        if not woken_early:
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return


def _bounded(commits: list[PublishedCommit]) -> list[PublishedCommit]:
    """The first commits, as many as one batch takes."""
    rows = 0
    for index, commit in enumerate(commits):
        rows += commit.rows
        if rows > BATCH_ROWS and index:
            return commits[:index]
    return commits
