"""Windows tile time, whatever the schedule, the clock's jumps and the times at which they are run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.pipelines import Schedule, Window
from foresight.pipelines.windows import cut, format_instant, parse_position
from foresight.values import InvalidValue

CRONS = ("5 * * * *", "30 2 * * *", "*/20 * * * *", "0 0 * * 1", "15 1,13 * * *", "0 3 1 * *")
ZONES = ("UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kolkata")
# Around the clock's jumps of 2026 in those zones.
DAYS = ((3, 6), (3, 28), (4, 3), (10, 2), (10, 24), (10, 31))
STARTS = st.sampled_from([datetime(2026, month, day, tzinfo=UTC) for month, day in DAYS])
schedules = st.one_of(
    st.builds(Schedule.of, st.sampled_from(CRONS), st.sampled_from(ZONES)),
    st.integers(600, 200_000).map(lambda s: Schedule.of(timedelta(seconds=s))),
)
moments = st.lists(st.integers(0, 4 * 86_400), min_size=1, max_size=8).map(sorted)


@given(schedules, STARTS, st.integers(0, 86_400 * 10**6), moments)
def test_windows_tile_time_however_often_and_late_they_are_run(
    schedule: Schedule, base: datetime, offset_us: int, seconds: list[int]
) -> None:
    start = base + timedelta(microseconds=offset_us)
    runs = [start + timedelta(seconds=s) for s in seconds]
    position, found = start, []
    for now in runs:
        for window in schedule.windows(position, now):
            assert window.end <= now
            found.append(window)
            position = window.end
    assert [w.start for w in found] == [start, *(w.end for w in found)][: len(found)]
    assert found == list(schedule.windows(start, runs[-1])), "when it is run does not change the windows"
    assert schedule.after(position) > runs[-1], "nothing that is due is left out"


@given(schedules, STARTS, st.integers(0, 86_400 * 10**6))
def test_ticks_rise(schedule: Schedule, base: datetime, offset_us: int) -> None:
    instant = base + timedelta(microseconds=offset_us)
    assert schedule.at_or_before(instant) <= instant < schedule.after(instant)


def test_an_hour_that_the_clock_repeats_is_run_twice_and_one_that_it_skips_not_at_all() -> None:
    hourly = Schedule.of("5 * * * *", "America/New_York")
    for day in (datetime(2026, 3, 8, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)):
        windows = list(hourly.windows(day + timedelta(minutes=5), day + timedelta(hours=24, minutes=5)))
        assert [w.length for w in windows] == [timedelta(hours=1)] * 24


def test_a_local_time_that_the_clock_skips_counts_at_the_end_of_the_skipped_hour() -> None:
    nightly = Schedule.of("30 2 * * *", "America/New_York")
    assert nightly.after(datetime(2026, 3, 8, 5, tzinfo=UTC)) == datetime(2026, 3, 8, 7, tzinfo=UTC)
    assert nightly.after(datetime(2026, 3, 8, 7, tzinfo=UTC)) == datetime(2026, 3, 9, 6, 30, tzinfo=UTC)


def test_a_tick_is_its_own_last_tick() -> None:
    tick = datetime(2026, 1, 1, 0, 5, tzinfo=UTC)
    for schedule in (Schedule.of("5 * * * *"), Schedule.of(timedelta(minutes=5))):
        assert schedule.at_or_before(tick) == tick
        assert schedule.at_or_before(tick - timedelta(microseconds=1)) < tick
        assert schedule.after(tick) > tick


@given(
    st.integers(1, 10**6), st.one_of(st.none(), st.integers(1, 10**5).map(lambda s: timedelta(seconds=s)), schedules)
)
def test_the_steps_of_a_backfill_tile_its_range(seconds: int, step: timedelta | Schedule | None) -> None:
    start = datetime(2026, 3, 7, 3, 4, 5, 6, tzinfo=UTC)
    end = start + timedelta(seconds=min(seconds, 3000 if isinstance(step, timedelta) else seconds))
    windows = list(cut(start, end, step))
    assert (windows[0].start, windows[-1].end) == (start, end)
    assert [w.end for w in windows[:-1]] == [w.start for w in windows[1:]]


@pytest.mark.parametrize(
    "cron", ["", "5 * * *", "@hourly", "* * * * * *", "60 * * * *", "H * * * *", "0 0 30 2 *", "a b c d e"]
)
def test_what_is_no_cron_expression_is_refused_when_it_is_declared(cron: str) -> None:
    with pytest.raises(InvalidValue, match="schedule"):
        Schedule.of(cron)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../etc/passwd", "", "/etc/localtime"])
def test_an_unknown_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(InvalidValue, match="timezone"):
        Schedule.of("5 * * * *", zone)


def test_too_short_an_interval_is_refused() -> None:
    for every in (timedelta(0), timedelta(seconds=-1), timedelta(milliseconds=999)):
        with pytest.raises(InvalidValue, match="schedule"):
            Schedule.of(every)


def test_a_window_is_in_utc_not_empty_and_not_naive() -> None:
    start = datetime.fromisoformat("2026-03-01T12:00:00+01:00")
    window = Window(start, start + timedelta(hours=1))
    assert str(window) == "2026-03-01T11:00:00Z/2026-03-01T12:00:00Z"
    with pytest.raises(InvalidValue, match="end"):
        Window(start, start)
    with pytest.raises(InvalidValue, match="start"):
        Window(start.replace(tzinfo=None), start)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_position_is_an_instant_to_the_microsecond(instant: datetime) -> None:
    assert parse_position(format_instant(instant)) == instant


def test_a_stream_s_position_is_no_instant() -> None:
    assert parse_position("") is None
    with pytest.raises(InvalidValue, match="stream"):
        parse_position("20260301")
