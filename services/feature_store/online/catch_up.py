"""Bringing what was published into an online store, from the database: commits in order, and erasures after them.

An erasure removes an entity's rows from the commits up to one. A store carries it out once it has all of those
commits, in the order of the applier's own work, so that rows read before an erasure never outlive it; a store that is
built anew carries out those that may not have reached the offline rows when it began.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from foresight.values import Column
from services.feature_store.commits import PublishedCommit
from services.feature_store.groups import StoredGroup
from services.feature_store.online.handed_over import HandedOver
from services.feature_store.online.store import AppliedRows, CommittedRows
from services.feature_store.registry.registry import Registry
from services.feature_store.tables.row_source import RowSource
from services.runtime.errors import NotFound

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
        batch = bounded(await self.commits.after(applied, BATCH_COMMITS))
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
                async for keys in self.erasures.keys(found, stored, store.keys(stored)):
                    await store.remove(stored, keys)
                # Also when nothing was there: an attempt that failed after it had removed the keys left none.
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
            batch = bounded(await self.commits.after(number, BATCH_COMMITS))
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


def bounded(commits: list[PublishedCommit]) -> list[PublishedCommit]:
    """The first commits, as many as one batch takes."""
    rows = 0
    for index, commit in enumerate(commits):
        rows += commit.rows
        if rows > BATCH_ROWS and index:
            return commits[:index]
    return commits
