"""The applier: brings commits into the online store, in order, once each, and erasures after them.

One process holds the lease and applies; the others follow what it applied and take over when it goes. A commit that was
published before a crash is applied at the next start, before readiness.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from services.feature_store.commits import Commit, StagedRows
from services.feature_store.metrics import FeatureStoreMetrics
from services.feature_store.online.catch_up import BATCH_ROWS, CatchUp
from services.feature_store.online.handed_over import HandedOver
from services.feature_store.online.leases import Lease
from services.feature_store.online.store import CommittedRows, OnlineStore
from services.runtime.backoff import backoff_s
from services.runtime.errors import ServiceError, Unavailable

log = structlog.get_logger()

FOLLOW_S = 0.05
BACKOFF_FIRST_S = 0.1
BACKOFF_S_MAX = 5.0


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
                    wait_s = backoff_s(failures, BACKOFF_FIRST_S, BACKOFF_S_MAX)
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
