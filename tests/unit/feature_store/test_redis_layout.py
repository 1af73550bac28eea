"""What a value of the online store in a cluster says as of an applied commit."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.feature_store.online.redis_layout import Names, State, Unsettled, bucket_of, generations_of, row_as_of


def row(commit: int, time: int = 0) -> bytes:
    """The head of a row."""
    return struct.pack("<BBqQHI", 2, 0, time, commit, 0, 24)


def value(floor: int, current: bytes, previous: bytes = b"") -> bytes:
    """A stored value."""
    return struct.pack("<QI", floor, len(current)) + current + previous


@pytest.mark.parametrize(
    ("stored", "applied", "found"),
    [
        (value(3, row(5)), 5, row(5)),
        (value(3, row(5)), 9, row(5)),
        (value(3, row(5)), 3, None),
        (value(3, row(5)), 1, None),
        (value(3, row(5), row(2)), 3, row(2)),
        (value(3, row(5), row(2)), 2, row(2)),
        (value(3, row(5), row(2)), 7, row(5)),
    ],
)
def test_a_value_tells_what_an_applied_commit_has(stored: bytes, applied: int, found: bytes | None) -> None:
    assert row_as_of(stored, applied) == found


@pytest.mark.parametrize(
    ("stored", "applied"),
    # Above the floor another row may have been the latest; below the previous row's commit there was one before it.
    [(value(3, row(5), row(2)), 4), (value(3, row(5)), 4), (value(3, row(5), row(2)), 1)],
)
def test_a_value_that_does_not_tell_says_so(stored: bytes, applied: int) -> None:
    with pytest.raises(Unsettled):
        row_as_of(stored, applied)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_batches_in_order_are_always_told(times: list[int], data: st.DataObject) -> None:
    """One applier, any batches: as of the commit before the batch that is under way, and as of its end."""
    stored: bytes | None = None
    latest: list[bytes | None] = [None]
    applied = 0
    for commit, time in enumerate(times, 1):
        known = latest[-1]
        newer = known is None or time >= struct.unpack_from("<q", known, 2)[0]
        latest.append(row(commit, time) if newer else known)
    while applied < len(times):
        last = data.draw(st.integers(applied + 1, len(times)))
        if latest[last] != latest[applied]:
            stored = value(applied, latest[last] or b"", latest[applied] or b"")
        for asked in (applied, last):
            assert (None if stored is None else row_as_of(stored, asked)) == latest[asked]
        applied = last


def test_all_generations_of_a_bucket_lie_in_one_slot() -> None:
    """And the state's keys too, as scripts name several."""
    names = Names("shop")
    tags = {name[name.index("{") : name.index("}") + 1] for name in (names.bucket("a", 3), names.bucket("b", 3))}
    assert tags == {"{shop.3}"}
    assert {name.split(":")[1] for name in (names.state, names.hold, names.building)} == {"{shop}"}


@given(st.binary(max_size=40), st.integers(1, 16_384))
def test_a_bucket_is_one_of_those_there_are(entity: bytes, buckets: int) -> None:
    assert 0 <= bucket_of(entity, buckets) < buckets


def test_a_state_is_that_of_the_live_generation_or_of_one_that_is_named() -> None:
    fields = {b"generation": b"a", b"buckets:a": b"4", b"applied:a": b"7", b"buckets:b": b"8", b"erasure:b": b"2"}
    assert State.of(fields) == State("a", 4, 7, 0)
    assert State.of(fields, "b") == State("b", 8, 0, 2)
    assert State.of(fields, "c") is None
    assert State.of({}) is None
    assert sorted(generations_of(fields)) == ["a", "b"]
