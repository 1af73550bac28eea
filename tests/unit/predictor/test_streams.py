"""Streams: order, what may be unanswered, and how they end, on a virtual clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.predictor.streams import Streams
from services.runtime.errors import Overloaded, Unavailable
from tests.unit.predictor.virtual_time import run_virtually

MOST = 8
BYTES_MAX = 100


@dataclass
class Work:
    """Requests are the seconds that their answers take; counts what is taken, worked on and dropped."""

    requests: Sequence[float]
    fault: Exception | None = None
    pause_s: float = 0.0
    taken: int = 0
    running: int = 0
    most_running: int = 0
    dropped: int = 0
    closed: bool = False
    more: asyncio.Event | None = None
    sizes: dict[float, int] = field(default_factory=dict)

    async def sent(self) -> AsyncIterator[float]:
        try:
            for seconds in self.requests:
                await asyncio.sleep(self.pause_s)
                self.taken += 1
                yield seconds
            if self.more is not None:
                await self.more.wait()
            if self.fault is not None:
                raise self.fault
        finally:
            self.closed = True

    async def answer(self, seconds: float) -> float:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        finally:
            self.running -= 1
        if seconds < 0:
            raise ValueError("a bug")
        return 2 * seconds

    def size_of(self, seconds: float) -> int:
        return self.sizes.get(seconds, 1)


async def outcome(streams: Streams, work: Work) -> tuple[list[float], Exception | None]:
    """The answers of a stream, and what it ended with."""
    answers: list[float] = []
    try:
        async for answer in streams.answers(work.sent(), work.answer, work.size_of):
            answers.append(answer)
    except (ValueError, Unavailable) as error:
        return answers, error
    return answers, None


def small_streams(streams_max: int = 2) -> Streams:
    return Streams(streams_max=streams_max, unanswered_max=MOST, unanswered_bytes_max=BYTES_MAX)


@given(
    st.lists(st.floats(0, 10), max_size=40),
    st.floats(0, 1),
    st.lists(st.floats(0, 10), min_size=40, max_size=40),
)
def test_answers_keep_the_order_of_requests_however_long_each_takes(
    requests: list[float], pause_s: float, reading_s: list[float]
) -> None:
    """All of them, with never more unanswered than allowed, whatever the caller's pace."""

    async def work() -> None:
        stream, given = small_streams(), Work(requests, pause_s=pause_s)
        answers: list[float] = []
        async for answer in stream.answers(given.sent(), given.answer, given.size_of):
            answers.append(answer)
            assert given.taken - len(answers) <= MOST
            await asyncio.sleep(reading_s[len(answers) - 1])
        assert answers == [2 * seconds for seconds in requests]
        assert given.most_running <= MOST
        assert given.closed
        assert stream.open == stream.unanswered == 0

    run_virtually(work())


def test_requests_of_one_stream_are_worked_on_together() -> None:
    """Eight that take a second each take a second."""

    async def work() -> None:
        given = Work([1.0] * (2 * MOST))
        answers = [a async for a in small_streams().answers(given.sent(), given.answer, given.size_of)]
        assert len(answers) == 2 * MOST
        assert given.most_running == MOST
        assert asyncio.get_running_loop().time() == pytest.approx(2.0)

    run_virtually(work())


def test_who_does_not_take_his_answers_is_not_read_from() -> None:
    """They are all made, and nothing more is taken until he takes one."""

    async def work() -> None:
        streams, given = small_streams(), Work([0.0] * 100)
        async with contextlib.aclosing(streams.answers(given.sent(), given.answer, given.size_of)) as answers:
            await anext(answers)
            await asyncio.sleep(1_000)
            assert (given.taken, given.running, streams.unanswered) == (MOST, 0, MOST)
            await anext(answers)
            await asyncio.sleep(1_000)
            assert given.taken == MOST + 1
        assert (streams.open, streams.unanswered) == (0, 0)

    run_virtually(work())


def test_large_requests_count_by_their_bytes() -> None:
    """One is taken whatever its size, and no other beside it."""

    async def work() -> None:
        large = Work([0.5] * 5, sizes={0.5: 10 * BYTES_MAX})
        assert len([a async for a in small_streams().answers(large.sent(), large.answer, large.size_of)]) == 5
        assert large.most_running == 1
        medium = Work([0.5] * 12, sizes={0.5: BYTES_MAX // 4})
        assert len([a async for a in small_streams().answers(medium.sent(), medium.answer, medium.size_of)]) == 12
        assert medium.most_running == 4

    run_virtually(work())


@pytest.mark.parametrize("fault", [ValueError("cannot be read"), None])
def test_what_was_sent_before_a_fault_or_the_end_is_answered(fault: Exception | None) -> None:
    """Then the fault is raised."""

    async def work() -> None:
        answers, raised = await outcome(small_streams(), Work([3.0, 1.0, 2.0], fault))
        assert raised is fault
        assert answers == [6.0, 2.0, 4.0]

    run_virtually(work())


def test_what_answering_raises_ends_the_stream_in_its_turn() -> None:
    """The answers before it are given, what comes after it is dropped."""

    async def work() -> None:
        streams, given = small_streams(), Work([2.0, -1.0, 9.0])
        answers, raised = await outcome(streams, given)
        assert (answers, str(raised), given.dropped, streams.open) == ([4.0], "a bug", 1, 0)

    run_virtually(work())


def test_a_caller_who_goes_takes_his_requests_with_him() -> None:
    """Nothing of the stream runs any more."""

    async def work() -> None:
        streams, given = small_streams(), Work([1.0] + [100.0] * 20)

        async def call() -> None:
            async with contextlib.aclosing(streams.answers(given.sent(), given.answer, given.size_of)) as answers:
                async for _ in answers:
                    pass

        calling = asyncio.create_task(call())
        await asyncio.sleep(5)
        assert given.running == MOST
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling
        assert (given.dropped, given.running, streams.open, streams.unanswered) == (MOST, 0, 0, 0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtually(work())


def test_at_the_end_what_was_taken_is_answered_and_no_more_is_taken() -> None:
    """The stream then fails with Unavailable, and so does every later one, at once."""

    async def work() -> None:
        stopping, streams = asyncio.Event(), small_streams()
        ending = asyncio.create_task(streams.end_after(stopping))
        asyncio.get_running_loop().call_later(1, stopping.set)
        answers, raised = await outcome(streams, Work([5.0, 4.0, 3.0], more=asyncio.Event()))
        assert (answers, type(raised)) == ([10.0, 8.0, 6.0], Unavailable)
        later, raised = await outcome(streams, Work([1.0]))
        assert (later, type(raised)) == ([], Unavailable)
        await ending

    run_virtually(work())


def test_a_caller_who_has_sent_all_is_answered_all_when_the_process_stops() -> None:
    """His stream ends as if nothing had been."""

    async def work() -> None:
        streams, given = small_streams(), Work([5.0, 4.0, 3.0])
        asyncio.get_running_loop().call_later(1, streams.end)
        assert [a async for a in streams.answers(given.sent(), given.answer, given.size_of)] == [10.0, 8.0, 6.0]

    run_virtually(work())


def test_one_stream_more_than_allowed_is_refused_until_another_ends() -> None:
    """With Overloaded, which says when to come again."""

    async def work() -> None:
        streams, held = small_streams(streams_max=1), Work([1.0, 1.0])
        async with contextlib.aclosing(streams.answers(held.sent(), held.answer, held.size_of)) as first:
            await anext(first)
            with pytest.raises(Overloaded) as refused:
                await anext(streams.answers(held.sent(), held.answer, held.size_of))
            assert refused.value.metadata == {"limit": "streams_max"}
            assert streams.open == 1
        again = Work([1.0])
        assert [a async for a in streams.answers(again.sent(), again.answer, again.size_of)] == [2.0]

    run_virtually(work())
