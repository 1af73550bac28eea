"""Who shares a batch with whom, when it is cut, and what becomes of each member: on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.predictor.batching import Batcher, Expired, Member
from services.runtime.errors import Unavailable
from tests.unit.predictor.virtual_time import VirtualLoop, run_virtually

WINDOW_S = 0.003
GAP_S = 0.002
ROWS_MAX = 16


class Poisoned(Exception):
    """The work of one member cannot be done."""


@dataclass
class Worker:
    """Doubles numbers, a batch at a time; a negative one is poison, zero takes the whole service away."""

    seconds: float = 0.01
    per_row_s: float = 0.0
    batches: list[tuple[float, float, list[int]]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    running: int = 0
    few: int = 0
    window_s: float = WINDOW_S
    busy: bool = True

    async def run(self, batch: Sequence[Member[int, int]]) -> None:
        self.running += 1
        assert self.running == 1
        loop = asyncio.get_running_loop()
        started, rows = loop.time(), sum(m.rows for m in batch)
        await asyncio.sleep(self.seconds + rows * self.per_row_s)
        self.running -= 1
        self.batches.append((started, loop.time(), [m.work for m in batch]))
        self.rows.append(rows)
        if any(m.work == 0 for m in batch):
            raise Unavailable("nobody answers")
        if any(m.work < 0 for m in batch):
            raise Poisoned
        for member in batch:
            member.answer(2 * member.work)

    def batcher(self) -> Batcher[int, int]:
        return Batcher(
            self.run,
            rows_max=ROWS_MAX,
            window_s=self.window_s,
            gap_s=GAP_S,
            few=self.few,
            shared=(Unavailable,),
            busy=lambda: self.busy,
        )

    @property
    def works(self) -> list[list[int]]:
        return [works for _, _, works in self.batches]


@dataclass(frozen=True)
class Call:
    """One caller: comes at a time, has so many rows, and may be impatient or go away."""

    at: float
    work: int
    rows: int
    patience: float | None
    leaves_after: float | None


calls = st.builds(
    Call,
    at=st.integers(0, 60).map(lambda ms: ms / 1_000),
    work=st.integers(1, 1_000) | st.just(-1),
    rows=st.integers(1, 20),
    patience=st.none() | st.integers(1, 40).map(lambda ms: ms / 1_000 + 0.000_1),
    leaves_after=st.none() | st.none() | st.integers(0, 30).map(lambda ms: ms / 1_000 + 0.000_05),
)


async def _call(batcher: Batcher[int, int], call: Call) -> int | BaseException:
    await asyncio.sleep(call.at)
    asked = asyncio.ensure_future(batcher.ask(call.work, call.rows, call.patience))
    if call.leaves_after is not None:
        asyncio.get_running_loop().call_later(call.leaves_after, asked.cancel)
    return (await asyncio.gather(asked, return_exceptions=True))[0]


@given(st.lists(calls, max_size=30), st.integers(0, 4))
def test_everybody_gets_what_they_would_get_alone_or_has_gone(script: list[Call], few: int) -> None:
    """Whatever the company; batches keep their bound and never overlap, and nothing is left behind."""

    async def play() -> tuple[Worker, list[int | BaseException], Batcher[int, int]]:
        worker = Worker(seconds=0.005, per_row_s=0.000_1, few=few)
        batcher = worker.batcher()
        results = list(await asyncio.gather(*(_call(batcher, call) for call in script)))
        # A batch of those who have gone may still be under way.
        await asyncio.sleep(1)
        return worker, results, batcher

    worker, results, batcher = run_virtually(play())
    for call, result in zip(script, results, strict=True):
        if isinstance(result, asyncio.CancelledError):
            assert call.leaves_after is not None
        elif isinstance(result, Expired):
            assert call.patience is not None
        elif call.work < 0:
            assert isinstance(result, Poisoned)
        else:
            assert result == 2 * call.work
    for (_, ended, _), (started, _, _) in zip(worker.batches, worker.batches[1:], strict=False):
        assert started >= ended
    for rows, works in zip(worker.rows, worker.works, strict=True):
        assert rows <= ROWS_MAX or len(works) == 1
    assert batcher.idle
    assert batcher.expected_s(0) == 0


def asked_at(times: Sequence[float], worker: Worker, patience: float | None = None) -> list[float]:
    """When each of these callers (work 1, 2, ...) has its answer."""

    async def one(batcher: Batcher[int, int], number: int, at: float) -> float:
        await asyncio.sleep(at)
        assert await batcher.ask(number, 1, patience) == 2 * number
        return asyncio.get_running_loop().time()

    async def play() -> list[float]:
        batcher = worker.batcher()
        return list(await asyncio.gather(*(one(batcher, i, at) for i, at in enumerate(times, 1))))

    return run_virtually(play())


def test_whoever_finds_nobody_is_run_at_once() -> None:
    """One after the other, without any wait."""
    worker = Worker()
    assert asked_at([0, 0.02, 0.04], worker) == pytest.approx([0.01, 0.03, 0.05])
    assert worker.works == [[1], [2], [3]]


def test_the_next_batch_forms_while_one_runs() -> None:
    """Without a window after a batch without company."""
    worker = Worker()
    assert asked_at([0, 0.001, 0.005, 0.009], worker) == pytest.approx([0.01, 0.02, 0.02, 0.02])
    assert worker.works == [[1], [2, 3, 4]]


def test_a_batch_after_company_is_held_open_for_the_window() -> None:
    """Number 5 comes within it, number 6 after it."""
    worker = Worker()
    asked_at([0, 0.001, 0.002, 0.015, 0.022, 0.024], worker)
    assert worker.works == [[1], [2, 3], [4, 5], [6]]
    assert worker.batches[2][0] == pytest.approx(0.020 + WINDOW_S)


def test_nobody_is_held_while_there_is_time_left() -> None:
    """Whatever company the batch before had."""
    worker = Worker(busy=False)
    asked_at([0, 0.001, 0.002, 0.0205, 0.0215, 0.022], worker)
    assert worker.works == [[1], [2, 3], [4], [5, 6]]
    assert worker.batches[2][0] == pytest.approx(0.0205)
    assert worker.batches[3][0] == pytest.approx(0.0305)


def test_a_batch_is_held_while_somebody_comes_in_every_gap() -> None:
    """And cut at most a gap after the last one; who comes then waits for it, as always."""
    worker = Worker(window_s=0.1)
    asked_at([0, 0.001, 0.002, *(0.021 + 0.001 * i for i in range(5)), 0.030], worker)
    assert worker.works == [[1], [2, 3], [4, 5, 6, 7, 8], [9]]
    assert 0.025 < worker.batches[2][0] <= 0.025 + 2 * GAP_S


def test_a_gap_of_a_busy_loop_says_nothing() -> None:
    """Whoever was kept from joining by the answers of the batch before is waited for."""
    worker = Worker(window_s=0.1)

    async def one(batcher: Batcher[int, int], number: int, at: float) -> None:
        await asyncio.sleep(at)
        assert await batcher.ask(number, 1) == 2 * number

    async def play() -> None:
        batcher = worker.batcher()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.call_at(0.0205, loop.be_busy, 0.008)
        await asyncio.gather(*(one(batcher, i, at) for i, at in enumerate([0, 0.001, 0.002, 0.0295, 0.030], 1)))

    run_virtually(play())
    assert worker.works == [[1], [2, 3], [4, 5]]


def test_a_few_wait_for_one_another_only() -> None:
    """After a batch of two the next one is cut when two are there, and after the window when one is."""
    worker = Worker(few=2)
    asked_at([0, 0.001, 0.002, 0.0205, 0.0215, 0.032], worker)
    assert worker.works == [[1], [2, 3], [4, 5], [6]]
    assert worker.batches[2][0] == pytest.approx(0.0215)
    assert worker.batches[3][0] == pytest.approx(0.0315 + WINDOW_S)


def test_a_lull_ends_the_company() -> None:
    """Who comes a window after the last batch, or later, is run at once."""
    worker = Worker()
    answered = asked_at([0, 0.001, 0.002, 0.0235], worker)
    assert worker.works == [[1], [2, 3], [4]]
    assert answered[-1] == pytest.approx(0.0335)


def test_a_member_with_little_time_is_not_held() -> None:
    """What takes 10 ms is begun 20 ms before the deadline, though the window has not passed."""
    worker = Worker()

    async def one(batcher: Batcher[int, int], number: int, at: float, patience: float | None) -> None:
        await asyncio.sleep(at)
        assert await batcher.ask(number, 1, patience) == 2 * number

    async def play() -> None:
        batcher = worker.batcher()
        script = [(1, 0.0, None), (2, 0.001, None), (3, 0.002, None), (4, 0.0201, None), (5, 0.0202, 0.0215)]
        await asyncio.gather(*(one(batcher, *call) for call in script))

    run_virtually(play())
    assert worker.works == [[1], [2, 3], [4, 5]]
    assert worker.batches[2][0] == pytest.approx(0.0202 + 0.0215 - 0.020)


def test_a_full_batch_is_cut_at_once() -> None:
    """Sixteen rows fill it; the rest is the next one."""
    worker = Worker()
    asked_at([0, *[0.001] * 3, *[0.021] * 20], worker)
    assert [len(works) for works in worker.works] == [1, 3, 16, 4]
    assert worker.batches[2][0] == pytest.approx(0.021)


def test_those_who_have_gone_are_not_run() -> None:
    """One leaves and one expires while the batch before runs."""
    worker = Worker()

    async def play() -> list[int | BaseException]:
        batcher = worker.batcher()
        stays = Call(0.001, 4, 1, None, None)
        gone = [Call(0, 1, 1, None, None), Call(0.001, 2, 1, 0.005, None), Call(0.001, 3, 1, None, 0.004)]
        return list(await asyncio.gather(*(_call(batcher, call) for call in (*gone, stays))))

    first, expired, left, stayed = run_virtually(play())
    assert worker.works == [[1], [4]]
    assert (first, stayed) == (2, 8)
    assert isinstance(expired, Expired)
    assert not expired.running
    assert isinstance(left, asyncio.CancelledError)


def test_who_expires_in_a_batch_learns_so_and_takes_no_answer() -> None:
    worker = Worker()

    async def play() -> list[int | BaseException]:
        batcher = worker.batcher()
        script = [Call(0, 1, 1, 0.004, None), Call(0.001, 2, 1, None, None)]
        return list(await asyncio.gather(*(_call(batcher, call) for call in script)))

    expired, answered = run_virtually(play())
    assert isinstance(expired, Expired)
    assert expired.running
    assert answered == 4


def test_only_a_shared_error_fails_a_whole_batch() -> None:
    """It says nothing about a member, so that nobody is tried again."""
    worker = Worker()

    async def play() -> list[int | BaseException]:
        batcher = worker.batcher()
        script = [Call(0, 1, 1, None, None), *(Call(0.001, work, 1, None, None) for work in (2, 0, 3))]
        return list(await asyncio.gather(*(_call(batcher, call) for call in script)))

    results = run_virtually(play())
    assert results[0] == 2
    assert all(isinstance(result, Unavailable) for result in results[1:])
    assert [sorted(works) for works in worker.works] == [[1], [0, 2, 3]]


def test_large_work_runs_beside_the_batches() -> None:
    """At once, and the batcher is idle only when it has ended."""

    async def play() -> None:
        ran: list[list[int]] = []

        async def run(batch: Sequence[Member[int, int]]) -> None:
            ran.append([m.work for m in batch])
            await asyncio.sleep(0.01)
            for member in batch:
                member.answer(member.work)

        batcher = Batcher(run, rows_max=ROWS_MAX, window_s=WINDOW_S)
        small, large = asyncio.ensure_future(batcher.ask(1, 1)), asyncio.ensure_future(batcher.ask_alone(2, 500))
        await asyncio.sleep(0.005)
        assert sorted(ran) == [[1], [2]]
        assert not batcher.idle
        assert list(await asyncio.gather(small, large)) == [1, 2]
        await asyncio.sleep(0)
        assert batcher.idle

    run_virtually(play())


def test_a_batch_that_waits_for_somebody_else_is_overtaken() -> None:
    """By those who are there and those who come; everybody has his own answer, and the wait is no measure of others."""

    async def overtaking() -> tuple[list[float], float, float]:
        loop, ended = asyncio.get_running_loop(), list[float]()
        members: dict[int, Member[int, int]] = {}

        async def run(batch: Sequence[Member[int, int]]) -> None:
            members.update((m.work, m) for m in batch)
            await asyncio.sleep(100.0 if batch[0].work < 3 else 0.01)
            for member in batch:
                member.answer(2 * member.work)

        async def ask(work: int) -> None:
            assert await batcher.ask(work, 1) == 2 * work
            ended.append(loop.time())

        batcher: Batcher[int, int] = Batcher(run, window_s=WINDOW_S, gap_s=GAP_S)
        asked = [asyncio.ensure_future(ask(1))]
        await asyncio.sleep(1.0)
        asked += [asyncio.ensure_future(ask(2))]
        await asyncio.sleep(1.0)
        batcher.let_others(members[1])
        # Once is enough.
        batcher.let_others(members[1])
        await asyncio.sleep(1.0)
        batcher.let_others(members[2])
        idle, expected_s = batcher.idle, batcher.expected_s(1)
        assert not idle
        asked += [asyncio.ensure_future(ask(work)) for work in (3, 4, 5)]
        await asyncio.sleep(1.0)
        measured_s = batcher.expected_s(1)
        await asyncio.gather(*asked)
        assert batcher.idle
        return ended, expected_s, measured_s

    ended, expected_s, measured_s = run_virtually(overtaking())
    assert ended == pytest.approx([3.01, 3.01, 3.01, 100.0, 102.0], abs=0.1)
    assert expected_s == measured_s == 0.0


def test_a_batch_that_answers_nobody_is_a_bug_that_nobody_hangs_on() -> None:
    async def forget(batch: Sequence[Member[int, int]]) -> None:
        return

    async def play() -> None:
        with pytest.raises(RuntimeError):
            await Batcher[int, int](forget).ask(1, 1)

    run_virtually(play())


def test_the_expected_time_follows_what_was_measured() -> None:
    """A straight line over rows; what runs is waited for. Whoever finds nobody is expected at once."""
    worker = Worker(seconds=0.002, per_row_s=0.001)

    async def play() -> tuple[float, float, float]:
        batcher = worker.batcher()
        under_way = asyncio.ensure_future(batcher.ask(1, 8))
        await asyncio.sleep(0.004)
        unknown = batcher.expected_s(10)
        await under_way
        for rows in (1, 4, 8, 2, 12):
            await batcher.ask(1, rows)
        alone = batcher.expected_s(10)
        under_way = asyncio.ensure_future(batcher.ask(1, 8))
        await asyncio.sleep(0.004)
        behind = batcher.expected_s(10)
        await under_way
        return unknown, alone, behind

    unknown, alone, behind = run_virtually(play())
    assert unknown == alone == 0
    assert behind == pytest.approx(0.012 + 0.006, rel=0.05)
