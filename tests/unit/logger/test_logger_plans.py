"""What becomes of claimed outcomes, against rules written the slow way."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.values import DataType
from services.logger.outcomes import ATTACHED_MAX, Claims, Known, Outcome, plan_outcomes
from services.runtime.errors import AlreadyExists, LimitExceeded


def outcome(value: bool, revision: int) -> Outcome:
    return Outcome(revision, DataType.BOOL, bytes([value]), 0)


Step = tuple[int, bool, int]
steps = st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 3)), max_size=12)
PREDICTIONS: Mapping[bytes, list[str]] = {b"0": [], b"1": ["p"], b"2": ["q", "r"]}


@given(steps, st.booleans())
def test_outcomes_one_by_one_follow_the_rules_of_revisions(rows: list[Step], by_keys: bool) -> None:
    known = Known(PREDICTIONS)
    model: dict[bytes, dict[int, bool]] = {}
    for number, value, revision in rows:
        target = str(number).encode()
        stored = model.setdefault(target, {})
        claims = Claims((target,), (outcome(value, revision),), by_keys)
        if revision in stored and stored[revision] == value:
            plan = plan_outcomes(claims, known)
            assert (plan.matched, plan.held, plan.duplicates) == (0, 0, 1)
            assert not plan.attach
            assert not plan.keep
        elif stored and revision <= max(stored):
            with pytest.raises(AlreadyExists):
                plan_outcomes(claims, known)
        else:
            plan = plan_outcomes(claims, known)
            predictions = PREDICTIONS[target]
            assert [p for p, _ in plan.attach] == predictions
            assert (plan.matched, plan.held) == ((1, 0) if predictions else (0, 1))
            assert len(plan.keep) == (1 if by_keys or not predictions else 0)
            stored[revision] = value


def test_claims_that_belong_to_too_many_predictions_are_refused() -> None:
    many = {b"t": [str(i) for i in range(ATTACHED_MAX // 2 + 1)]}
    claims = Claims((b"t", b"t"), (outcome(True, 0), outcome(False, 1)), by_keys=True)
    with pytest.raises(LimitExceeded):
        plan_outcomes(claims, Known(many))


def test_an_outcome_by_keys_attaches_only_where_the_prediction_lacks_it() -> None:
    known = Known({b"t": ["p", "q"]}, attached={"p": {0: outcome(True, 0)}})
    plan = plan_outcomes(Claims((b"t",), (outcome(True, 0),), by_keys=True), known)
    assert plan.attach == [("q", outcome(True, 0))]
    assert plan.matched == 1
