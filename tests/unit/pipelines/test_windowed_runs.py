"""Runs over windows: from the position, once each, whatever breaks in between."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from foresight.client import Aborted, AlreadyExists
from foresight.pipelines import Pipeline, Run, Schedule, Window, WindowRun, backfill, pipeline, run_once
from foresight.pipelines.windowed import WINDOWS_MAX, catch_up, next_run
from foresight.values import InvalidValue
from foresight.values.pipelines import RunState, Trigger
from tests.unit.pipelines.store_in_memory import NOW, Killed, StoreInMemory, one_row, row

HOUR = timedelta(hours=1)
T0 = datetime(2026, 3, 1, tzinfo=UTC)


def hourly(function: Any = one_row, **options: Any) -> Pipeline:
    """A pipeline with a tick at each full hour, from T0."""
    return pipeline(group="weather", schedule=HOUR, **{"start": T0, "name": "weather", **options})(function)


def hours(store: StoreInMemory) -> list[float]:
    """The event times of the stored rows, hours since T0, in the order of the commits."""
    return [(r["event_time"] - T0) / HOUR for r in store.rows]


def test_what_is_due_is_run_window_by_window_and_the_position_moves_along() -> None:
    store = StoreInMemory()
    run = run_once(hourly(), store, now=T0 + 2.5 * HOUR)
    assert run is not None
    assert hours(store) == [0, 1]
    assert store.positions == {"weather": "2026-03-01T02:00:00Z"}
    assert (run.state, run.trigger, run.rows_in, run.rows_out) == (RunState.SUCCEEDED, Trigger.MANUAL, 2, 2)
    assert (run.from_event_time, run.to_event_time) == (T0, T0 + 2 * HOUR)
    assert store.sources == ["weather", "weather"]
    assert run_once(hourly(), store, now=T0 + 2.9 * HOUR) is None, "nothing is due"
    assert len(store.runs) == 1


def test_a_window_is_run_only_once_its_delay_has_passed() -> None:
    store, late = StoreInMemory(), hourly(delay=timedelta(minutes=10))
    assert run_once(late, store, now=T0 + HOUR + timedelta(minutes=9)) is None
    assert next_run(late, "", T0) == T0 + HOUR + timedelta(minutes=10)
    run_once(late, store, now=T0 + HOUR + timedelta(minutes=10))
    assert hours(store) == [0]
    assert next_run(late, store.positions["weather"], T0) == T0 + 2 * HOUR + timedelta(minutes=10)


def test_without_a_start_a_pipeline_begins_with_the_last_whole_period() -> None:
    store = StoreInMemory()
    run_once(hourly(start=None), store, now=T0 + 7.5 * HOUR)
    assert hours(store) == [6]


def test_many_missed_windows_are_caught_up_in_bounded_steps() -> None:
    store = StoreInMemory()
    now = T0 + (2 * WINDOWS_MAX + 3) * HOUR
    runs = [catch_up(hourly(), store, now) for _ in range(4)]
    assert [r and r.rows_out for r in runs] == [WINDOWS_MAX, WINDOWS_MAX, 3, None]
    assert hours(store) == list(range(2 * WINDOWS_MAX + 3))


def test_a_run_that_is_told_to_stop_ends_after_the_window_at_hand() -> None:
    store = StoreInMemory()
    run = catch_up(hourly(), store, T0 + 9 * HOUR, stopping=lambda: len(store.rows) >= 3)
    assert run is not None
    assert (run.state, hours(store)) == (RunState.SUCCEEDED, [0, 1, 2])


def test_a_pipeline_without_a_schedule_runs_up_to_now() -> None:
    store, by_hand = StoreInMemory(), pipeline(group="weather", name="weather", start=T0)(one_row)
    run_once(by_hand, store, now=T0 + 0.5 * HOUR)
    run_once(by_hand, store, now=T0 + 0.7 * HOUR)
    assert hours(store) == [0, 0.5]
    with pytest.raises(InvalidValue, match="neither a schedule nor a start"):
        run_once(pipeline(group="weather", name="other")(one_row), store)


def test_a_window_without_rows_moves_the_position_only() -> None:
    nothings: list[Any] = [None, [], pd.DataFrame({"place": [], "wind": []}), iter(())]
    for nothing in nothings:
        store = StoreInMemory()
        with WindowRun(hourly(lambda window, nothing=nothing: nothing), store) as run:
            run.step(Window(T0, T0 + HOUR))
        assert (store.rows, store.positions) == ([], {"weather": "2026-03-01T01:00:00Z"})
        assert (run.record.rows_in, run.record.rows_out, run.record.commit) == (0, 0, 0)


def test_an_iterator_of_tables_becomes_one_commit() -> None:
    def parts(window: Window) -> Iterator[Any]:
        yield [row(window.start, "a")]
        yield pd.DataFrame([row(window.start, place) for place in "bc"])
        yield {"wind": [4.0], "event_time": [window.start], "place": ["d"]}

    store = StoreInMemory()
    run = run_once(hourly(parts), store, now=T0 + HOUR)
    assert run is not None
    assert [r["place"] for r in store.rows] == ["a", "b", "c", "d"]
    assert (store.writes, run.rows_in, run.rows_out) == (1, 4, 4)


def test_a_reader_and_a_parquet_file_are_rows_too(tmp_path: Path) -> None:
    table = pa.table({"place": ["a", "b"], "event_time": pa.array([T0, T0], pa.timestamp("us", "UTC")), "wind": [1, 2]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    for rows in (pa.RecordBatchReader.from_batches(table.schema, table.to_batches(1)), tmp_path / "rows.parquet"):
        store = StoreInMemory()
        run = run_once(hourly(lambda window, rows=rows: rows), store, now=T0 + HOUR)
        assert run is not None
        assert ([r["wind"] for r in store.rows], run.rows_in) == ([1.0, 2.0], 2)
    (tmp_path / "none.parquet").write_text("no file")
    for name in ("none.parquet", "nowhere.parquet"):
        with pytest.raises(InvalidValue, match=name):
            run_once(hourly(lambda window, name=name: tmp_path / name), StoreInMemory(), now=T0 + HOUR)


def test_tables_of_an_iterator_have_the_same_columns() -> None:
    for other in ({"place": ["b"], "event_time": [T0]}, {"place": ["b"], "event_time": [T0], "wind": ["strong"]}):
        store = StoreInMemory()
        with pytest.raises(InvalidValue, match="wind"):
            run_once(hourly(lambda window, o=other: iter([[row(T0)], o])), store, now=T0 + HOUR)
        assert (store.rows, store.positions, store.states) == ([], {}, [RunState.FAILED])


def test_a_function_may_take_the_run_to_read_and_to_count() -> None:
    def counting(window: Window, run: Run) -> list[dict[str, Any]]:
        assert run.client.group("weather").name == "weather"
        run.count_in(500)
        return one_row(window)

    run = run_once(hourly(counting), StoreInMemory(), now=T0 + 2 * HOUR)
    assert run is not None
    assert (run.rows_in, run.rows_out) == (1_000, 2)


def test_a_declared_pipeline_is_still_a_function() -> None:
    assert hourly()(Window(T0, T0 + HOUR)) == [row(T0)]


def test_a_failed_run_is_repeated_from_the_same_window_and_its_error_is_kept() -> None:
    broken = [True]

    def moody(window: Window) -> list[dict[str, Any]]:
        if window.start == T0 + HOUR and broken[0]:
            raise ValueError("the upstream is down\0")
        return one_row(window)

    store = StoreInMemory()
    with pytest.raises(ValueError, match="upstream") as failed:
        run_once(hourly(moody), store, now=T0 + 3 * HOUR)
    assert "2026-03-01T01:00:00Z" in failed.value.__notes__[0]
    [run] = store.runs.values()
    assert (run.state, run.error, run.rows_out) == (RunState.FAILED, "ValueError: the upstream is down", 1)
    assert store.positions["weather"] == "2026-03-01T01:00:00Z"
    broken[0] = False
    run_once(hourly(moody), store, now=T0 + 3 * HOUR)
    assert hours(store) == [0, 1, 2]


@given(st.sets(st.integers(1, 40)), st.sets(st.integers(1, 40)), st.integers(1, 12))
def test_every_row_lands_once_wherever_the_process_is_killed(before: set[int], after: set[int], windows: int) -> None:
    store = StoreInMemory()
    store.die_before, store.die_after = before, after
    for _ in range(100):
        try:
            if run_once(hourly(), store, now=T0 + windows * HOUR) is None:
                break
        except Killed:
            continue
    assert hours(store) == list(range(windows))


def test_a_window_that_was_done_can_be_run_again_and_changes_nothing() -> None:
    store = StoreInMemory()
    run_once(hourly(), store, now=T0 + 3 * HOUR)
    run = run_once(hourly(), store, Window(T0 + HOUR, T0 + 2 * HOUR))
    assert run is not None
    assert (hours(store), run.rows_in, run.rows_out) == ([0, 1, 2], 1, 0)
    assert store.positions["weather"] == "2026-03-01T03:00:00Z"


def test_a_window_that_was_done_and_gives_other_rows_is_refused() -> None:
    store = StoreInMemory()
    run_once(hourly(), store, now=T0 + HOUR)
    with pytest.raises(AlreadyExists):
        run_once(hourly(lambda window: [row(window.start, wind=9.0)]), store, Window(T0, T0 + HOUR))


@pytest.mark.parametrize(("start", "end", "fault"), [(3, 4, "gap"), (1, 3, "overlap")])
def test_a_window_that_does_not_fit_the_position_is_refused(start: int, end: int, fault: str) -> None:
    store = StoreInMemory()
    run_once(hourly(), store, now=T0 + 2 * HOUR)
    with pytest.raises(InvalidValue, match=fault):
        run_once(hourly(), store, Window(T0 + start * HOUR, T0 + end * HOUR))
    assert hours(store) == [0, 1]


def test_of_two_runs_at_once_one_writes_and_the_other_is_told() -> None:
    store = StoreInMemory()
    with WindowRun(hourly(), store) as slow:
        run_once(hourly(), store, now=T0 + HOUR)
        with pytest.raises(Aborted):
            slow.step(Window(T0, T0 + 2 * HOUR))
    assert (hours(store), store.positions) == ([0], {"weather": "2026-03-01T01:00:00Z"})


def test_an_interrupted_run_is_cancelled() -> None:
    def interrupted(window: Window) -> None:
        raise KeyboardInterrupt

    store = StoreInMemory()
    with pytest.raises(KeyboardInterrupt):
        run_once(hourly(interrupted), store, now=T0 + HOUR)
    assert store.states == [RunState.CANCELLED]


def test_a_long_run_is_reported_every_few_seconds_and_not_at_each_step() -> None:
    store, now = StoreInMemory(), [0.0]
    with WindowRun(hourly(), store, clock=lambda: now[0]) as run:
        for hour in range(100):
            now[0] += 0.5
            run.step(Window(T0 + hour * HOUR, T0 + (hour + 1) * HOUR))
        assert store.reports == 10
        assert store.runs[run.record.id].rows_out == 100


# Backfill


def test_a_backfill_covers_its_range_and_leaves_the_position_alone() -> None:
    store = StoreInMemory()
    run_once(hourly(), store, now=T0 + 2 * HOUR)
    seen: list[Window] = []
    run = backfill(hourly(), store, T0 - 2.5 * HOUR, T0, timedelta(minutes=90), on_window=seen.append)
    assert run is not None
    assert (run.trigger, run.rows_out, run.from_event_time) == (Trigger.BACKFILL, 2, T0 - 2.5 * HOUR)
    assert hours(store) == [0, 1, -2.5, -1]
    assert seen[-1] == Window(T0 - HOUR, T0)
    assert store.positions["weather"] == "2026-03-01T02:00:00Z"
    assert backfill(hourly(), store, T0 - 2.5 * HOUR, T0) is None, "it is done"


def test_a_backfill_steps_by_the_schedule_unless_told_otherwise() -> None:
    store = StoreInMemory()
    backfill(hourly(), store, T0 - 1.5 * HOUR, T0)
    assert hours(store) == [-1.5, -1]
    store = StoreInMemory()
    backfill(pipeline(group="weather", name="weather")(one_row), store, T0 - 1.5 * HOUR, T0)
    assert hours(store) == [-1.5]


@given(st.sets(st.integers(1, 30)), st.sets(st.integers(1, 30)))
def test_a_backfill_that_is_killed_goes_on_where_it_was(before: set[int], after: set[int]) -> None:
    store = StoreInMemory()
    store.die_before, store.die_after = before, after
    for _ in range(70):
        try:
            if backfill(hourly(), store, T0 - 9 * HOUR, T0) is None:
                break
        except Killed:
            continue
    assert hours(store) == list(range(-9, 0))


def test_another_label_writes_the_range_anew() -> None:
    store = StoreInMemory()
    backfill(hourly(), store, T0 - HOUR, T0)
    backfill(hourly(lambda window: [row(window.start, wind=9.0)]), store, T0 - HOUR, T0, label="fixed")
    assert [r["wind"] for r in store.rows] == [1.0, 9.0]


def test_a_backfill_needs_a_range_and_a_step() -> None:
    for start, end, step in ((T0, T0, HOUR), (T0, T0 - HOUR, None), (T0, T0 + HOUR, timedelta(0))):
        with pytest.raises(InvalidValue):
            backfill(hourly(), StoreInMemory(), start, end, step)
    with pytest.raises(InvalidValue, match="time zone"):
        backfill(hourly(), StoreInMemory(), NOW.replace(tzinfo=None), NOW)


# Declarations


@pytest.mark.parametrize(
    "options",
    [
        {"group": "Weather"},
        {"group": "log_weather"},
        {"name": "a b"},
        {"name": "x" * 64},
        {"delay": timedelta(seconds=-1)},
        {"start": datetime(2026, 3, 1)},  # noqa: DTZ001 - a naive time
        {"schedule": 3600},
    ],
)
def test_a_wrong_declaration_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        pipeline(**{"group": "weather", "schedule": "5 * * * *", "name": "weather", **options})(one_row)


def test_the_longest_name_fits_the_write_ids() -> None:
    store = StoreInMemory()
    window = Window(T0 + timedelta(microseconds=1), T0 + timedelta(microseconds=2))
    run_once(hourly(name="x" * 63, start=None), store, window)
    backfill(hourly(name="x" * 63), store, window.start, window.end)
    assert store.writes == 2


def test_a_schedule_says_itself_in_words() -> None:
    assert str(Schedule.of("5  * * * *", "Asia/Tokyo")) == "5 * * * * Asia/Tokyo"
    assert str(Schedule.of(HOUR)) == "every 1:00:00"
