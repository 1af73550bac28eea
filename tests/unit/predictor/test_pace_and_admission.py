"""How long batches are thought to take, and who is let in by that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.predictor.admission import RETRY_AFTER_MAX_S, RETRY_AFTER_MIN_S, Admission
from services.predictor.pace import Pace
from services.runtime.errors import Overloaded


@given(st.floats(0, 0.1), st.floats(0, 0.01), st.lists(st.integers(1, 1_024), min_size=2, max_size=60))
def test_a_straight_line_is_found(fixed_s: float, per_row_s: float, batches: list[int]) -> None:
    """Exactly, as soon as two batches differ in rows; with one size only that size is known."""
    pace = Pace()
    for rows in batches:
        pace.took(rows, fixed_s + per_row_s * rows)
    asked = 300 if max(batches) - min(batches) > 8 else batches[0]
    if max(batches) - min(batches) > 8 or len(set(batches)) == 1:
        assert pace.expected_s(asked) == pytest.approx(fixed_s + per_row_s * asked, rel=1e-3, abs=1e-6)
    assert pace.expected_s(0) == 0


def test_the_latest_batches_count_most() -> None:
    pace = Pace()
    for seconds in [1.0] * 100 + [0.01] * 200:
        pace.took(10, seconds)
    assert pace.expected_s(10) == pytest.approx(0.01, rel=0.05)


def test_rows_that_are_not_done_are_bounded() -> None:
    """What leaves makes room; a request larger than the bound is let in when nothing else is there."""
    admission = Admission(10)
    admission.enter(8, 0, None)
    with pytest.raises(Overloaded) as refused:
        admission.enter(3, 0.2, None)
    assert refused.value.metadata == {"limit": "queue_rows_max"}
    assert refused.value.retry_after_s == 0.2
    admission.enter(2, 0, None)
    for rows in (8, 2):
        admission.leave(rows)
    assert admission.rows == 0
    admission.enter(1_000, 0, None)


@pytest.mark.parametrize(
    ("expected_s", "remaining_s", "retry_after_s"),
    [(0.3, 0.2, 0.1), (0.21, 0.2, RETRY_AFTER_MIN_S), (100.0, 0.2, RETRY_AFTER_MAX_S)],
)
def test_what_would_be_late_is_refused_at_once(expected_s: float, remaining_s: float, retry_after_s: float) -> None:
    """With the time after which it would not be; nothing of it is counted."""
    admission = Admission()
    with pytest.raises(Overloaded) as refused:
        admission.enter(1, expected_s, remaining_s)
    assert refused.value.retry_after_s == pytest.approx(retry_after_s)
    assert refused.value.metadata == {"limit": "deadline"}
    assert admission.rows == 0
    admission.enter(1, remaining_s, remaining_s)
    admission.enter(1, expected_s, None)
