"""When a service that may be away is asked: on a clock that the tests turn."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.predictor.breaker import (
    PAUSE_MAX_S,
    PAUSE_MIN_S,
    PROBE_S,
    SILENCE_S,
    Breaker,
    BreakerState,
    Trial,
)

STEP_S = 0.01


class Clock:
    """Counts whole milliseconds."""

    def __init__(self) -> None:
        self.ms = 0

    def __call__(self) -> float:
        return self.ms / 1_000

    def turn(self, seconds: float) -> None:
        self.ms += round(seconds * 1_000)


def state(breaker: Breaker) -> BreakerState:
    return breaker.state


def asked_until(clock: Clock, breaker: Breaker, end_s: float) -> list[float]:
    """Asks every STEP_S and gets no answer at once; when it was let through."""
    times = []
    while clock() < end_s:
        trial = breaker.enter(5.0)
        if trial is not None:
            times.append(clock())
            breaker.silent(trial)
        clock.turn(STEP_S)
    return times


def test_who_refuses_at_once_is_asked_for_a_while_and_then_at_growing_pauses() -> None:
    """The n-th probe comes PAUSE_MIN_S * (2^n - 1) after the opening, then one every PAUSE_MAX_S."""
    clock = Clock()
    breaker = Breaker(clock)
    times = asked_until(clock, breaker, 5.0)
    closed = [t for t in times if t <= SILENCE_S]
    assert len(closed) == round(SILENCE_S / STEP_S) + 1
    probes = [t for t in times if t > SILENCE_S]
    pauses = (min(PAUSE_MIN_S * 2**n, PAUSE_MAX_S) for n in itertools.count())
    expected = list(itertools.takewhile(lambda t: t < 5.0, itertools.accumulate(pauses, initial=SILENCE_S)))[1:]
    # A sum of floats may be a step late.
    assert probes == pytest.approx(expected, abs=1.5 * STEP_S)


def test_who_does_not_answer_at_all_costs_one_long_wait_and_then_short_ones() -> None:
    """While a probe is out nobody else waits."""
    clock = Clock()
    breaker = Breaker(clock)
    first = breaker.enter(5.0)
    assert first is not None
    assert (first.probe, first.timeout_s) == (False, 5.0)
    clock.turn(first.timeout_s)
    breaker.silent(first)
    assert state(breaker) is BreakerState.OPEN
    assert breaker.enter(5.0) is None
    clock.turn(PAUSE_MIN_S)
    assert state(breaker) is BreakerState.HALF_OPEN
    probe = breaker.enter(5.0)
    assert probe is not None
    assert (probe.probe, probe.timeout_s) == (True, PROBE_S)
    assert breaker.enter(5.0) is None
    clock.turn(PROBE_S)
    breaker.silent(probe)
    assert state(breaker) is BreakerState.OPEN
    clock.turn(PAUSE_MIN_S)
    assert breaker.enter(5.0) is None
    clock.turn(PAUSE_MIN_S)
    hurried = breaker.enter(0.01)
    assert hurried is not None
    assert hurried.timeout_s == 0.01
    breaker.answered(hurried)
    assert state(breaker) is BreakerState.CLOSED
    again = breaker.enter(5.0)
    assert again is not None
    assert not again.probe


def test_an_impatient_caller_opens_nothing_while_others_are_answered() -> None:
    """He waits for 10 ms, they for 50."""
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(100):
        impatient, patient = breaker.enter(0.01), breaker.enter(1.0)
        assert impatient is not None
        assert patient is not None
        clock.turn(0.01)
        breaker.silent(impatient)
        clock.turn(0.04)
        breaker.answered(patient)
    assert state(breaker) is BreakerState.CLOSED


def test_a_probe_that_nobody_waits_for_makes_room_for_another() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    asked_until(clock, breaker, SILENCE_S + STEP_S)
    clock.turn(PAUSE_MIN_S)
    probe = breaker.enter(5.0)
    assert probe is not None
    breaker.left(probe)
    assert breaker.enter(5.0) is not None


def test_a_late_answer_closes_and_a_late_silence_does_not_open() -> None:
    """Questions from before are answered while a probe is out, which then fails."""
    clock = Clock()
    breaker = Breaker(clock)
    late, silent, other = breaker.enter(5.0), breaker.enter(5.0), breaker.enter(5.0)
    assert late is not None
    assert silent is not None
    assert other is not None
    clock.turn(SILENCE_S)
    breaker.silent(other)
    clock.turn(PAUSE_MIN_S)
    probe = breaker.enter(5.0)
    assert probe is not None
    breaker.answered(late)
    clock.turn(STEP_S)
    breaker.silent(silent)
    breaker.silent(probe)
    assert state(breaker) is BreakerState.CLOSED


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "answered", "silent", "left", "turn"]), st.integers(0, 700)), max_size=80
)


@given(STEPS)
def test_whatever_happens_it_opens_only_after_silence_and_asks_again_in_time(steps: list[tuple[str, int]]) -> None:
    """One probe at a time; an answer closes it; open, it lets somebody ask within PAUSE_MAX_S."""
    clock = Clock()
    breaker = Breaker(clock)
    out: list[Trial] = []
    quiet_since: float | None = None
    for what, number in steps:
        before = breaker.state
        if what == "turn":
            clock.turn(number / 1_000)
        elif what == "enter":
            trial = breaker.enter(number / 1_000)
            assert (trial is not None) == (
                before is BreakerState.CLOSED
                or (before is BreakerState.HALF_OPEN and not any(other.probe for other in out))
            )
            if trial is not None:
                assert trial.probe == (before is not BreakerState.CLOSED)
                out.append(trial)
        elif out:
            trial = out.pop(number % len(out))
            if what == "answered":
                breaker.answered(trial)
                quiet_since = None
                assert state(breaker) is BreakerState.CLOSED
            elif what == "silent":
                quiet_since = trial.started if quiet_since is None else min(quiet_since, trial.started)
                breaker.silent(trial)
            else:
                breaker.left(trial)
        if before is BreakerState.CLOSED and breaker.state is not BreakerState.CLOSED:
            assert quiet_since is not None
            assert clock() - quiet_since >= SILENCE_S
    for trial in out:
        breaker.silent(trial)
    clock.turn(PAUSE_MAX_S)
    assert breaker.enter(1.0) is not None
