"""What a run of a pipeline can be, and how much of an error is kept."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.values import InvalidValue
from foresight.values.pipelines import (
    ERROR_BYTES_MAX,
    PipelineRun,
    PositionMove,
    RunReport,
    RunState,
    Trigger,
    cut_error,
)


@pytest.mark.parametrize("count", ["rows_in", "rows_out", "skipped", "commit"])
def test_counts_fit_the_database(count: str) -> None:
    most: dict[str, Any] = {count: 2**63 - 1}
    RunReport("r", RunState.RUNNING, **most)
    for number in (-1, 2**63):
        wrong: dict[str, Any] = {count: number}
        with pytest.raises(InvalidValue, match=count):
            RunReport("r", RunState.RUNNING, **wrong)


def test_only_the_server_says_that_a_run_is_lost() -> None:
    with pytest.raises(InvalidValue, match="server"):
        RunReport("r", RunState.LOST)
    assert [state for state in RunState if state.is_final] == [
        RunState.SUCCEEDED,
        RunState.FAILED,
        RunState.CANCELLED,
    ]


@pytest.mark.parametrize("fields", [{"id": ""}, {"id": "ä" * 65}, {"pipeline": "A"}, {"pipeline": "prediction_x"}])
def test_names_and_ids_are_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        PipelineRun(**{"id": "r", "pipeline": "tides", "trigger": Trigger.MANUAL, **fields})


@pytest.mark.parametrize("fields", [{"pipeline": ""}, {"before": "x" * 1_025}, {"after": "a\0"}, {"after": "ä" * 513}])
def test_positions_are_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        PositionMove(**{"pipeline": "tides", "before": "", "after": "1", **fields})


@given(st.text(st.characters(), max_size=3_000))
def test_any_error_is_kept_as_far_as_it_fits(text: str) -> None:
    kept = cut_error(text)
    assert len(kept.encode()) <= ERROR_BYTES_MAX
    assert "\0" not in kept
    if "\0" not in text and len(text.encode(errors="replace")) <= ERROR_BYTES_MAX:
        assert len(kept) == len(text)
