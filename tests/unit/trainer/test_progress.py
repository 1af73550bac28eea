"""Streams of progress, and turns."""

from __future__ import annotations

import asyncio

import pytest

from services.runtime.errors import LimitExceeded, Unavailable
from services.trainer.progress import PENDING_MAX, Progress, Report, streamed
from services.trainer.turns import Turns


async def test_progress_comes_before_the_result() -> None:
    async def work(report: Report) -> str:
        report(Progress("reading", 1))
        report(Progress("fitting"))
        return "done"

    assert [event async for event in streamed(work)] == [Progress("reading", 1), Progress("fitting"), "done"]


async def test_an_error_ends_the_stream() -> None:
    async def work(report: Report) -> str:
        raise Unavailable("gone")

    with pytest.raises(Unavailable):
        _ = [event async for event in streamed(work)]


async def test_reports_beyond_the_bound_are_dropped_and_the_result_is_not() -> None:
    async def work(report: Report) -> str:
        for i in range(10 * PENDING_MAX):
            report(Progress("reading", i))
        return "done"

    events = [event async for event in streamed(work)]
    assert len(events) == PENDING_MAX + 1
    assert events[-1] == "done"


async def test_closing_the_stream_cancels_the_work() -> None:
    cancelled = asyncio.Event()

    async def work(report: Report) -> str:
        report(Progress("fitting"))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return ""

    stream = streamed(work)
    assert await anext(stream) == Progress("fitting")
    await stream.aclose()  # type: ignore[attr-defined]  # an async generator
    assert cancelled.is_set()


async def test_turns_let_so_many_in_let_so_many_wait_and_refuse_the_rest() -> None:
    turns = Turns("trainings", at_once=1, waiting_max=2)
    release = asyncio.Event()
    done: list[int] = []

    async def one(number: int) -> None:
        async with turns.turn():
            await release.wait()
            done.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(one(number))
        await asyncio.sleep(0)
        with pytest.raises(LimitExceeded):
            async with turns.turn():
                raise AssertionError("let in")
        release.set()
    assert done == [0, 1, 2]
    async with turns.turn():
        pass
