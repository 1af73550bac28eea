"""Gathers what concurrent callers ask for into batches, and runs those one after the other.

Pure asyncio: what the work is and how a batch of it is done is the business of whoever makes a `Batcher`.

- The next batch forms while the one before runs and is cut when that one has ended; a caller who finds nothing under
  way is run at once.
- While batches have company and `busy` says that larger ones are worth a wait, the next one is held open after the one
  before has ended, so that batches grow: while somebody joins in every gap, and for a window at most. Whoever comes
  after a gap without anybody finds an idle batcher again. After a batch of a few it is held only until as many are
  there: a few callers wait for one another, not for a crowd that is not coming.
- Work that is large by itself runs alone, beside the batches (`ask_alone`).
- A batch that only waits for somebody else may be overtaken (`let_others`): the next one then runs beside it, and how
  long it took in the end says nothing about the others.
- A batch is cut early when it is full, or when waiting any longer would cost a member its deadline.
- A member who has gone (cancelled or expired) is left out when the batch is cut, and takes no answer later.
- When a batch fails each of its members is run alone, so that a fault stays with the member that causes it; `shared`
  errors, which say nothing about a member, fail them all.

Bounds: at most `rows_max` rows in a batch, but one member at least. How many may wait is for the caller to bound, see
`admission`; so is how many batches are overtaken, by when it says so and by how long one may wait.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from services.predictor.pace import Pace

W = TypeVar("W")
R = TypeVar("R")

ROWS_MAX = 1_024
WINDOW_S = 0.012
GAP_S = 0.005
# Members of a batch that makes the next one wait for as many only.
FEW = 6
# Nobody is held who has less time left than so many times what the batch will take.
SLACK = 2.0


class Expired(Exception):
    """A member's time ran out; `running` says whether its batch was already under way."""

    def __init__(self, *, running: bool) -> None:
        super().__init__("running" if running else "waiting")
        self.running = running


class Member(Generic[W, R]):
    """One caller's work, from joining until it has an answer, an error, or no one who waits for it."""

    __slots__ = ("deadline", "future", "joined", "rows", "running", "work")

    def __init__(self, work: W, rows: int, joined: float, deadline: float, future: asyncio.Future[R]) -> None:
        self.work = work
        self.rows = rows
        self.joined = joined
        self.deadline = deadline
        self.future = future
        self.running = False

    @property
    def waits(self) -> bool:
        """Whether anybody still wants the answer."""
        return not self.future.done()

    def answer(self, result: R) -> None:
        """Gives the answer, if anybody still wants it."""
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Gives an error, if anybody still waits."""
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self) -> None:
        """The deadline has passed."""
        self.fail(Expired(running=self.running))


Run = Callable[[Sequence[Member[W, R]]], Awaitable[None]]


class Batcher(Generic[W, R]):
    """Batches of one kind of work; `run` gives every member that still waits its answer or its error.

    `observe` is told of every batch when it is cut.
    """

    def __init__(
        self,
        run: Run[W, R],
        *,
        rows_max: int = ROWS_MAX,
        window_s: float = WINDOW_S,
        gap_s: float = GAP_S,
        few: int = FEW,
        shared: tuple[type[Exception], ...] = (),
        busy: Callable[[], bool] = lambda: True,
        observe: Callable[[Sequence[Member[W, R]], float], None] = lambda batch, now: None,
    ) -> None:
        self._run = run
        self._rows_max = rows_max
        self._window_s = window_s
        self._gap_s = gap_s
        self._few = few
        self._shared = shared
        self._busy = busy
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._pace = Pace()
        self._queue: deque[Member[W, R]] = deque()
        self._rows = 0
        self._task: asyncio.Task[None] | None = None
        self._alone: set[asyncio.Task[None]] = set()
        # The batch under way, and what works on those that were overtaken.
        self._running: Sequence[Member[W, R]] = ()
        self._overtaken: set[asyncio.Task[None]] = set()
        # While a batch is held open: until when at most.
        self._gathering: asyncio.Future[None] | None = None
        self._cut_time = 0.0
        # Members of the last batch, and of all so far.
        self._company = 0
        self._joined = 0
        self._ended = 0.0
        # Of the batch under way.
        self._running_rows = 0
        self._started = 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs, or is waited for."""
        return self._task is None and not self._alone and not self._overtaken

    def expected_s(self, rows: int) -> float:
        """How long so many more rows would take to be answered, by what batches took lately.

        0 while nobody is ahead of them, and before the first batch: what was measured must never keep everybody out.
        """
        if not self._running_rows and not self._rows:
            return 0.0
        running = max(0.0, self._pace.expected_s(self._running_rows) - (self._loop.time() - self._started))
        full, rest = divmod(self._rows + rows, self._rows_max)
        return running + full * self._pace.expected_s(self._rows_max) + self._pace.expected_s(rest)

    async def ask(self, work: W, rows: int, remaining_s: float | None = None) -> R:
        """The answer to a piece of work of so many rows.

        Raises Expired when it takes longer than `remaining_s`, and what the work itself raises.
        """
        member = self._member(work, rows, remaining_s)
        self._queue.append(member)
        self._joined += 1
        self._rows += rows
        if self._task is None:
            self._task = self._loop.create_task(self._work())
        elif self._gathering is not None and (self._all_there or self._is_pressed(member)):
            _wake(self._gathering)
        return await self._answer_of(member)

    async def ask_alone(self, work: W, rows: int, remaining_s: float | None = None) -> R:
        """As `ask`, in a batch of its own, at once and beside those that run."""
        member = self._member(work, rows, remaining_s)
        # Not in the caller's task, which may be cancelled in the middle of it.
        task = self._loop.create_task(self._run_apart([member]))
        self._alone.add(task)
        task.add_done_callback(self._alone.discard)
        return await self._answer_of(member)

    def let_others(self, member: Member[W, R]) -> None:
        """The batch of this member waits for somebody else, and the next one need not wait for it."""
        if self._task is None or member not in self._running:
            return
        overtaken, self._task = self._task, None
        self._overtaken.add(overtaken)
        overtaken.add_done_callback(self._overtaken.discard)
        self._running, self._running_rows = (), 0
        if self._queue:
            self._task = self._loop.create_task(self._work())

    def _member(self, work: W, rows: int, remaining_s: float | None) -> Member[W, R]:
        now = self._loop.time()
        deadline = math.inf if remaining_s is None else now + remaining_s
        return Member(work, rows, now, deadline, self._loop.create_future())

    async def _answer_of(self, member: Member[W, R]) -> R:
        if member.deadline == math.inf:
            return await member.future
        timer = self._loop.call_at(member.deadline, member.expire)
        try:
            return await member.future
        finally:
            timer.cancel()

    async def _work(self) -> None:
        """Runs batches until nobody waits, or the one under way is overtaken."""
        me = self._task
        self._company = 0
        try:
            while self._queue:
                batch = self._cut()
                if batch:
                    await self._run_measured(batch)
                    if self._task is not me:
                        return
                    self._company = len(batch)
                    self._ended = self._loop.time()
                if self._company > 1 and self._busy():
                    await self._gather()
        finally:
            if self._task is me:
                # Empty, unless the process stops in the middle.
                for member in self._queue:
                    member.future.cancel()
                self._queue.clear()
                self._rows = 0
                self._task = None

    async def _gather(self) -> None:
        """Holds the next batch open, also while nobody is in it yet."""
        loop = self._loop
        while (cut_time := self._cut_at()) > (now := loop.time()):
            quiet_at, joined = min(cut_time, now + self._gap_s), self._joined
            self._cut_time = cut_time
            self._gathering = gathering = loop.create_future()
            timer = loop.call_at(quiet_at, _wake, gathering)
            try:
                await gathering
            finally:
                timer.cancel()
                self._gathering = None
            # A loop that is late has been busy, with answers or with those who come: the gap says nothing then.
            if joined == self._joined and quiet_at <= loop.time() < quiet_at + self._gap_s / 2:
                return

    @property
    def _all_there(self) -> bool:
        """Whether nobody else is waited for."""
        return self._rows >= self._rows_max or len(self._queue) >= self._company <= self._few

    def _cut_at(self) -> float:
        """When the batch that forms is cut at the latest; -inf: now."""
        if self._all_there:
            return -math.inf
        deadline = min((m.deadline for m in self._queue if m.waits), default=math.inf)
        return min(self._ended + self._window_s, deadline - self._needed_s)

    @property
    def _needed_s(self) -> float:
        """How long the batch that forms is thought to take, at worst."""
        return SLACK * self._pace.expected_s(self._rows)

    def _is_pressed(self, member: Member[W, R]) -> bool:
        """Whether the batch must be cut earlier for a member."""
        return member.deadline - self._needed_s < self._cut_time

    def _cut(self) -> list[Member[W, R]]:
        """Takes the members of the next batch, in the order in which they came."""
        batch: list[Member[W, R]] = []
        rows = 0
        while self._queue:
            member = self._queue[0]
            if member.waits:
                if batch and rows + member.rows > self._rows_max:
                    break
                batch.append(member)
                rows += member.rows
            self._queue.popleft()
            self._rows -= member.rows
        return batch

    async def _run_measured(self, batch: list[Member[W, R]]) -> None:
        """Runs a batch and measures how long it took, unless it was overtaken."""
        started = self._started = self._loop.time()
        rows = self._running_rows = sum(m.rows for m in batch)
        self._running = batch
        try:
            await self._run_apart(batch)
        finally:
            overtaken = self._running is not batch
            if not overtaken:
                self._running, self._running_rows = (), 0
        if not overtaken:
            self._pace.took(rows, self._loop.time() - started)

    async def _run_apart(self, batch: list[Member[W, R]]) -> None:
        """Runs a batch, and each of its members alone when it fails."""
        for member in batch:
            member.running = True
        self._observe(batch, self._loop.time())
        if not await self._run_once(batch):
            for member in batch:
                if member.waits:
                    await self._run_once([member])

    async def _run_once(self, batch: list[Member[W, R]]) -> bool:
        """Whether everybody has an answer or an error; False: the batch failed, and each is to be run alone."""
        try:
            await self._run(batch)
        except Exception as error:  # noqa: BLE001 - a supervised loop: whatever it is belongs to those who wait
            if len(batch) > 1 and not isinstance(error, self._shared):
                return False
            for member in batch:
                member.fail(error)
        except asyncio.CancelledError:
            for member in batch:
                member.future.cancel()
            raise
        for member in batch:
            if member.waits:
                member.fail(RuntimeError("a batch ended without an answer for a member"))
        return True


def _wake(gathering: asyncio.Future[None]) -> None:
    if not gathering.done():
        gathering.set_result(None)
