"""The applier: brings commits into the online store, in order, once each, and erasures after them.

One process holds the lease and applies; the others follow what it applied and take over when it goes. A commit that was
published before a crash is applied at the next start, before readiness.

An erasure removes an entity's rows from the commits up to one. A store carries it out once it has all of those
commits, in the order of the applier's own work, so that rows read before an erasure never outlive it; a store that is
built anew carries out those that may not have reached the offline rows when it began.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import structlog

from foresight.values import Column
from services.feature_store.commits import Commit, PublishedCommit, StagedRows
from services.feature_store.groups import StoredGroup
from services.feature_store.metrics import FeatureStoreMetrics
from services.feature_store.online.handed_over import HandedOver
from services.feature_store.online.leases import Lease
from services.feature_store.online.store import AppliedRows, CommittedRows, OnlineStore
from services.feature_store.registry.registry import Registry
from services.feature_store.tables.row_source import RowSource
from services.runtime.errors import NotFound, ServiceError, Unavailable

log = structlog.get_logger()

FOLLOW_S = 0.05
# What is applied at once: at least one commit, else at most so much.
BATCH_COMMITS = 256
BATCH_ROWS = 250_000
BATCH_ERASURES = 64


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

    def of_writes(
        self, stored: StoredGroup, writes: Sequence[int], rows: int
    ) -> AbstractAsyncContextManager[RowSource]:
        """Keys, features, `event_time`, `deleted` and `commit` of the rows of published writes, about `rows`."""
        ...


@dataclass(frozen=True, slots=True)
class PublishedErasure:
    """An entity's rows in the commits up to `commit` are to go. Erasures are numbered as they become visible."""

    number: int
    commit: int


class Erasures(Protocol):
    """The erasures that online stores carry out."""

    async def after(self, erasure: int, limit: int) -> list[PublishedErasure]:
        """The next erasures after one, in order, at most `limit`."""
        ...

    async def settled(self) -> int:
        """The last erasure of which, as of all before it, no offline row is left; 0 for none."""
        ...

    async def groups(self, erasure: PublishedErasure) -> list[StoredGroup]:
        """The groups with rows online that the erasure concerns."""
        ...

    def keys(
        self, erasure: PublishedErasure, stored: StoredGroup, held: AsyncIterator[tuple[Column, ...]]
    ) -> AsyncIterator[tuple[Column, ...]]:
        """All keys of the entity in a group, batch by batch; `held` are those that the store has."""
        ...


class NoErasures:
    """`Erasures` where nothing is ever erased."""

    async def after(self, erasure: int, limit: int) -> list[PublishedErasure]:
        """See `Erasures.after`."""
        return []

    async def settled(self) -> int:
        """See `Erasures.settled`."""
        return 0

    async def groups(self, erasure: PublishedErasure) -> list[StoredGroup]:
        """See `Erasures.groups`."""
        return []

    def keys(
        self, erasure: PublishedErasure, stored: StoredGroup, held: AsyncIterator[tuple[Column, ...]]
    ) -> AsyncIterator[tuple[Column, ...]]:
        """See `Erasures.keys`."""
        return held


class CatchUp:
    """Brings what was published into a store, from the database."""

    def __init__(
        self, commits: PublishedCommits, rows: PublishedRows, registry: Registry, erasures: Erasures | None = None
    ) -> None:
        self.commits = commits
        self.erasures: Erasures = erasures or NoErasures()
        self._rows = rows
        self._registry = registry

    async def apply_next(self, store: AppliedRows, applied: int, at_hand: HandedOver) -> int:
        """Applies the next commits after `applied`; answers the last one applied. Takes rows `at_hand` from there."""
        batch = _bounded(await self.commits.after(applied, BATCH_COMMITS))
        if batch:
            await self._apply(store, batch, batch[-1].number, at_hand)
            return batch[-1].number
        return applied

    async def begin(self, store: AppliedRows) -> None:
        """Passes over what no commit has any more, in a store to which nothing was applied yet."""
        settled = await self.erasures.settled()
        if settled and await store.progress() == (0, 0):
            await store.erased(settled)

    async def erase_next(self, store: AppliedRows, erasure: int, applied: int) -> PublishedErasure | None:
        """Carries out the next erasures after `erasure` whose commits are applied; answers the last one, if any."""
        done = None
        for found in await self.erasures.after(erasure, BATCH_ERASURES):
            if found.commit > applied:
                break
            for stored in await self.erasures.groups(found):
                removed = 0
                async for keys in self.erasures.keys(found, stored, store.keys(stored)):
                    removed += await store.remove(stored, keys)
                if removed:
                    await self._apply_again(store, stored, found.commit, applied)
            await store.erased(found.number)
            done = found
        return done

    async def all(self, store: AppliedRows) -> None:
        """Applies and erases until there is nothing more."""
        nothing = HandedOver()
        await self.begin(store)
        while True:
            progress = await store.progress()
            applied = await self.apply_next(store, progress.commit, nothing)
            if applied == progress.commit and await self.erase_next(store, progress.erasure, applied) is None:
                return

    async def _apply_again(self, store: AppliedRows, stored: StoredGroup, number: int, applied: int) -> None:
        """What was written about the keys after commit `number` was removed with the rest, and comes again."""
        while number < applied:
            batch = _bounded(await self.commits.after(number, BATCH_COMMITS))
            if not batch:
                return
            number = batch[-1].number
            mine = [commit for commit in batch if commit.group_id == stored.id and commit.number <= applied]
            await self._apply(store, mine, 0, HandedOver())

    async def _apply(
        self, store: AppliedRows, batch: Sequence[PublishedCommit], applied: int, at_hand: HandedOver
    ) -> None:
        rows: list[CommittedRows] = []
        missing: dict[int, list[PublishedCommit]] = defaultdict(list)
        for commit in batch:
            if commit.number in at_hand:
                rows += at_hand.rows(commit.number)
            elif commit.rows:
                missing[commit.group_id].append(commit)
        if any(not commit.rows for commit in batch):
            rows = await self._without_dropped(store, batch, rows)
        async with contextlib.AsyncExitStack() as stack:
            for group_id, commits in missing.items():
                stored = await self.group(group_id)
                if stored is not None:
                    writes = [commit.write for commit in commits]
                    source = self._rows.of_writes(stored, writes, sum(commit.rows for commit in commits))
                    rows.append(CommittedRows(stored, await stack.enter_async_context(source)))
            await store.apply(applied, rows)

    async def _without_dropped(
        self, store: AppliedRows, batch: Sequence[PublishedCommit], rows: list[CommittedRows]
    ) -> list[CommittedRows]:
        """The rows of groups that no commit of the batch drops; what the store has of the others is removed."""
        dropped = await self._registry.dropped_by([commit.number for commit in batch])
        for stored in dropped:
            async for keys in store.keys(stored):
                await store.remove(stored, keys)
        gone = {stored.id for stored in dropped}
        return [committed for committed in rows if committed.group.id not in gone]

    async def group(self, group_id: int) -> StoredGroup | None:
        """A group that has rows online: log-derived ones are read offline only, and dropped ones are gone."""
        try:
            stored = await self._registry.group_by_id(group_id)
        except NotFound:
            return None
        return None if stored.group.derived else stored


class Applier:
    """Applies published commits. `run` it in one task; `wake` it after a local write."""

    def __init__(self, catch_up: CatchUp, store: OnlineStore, lease: Lease, metrics: FeatureStoreMetrics) -> None:
        self._catch_up = catch_up
        self._store = store
        self._lease = lease
        self._metrics = metrics
        self._woken = asyncio.Event()
        self._advanced = asyncio.Condition()
        self._applied = 0
        self._erased = 0
        self._erasures_asked = False
        self._at_hand = HandedOver()
        self.caught_up = False

    def hand_over(self, commit: Commit, staged: StagedRows) -> None:
        """Gives the rows of a commit that this process just published, which need not be read again then.

        Rows in a file have to stay there until `applied` returned.
        """
        self._at_hand.add(commit, staged)

    def pass_over(self, commits: Sequence[Commit]) -> None:
        """Says that this process published commits without rows for the online store."""
        self._at_hand.add_without_rows(commits)
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

    async def erased(self, erasure: int, timeout_s: float) -> None:
        """Returns once an erasure was carried out in the online store. Raises Unavailable when that takes too long."""
        self._erasures_asked = True
        self.wake()
        try:
            async with asyncio.timeout(timeout_s), self._advanced:
                await self._advanced.wait_for(lambda: self._erased >= erasure)
        except TimeoutError:
            raise Unavailable("the online store has not carried out the erasure yet") from None

    async def run(self) -> None:
        """Applies until it is cancelled; then lets the lease go."""
        failures = 0
        try:
            while True:
                self._woken.clear()
                try:
                    leading = await self._lease.take()
                    if await (self._lead() if leading else self._follow()):
                        continue
                    failures, wait_s = 0, self._lease.poll_s if leading else FOLLOW_S
                except Exception as error:
                    failures += 1
                    wait_s = min(5.0, 0.1 * 2**failures)
                    # The rows may lie in a file that is gone by now.
                    self._at_hand.clear()
                    expected = isinstance(error, ServiceError)
                    log.warning("apply_failed", failures=failures, reason=str(error)[:300], exc_info=not expected)
                await self._pause(wait_s, woken_early=not failures)
        finally:
            await self._lease.release()

    async def _lead(self) -> bool:
        """Applies the next commits, or carries out the next erasures; answers whether to go on at once."""
        if not self.caught_up:
            await self._catch_up.begin(self._store)
        progress = await self._store.progress()
        if self.caught_up and progress.commit + 1 in self._at_hand and not self._erasures_asked:
            await self._apply_at_hand(progress.commit)
            # When the next one is missing, another process may have published it.
            return bool(self._at_hand)
        self._erasures_asked = False
        erased = await self._catch_up.erase_next(self._store, progress.erasure, progress.commit)
        applied = await self._catch_up.apply_next(self._store, progress.commit, self._at_hand)
        await self._advance(applied, progress.erasure if erased is None else erased.number)
        if applied > progress.commit or erased is not None:
            return True
        self.caught_up = True
        return False

    async def _apply_at_hand(self, applied: int) -> None:
        """Applies the commits that follow without a gap on the applied one, which need not be asked for."""
        last, rows, taken = applied, list[CommittedRows](), 0
        while last + 1 in self._at_hand and taken <= BATCH_ROWS:
            last += 1
            rows += self._at_hand.rows(last)
            taken = sum(batch.rows.num_rows for batch in rows)
        await self._store.apply(last, rows)
        await self._advance(last, self._erased)

    async def _follow(self) -> bool:
        """Sees how far the process with the lease has come."""
        progress = await self._store.progress()
        await self._advance(progress.commit, progress.erasure)
        if not self.caught_up:
            self.caught_up = self._applied >= await self._catch_up.commits.last()
        return False

    async def _advance(self, applied: int, erased: int) -> None:
        self._metrics.applied_commit.set(applied)
        self._at_hand.drop_until(applied)
        if applied > self._applied or erased > self._erased:
            async with self._advanced:
                self._applied, self._erased = max(applied, self._applied), max(erased, self._erased)
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
