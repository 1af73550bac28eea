"""Those of a batch whose time is over while the others wait: on a clock of the tests."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.predictor.early import TOGETHER_S, EarlyAnswers
from tests.unit.predictor.virtual_time import run_virtually


async def wait(seconds: float, due: list[float]) -> list[tuple[float, list[float]]]:
    """Waits so long; when whose time was over, by the clock."""
    loop, tasks, answered = asyncio.get_running_loop(), set[asyncio.Task[None]](), list[tuple[float, list[float]]]()

    async def answer(members: list[float]) -> None:
        answered.append((loop.time(), members))

    async with EarlyAnswers([(at, at) for at in due], answer, tasks):
        await asyncio.sleep(seconds)
    assert all(task.done() for task in tasks)
    return answered


@given(st.floats(0, 1), st.lists(st.floats(0, 1), max_size=20))
def test_everybody_is_answered_once_at_his_time_and_nobody_after_the_wait(seconds: float, due: list[float]) -> None:
    answered = run_virtually(wait(seconds, due))
    members = [member for _, together in answered for member in together]
    assert members == sorted(due)[: len(members)]
    assert all(at < seconds + TOGETHER_S for at in members)
    assert sum(at < seconds for at in due) <= len(members)
    for when, together in answered:
        assert all(when - 1e-9 <= at <= when + TOGETHER_S + 1e-9 for at in together)


def test_a_wait_that_is_cut_short_answers_nobody() -> None:
    async def interrupted() -> list[float]:
        answered: list[float] = []

        async def answer(members: list[float]) -> None:
            answered.extend(members)

        with pytest.raises(KeyError):
            async with EarlyAnswers([(0.5, 0.5)], answer, set()):
                raise KeyError("the wait failed")
        await asyncio.sleep(1.0)
        return answered

    assert run_virtually(interrupted()) == []


def test_a_wait_ends_when_the_early_answers_are_given() -> None:
    """Nobody who goes on with the batch takes somebody for unanswered who is about to be answered."""

    async def overlapping() -> tuple[float, list[float]]:
        loop, answered = asyncio.get_running_loop(), list[float]()

        async def answer(members: list[float]) -> None:
            await asyncio.sleep(2.0)
            answered.extend(members)

        async with EarlyAnswers([(0.5, 0.5)], answer, set()):
            await asyncio.sleep(1.0)
        return loop.time(), answered

    assert run_virtually(overlapping()) == (2.5, [0.5])
