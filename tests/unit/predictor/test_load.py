"""When larger batches are worth a wait: by what the thread has spent lately."""

from __future__ import annotations

import pytest

from services.predictor.load import BUSY, Load


class Thread:
    """A thread that works for a share of its time."""

    def __init__(self) -> None:
        self.now = self.cpu_s = 0.0
        self.load = Load(lambda: self.cpu_s, lambda: self.now)

    def works(self, share: float, seconds: float, step_s: float = 0.005) -> bool:
        for _ in range(round(seconds / step_s)):
            self.now += step_s
            self.cpu_s += share * step_s
            busy = self.load.busy()
        return busy


@pytest.mark.parametrize("share", [0.0, BUSY - 0.05, BUSY + 0.05, 1.0])
def test_what_lasts_is_seen(share: float) -> None:
    assert Thread().works(share, 1.0) == (share > BUSY)


def test_a_new_thread_is_not_busy_and_one_batch_does_not_make_it_so() -> None:
    thread = Thread()
    assert not thread.load.busy()
    assert not thread.works(1.0, 0.01)


def test_it_follows_within_parts_of_a_second() -> None:
    thread = Thread()
    assert thread.works(1.0, 0.3)
    assert not thread.works(0.1, 0.3)
    assert thread.works(1.0, 0.3)


def test_a_long_rest_is_seen_at_once() -> None:
    thread = Thread()
    thread.works(1.0, 1.0)
    thread.now += 60
    assert not thread.load.busy()


def test_moments_are_put_together() -> None:
    """Asked after every step of a microsecond, it says the same."""
    thread = Thread()
    assert thread.works(0.9, 0.3, 0.000_05)
    assert not thread.works(0.2, 0.3, 0.000_05)
