"""The values that were served last: which of them may stand in for a missing one, and how many are kept."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.values import Column, DataType, FeatureStatus, FeatureView, Field, MissingPolicy, ViewFeature, ViewSource
from services.predictor.last_known import LastKnown
from services.predictor.plans import ViewPlan, plan_view
from services.predictor.vectors import FeatureValues, SourceRows, Vectors

KEEP_S = 100.0
# In microseconds: of the view, and of the policy.
EXPIRES, AGE_MAX = 15, 25
UNAVAILABLE, PRESENT, NOT_FOUND = FeatureStatus.UNAVAILABLE, FeatureStatus.PRESENT, FeatureStatus.NOT_FOUND


def plan_of(*types: DataType, policy: MissingPolicy = MissingPolicy.LAST_KNOWN) -> ViewPlan:
    """A view with a source of one feature per type, and one without the policy; keyed by `k` and `l`."""
    age = timedelta(microseconds=AGE_MAX) if policy is MissingPolicy.LAST_KNOWN else None
    names = [f"f{i}" for i in range(len(types))]
    return plan_view(
        FeatureView(
            "v",
            Field("y", DataType.BOOL),
            sources=(
                *(
                    ViewSource(f"g_{n}", (ViewFeature(n, missing=policy, last_known_max_age=age),), group_version=1)
                    for n in names
                ),
                ViewSource("other", (ViewFeature("plain"),), group_version=1),
            ),
            version=1,
            entity_keys=(Field("k", DataType.INT64), Field("l", DataType.STRING)),
            features=(
                *(Field(n, t, 3 if t is DataType.FLOAT_VECTOR else 0) for n, t in zip(names, types, strict=True)),
                Field("plain", DataType.INT64),
            ),
        )
    )


@dataclass(frozen=True)
class Row:
    """What a source has for an entity."""

    at: int
    commit: int
    value: Any


def keys(*numbers: int) -> tuple[Column, Column]:
    return (
        Column.build("k", DataType.INT64, numbers),
        Column.build("l", DataType.STRING, [f"key {n}" for n in numbers]),
    )


def status_of(row: Row | None, asked_at: int) -> FeatureStatus:
    if row is None:
        return NOT_FOUND
    if row.at > asked_at:
        return FeatureStatus.FUTURE
    if asked_at - row.at > EXPIRES:
        return FeatureStatus.EXPIRED
    return PRESENT if row.value is not None else FeatureStatus.NULL


def answer(plan: ViewPlan, rows: list[Row | None], asked_at: list[int], applied_commit: int = 100) -> Vectors:
    """What the feature store answers when every source has the same rows."""
    statuses = bytes(status_of(row, at) for row, at in zip(rows, asked_at, strict=True))
    features = []
    for planned in plan.features:
        values = [r.value if s == PRESENT and r else None for r, s in zip(rows, statuses, strict=True)]
        field = planned.field
        if field.name == "plain":
            values = [None if v is None else 1 for v in values]
        features.append(FeatureValues(Column.build(field.name, field.type, values, field.dimension), statuses))
    times, commits = [r.at if r else 0 for r in rows], [r.commit if r else 0 for r in rows]
    return Vectors(tuple(features), tuple(SourceRows(g, times, commits) for g in plan.groups), applied_commit)


def known(vectors: Vectors, row: int = 0, feature: int = 0) -> tuple[Any, int, int] | None:
    """The value that may stand in, with its row's event time and commit."""
    found = vectors.features[feature].known
    if found is None or not found.column.is_valid(row):
        return None
    return found.column.python(row), found.event_time_micros[row], found.commits[row]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Ask:
    """One row of a request: `row` is that of the store, None: the entity is not there, -1: the store is away."""

    key: int
    asked_at: int
    row: int | None
    pause_s: int


ROWS = [Row(10, 1, 1.5), Row(20, 2, None), Row(20, 3, 2.5), Row(30, 4, 3.5)]
ASKS = st.builds(
    Ask,
    key=st.integers(0, 1),
    asked_at=st.integers(5, 60),
    row=st.none() | st.integers(-1, len(ROWS) - 1),
    pause_s=st.sampled_from([0, 0, 40, 90]),
)


def expected(history: list[tuple[float, Ask]], now: float, ask: Ask) -> tuple[Any, int, int] | None:
    """From everything that was answered: the last row served, if it is there still and may be used."""
    answered = [(t, a) for t, a in history if a.key == ask.key and a.row != -1]
    served = [
        i
        for i, (_, a) in enumerate(answered)
        if status_of(None if a.row is None else ROWS[a.row], a.asked_at) is PRESENT
    ]
    if not served or any(a.row is None for _, a in answered[served[-1] :]):
        return None
    number = answered[served[-1]][1].row
    assert number is not None
    row = ROWS[number]
    # Since it was first served without another one, or none, in between.
    breaks = [i for i, (_, a) in enumerate(answered) if a.row is None or (i in served and a.row != number)]
    first = max(breaks, default=-1) + 1
    seen = max(t for t, a in answered[first:] if a.row == number)
    earliest = min(answered[i][1].asked_at for i in served if i >= first)
    usable = row.at < ask.asked_at or earliest <= ask.asked_at
    fresh = ask.asked_at - row.at <= AGE_MAX and now - seen <= KEEP_S
    return (row.value, row.at, row.commit) if usable and fresh else None


@given(st.lists(ASKS, max_size=25), st.booleans())
def test_what_stands_in_is_the_last_row_served_and_nothing_older_deleted_or_later(
    asks: list[Ask], together: bool
) -> None:
    """As by the whole history of answers; also when requests are answered together."""
    plan, clock = plan_of(DataType.FLOAT64), Clock()
    cache = LastKnown(keep_s=KEEP_S, now=clock)
    history: list[tuple[float, Ask]] = []
    batches = [asks] if together and all(a.row != -1 for a in asks) and asks else [[a] for a in asks]
    for batch in batches:
        clock.now += 0 if len(batch) > 1 else batch[0].pause_s
        columns, times = keys(*(a.key for a in batch)), [a.asked_at for a in batch]
        if batch[0].row == -1:
            vectors = cache.recall(plan, columns, times)
            assert set(vectors.features[0].statuses) == {UNAVAILABLE}
        else:
            rows = [None if a.row is None else ROWS[a.row] for a in batch]
            vectors = cache.observe(plan, columns, times, answer(plan, rows, times))
        for i, ask in enumerate(batch):
            history.append((clock.now, ask))
            status = vectors.features[0].statuses[i]
            wanted = None if status in (PRESENT, NOT_FOUND) else expected(history, clock.now, ask)
            assert known(vectors, i) == wanted
        assert vectors.features[-1].known is None


@pytest.mark.parametrize(
    ("asked_at", "usable"), [(9, False), (10, False), (11, True), (10 + AGE_MAX, True), (11 + AGE_MAX, False)]
)
def test_a_value_is_used_after_its_row_and_up_to_its_age(asked_at: int, usable: bool) -> None:
    """An age equal to the bound is still fresh."""
    plan = plan_of(DataType.FLOAT64)
    cache = LastKnown()
    cache.observe(plan, keys(1), [12], answer(plan, [ROWS[0]], [12]))
    assert (known(cache.recall(plan, keys(1), [asked_at])) is not None) == usable
    cache.observe(plan, keys(1), [10], answer(plan, [ROWS[0]], [10]))
    # The store itself has served it at its own time: the group is not strict.
    assert (known(cache.recall(plan, keys(1), [asked_at])) is not None) == (usable or asked_at == 10)


def test_an_answer_that_was_overtaken_brings_nothing_back() -> None:
    """The entity was deleted by commit 8, and the answer as of commit 7 comes later."""
    plan = plan_of(DataType.FLOAT64)
    cache = LastKnown()
    cache.observe(plan, keys(1), [12], answer(plan, [ROWS[0]], [12], 7))
    cache.observe(plan, keys(1), [12], answer(plan, [None], [12], 8))
    cache.observe(plan, keys(1), [12], answer(plan, [ROWS[0]], [12], 7))
    assert known(cache.recall(plan, keys(1), [12])) is None
    cache.observe(plan, keys(1), [12], answer(plan, [ROWS[0]], [12], 9))
    assert known(cache.recall(plan, keys(1), [12])) == (1.5, 10, 1)


def test_values_of_every_type_come_back_to_the_bit() -> None:
    values = {
        DataType.INT64: -(2**63),
        DataType.FLOAT64: 0.1,
        DataType.BOOL: True,
        DataType.STRING: "Zürich",
        DataType.TIMESTAMP: 123_456_789,
        DataType.FLOAT_VECTOR: [0.1, -2.0, 3.5],
    }
    for type, value in values.items():
        plan = plan_of(type)
        cache = LastKnown()
        served = answer(plan, [Row(10, 1, value), Row(11, 2, value)], [12, 12])
        cache.observe(plan, keys(1, 2), [12, 12], served)
        found = cache.recall(plan, keys(2, 3, 1), [12, 12, 12]).features[0].known
        assert found is not None
        assert list(found.commits) == [2, 0, 1]
        assert not found.column.is_valid(1)
        assert found.column.take([2, 0]).equals(served.features[0].column)


def test_views_without_the_policy_leave_nothing() -> None:
    plan = plan_of(DataType.FLOAT64, policy=MissingPolicy.NULL)
    cache = LastKnown()
    vectors = answer(plan, [ROWS[0]], [12])
    assert cache.observe(plan, keys(1), [12], vectors) is vectors
    assert (len(cache), cache.bytes) == (0, 0)


def test_at_most_so_many_entities_are_kept_and_those_not_used_go_first() -> None:
    plan, gone = plan_of(DataType.FLOAT64), list[int]()
    cache = LastKnown(rows_max=3, evicted=gone.append)
    for number in (1, 2, 3):
        cache.observe(plan, keys(number), [12], answer(plan, [ROWS[0]], [12]))
    cache.recall(plan, keys(1), [12])
    cache.observe(plan, keys(4), [12], answer(plan, [ROWS[0]], [12]))
    assert (len(cache), gone) == (3, [1])
    found = cache.recall(plan, keys(1, 2, 3, 4), [12] * 4)
    assert [known(found, i) is not None for i in range(4)] == [True, False, True, True]


def test_entities_that_are_not_there_take_no_room() -> None:
    plan = plan_of(DataType.FLOAT64)
    cache = LastKnown()
    cache.observe(plan, keys(1, 2), [12, 5], answer(plan, [None, ROWS[0]], [12, 5]))
    assert len(cache) == 0


def test_the_bound_on_bytes_holds_and_is_honest() -> None:
    """What is counted is about what is taken; a value that does not fit at all is not kept."""
    plan = plan_of(DataType.STRING, DataType.FLOAT64, DataType.FLOAT_VECTOR)
    bytes_max = 1 << 20
    cache = LastKnown(bytes_max=bytes_max)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(0, 5_000, 500):
            numbers = range(number, number + 500)
            row = answer(plan, [None] * 500, [12] * 500)
            texts = [f"text of {n}" + "x" * (n % 100) for n in numbers]
            features = (
                FeatureValues(Column.build("f0", DataType.STRING, texts), bytes([PRESENT]) * 500),
                FeatureValues(Column.build("f1", DataType.FLOAT64, [n / 7 for n in numbers]), bytes([PRESENT]) * 500),
                FeatureValues(
                    Column.build("f2", DataType.FLOAT_VECTOR, [[1.0, 2.0, float(n)] for n in numbers], 3),
                    bytes([PRESENT]) * 500,
                ),
                row.features[-1],
            )
            sources = tuple(SourceRows(s.group, [10 + n for n in range(500)], [10**10] * 500) for s in row.sources)
            cache.observe(plan, keys(*numbers), [600] * 500, Vectors(features, sources, 10**10))
            assert cache.bytes <= bytes_max
        del texts, features, sources, row
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert bytes_max * 0.95 < cache.bytes
    assert 0.5 < taken / cache.bytes < 1.1
    assert 500 < len(cache) < 5_000
    small = LastKnown(bytes_max=2_000)
    single = plan_of(DataType.STRING)
    small.observe(single, keys(1), [12], answer(single, [Row(10, 1, "x" * 4_000)], [12]))
    assert (len(small), small.bytes) == (0, 0)
