"""Every rule of an expectation, with its edges, on rows cut in any way."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.tables import arrow_type
from foresight.values import (
    Column,
    DataType,
    Expectation,
    ExpectationsBroken,
    FailurePolicy,
    FeatureGroup,
    Field,
    Fresh,
    NotNull,
    OneOf,
    Range,
    Unique,
)
from services.feature_store.groups import StoredGroup
from services.feature_store.tables.row_source import RowSource, TableRows, read_all
from services.feature_store.tables.workspace import Workspace
from services.feature_store.writes.incoming_rows import IncomingRows

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
UTC_MICROS = pa.timestamp("us", "UTC")
KEY = Field("id", DataType.INT64)
FEATURES = (
    Field("number", DataType.FLOAT64),
    Field("count", DataType.INT64),
    Field("flag", DataType.BOOL),
    Field("word", DataType.STRING),
    Field("moment", DataType.TIMESTAMP),
    Field("pair", DataType.FLOAT_VECTOR, 2),
)
BIG = 2**53


class CutRows:
    """Rows that come in batches of the given sizes, again and again."""

    def __init__(self, table: pa.Table, sizes: list[int]) -> None:
        self._table = table.combine_chunks()
        self._sizes = sizes

    @property
    def schema(self) -> pa.Schema:
        return self._table.schema

    @property
    def num_rows(self) -> int:
        return int(self._table.num_rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        start = 0
        for size in [*self._sizes, self.num_rows]:
            if start < self.num_rows and size:
                yield from self._table.slice(start, size).combine_chunks().to_batches()
                start += size


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("workspace"))


def group(*expectations: Expectation, policy: FailurePolicy = FailurePolicy.QUARANTINE, **options: Any) -> FeatureGroup:
    return FeatureGroup("readings", (KEY,), FEATURES, expectations=expectations, failure_policy=policy, **options)


def table(**columns: list[Any]) -> pa.Table:
    """Rows with ids 0, 1, ... and an hour old, unless said otherwise."""
    n = len(next(iter(columns.values())))
    types = {f.name: arrow_type(f) for f in (KEY, *FEATURES)} | {"event_time": UTC_MICROS, "deleted": pa.bool_()}
    given = {"id": list(range(n)), "event_time": [NOW - timedelta(hours=1)] * n} | columns
    return pa.table({name: pa.array(values, types[name]) for name, values in given.items()})


def apart(described: FeatureGroup, rows: RowSource, workspace: Workspace) -> dict[int, list[str]]:
    """What each row that is kept apart broke, by its id; the others are accepted, each once."""
    incoming = IncomingRows(StoredGroup(1, described), rows, NOW, workspace, digested=False)
    try:
        accepted = [i for batch in incoming.accepted() for i in batch.column("id").to_pylist()]
        outcome = incoming.finish()
        quarantined = outcome.quarantined
        found = {} if quarantined is None else {r["id"]: r["broken"] for r in read_all(quarantined).to_pylist()}
        assert sorted([*accepted, *found]) == sorted(read_all(rows).column("id").to_pylist())
        assert outcome.rows == len(accepted)
        assert outcome.quarantined_rows == len(found)
        assert read_all(incoming.stored_rows()).column("id").to_pylist() == accepted
        counts = {b.name: b.rows for b in outcome.broken}
        assert counts == {name: sum(name in broken for broken in found.values()) for name in counts}
        assert set(outcome.held) == {e.name for e in described.expectations} - set(counts)
        return found
    finally:
        incoming.close()


def words(*values: str) -> Column:
    return Column.build("values", DataType.STRING, values)


def integers(*values: int) -> Column:
    return Column.build("values", DataType.INT64, values)


CASES: list[tuple[Expectation, list[Any], list[int]]] = [
    (Expectation(Range(0, 1), "number"), [0.0, 1.0, -0.0, None, -1e-9, 1.0000001], [4, 5]),
    (Expectation(Range(min=0.5), "number"), [0.5, 1e308, 0.49], [2]),
    (Expectation(Range(max=0.5), "number"), [0.5, -1e308, 0.51], [2]),
    # Integers are compared as integers.
    (Expectation(Range(max=BIG), "count"), [BIG, BIG + 1, None, -(2**63)], [1]),
    (Expectation(Range(min=-BIG), "count"), [-BIG, -BIG - 1, 2**63 - 1], [1]),
    (Expectation(Range(0.5, 2.5), "count"), [0, 1, 2, 3], [0, 3]),
    (Expectation(Range(-1e300, 1e300), "count"), [2**63 - 1, -(2**63)], []),
    (Expectation(Range(min=1e300), "count"), [2**63 - 1, None], [0]),
    (Expectation(Range(max=-1e300), "count"), [-(2**63), None], [0]),
    (Expectation(OneOf(words("a", "é")), "word"), ["a", "é", None, "", "A"], [3, 4]),
    (Expectation(OneOf(integers(1, 2)), "count"), [1, 2, None, 0], [3]),
    (Expectation(OneOf(Column.build("v", DataType.BOOL, [True])), "flag"), [True, False, None], [1]),
    (Expectation(NotNull(), "number"), [0.0, None], [1]),
    (Expectation(NotNull(), "pair"), [[1.0, 2.0], None], [1]),
    (Expectation(Unique(), "word"), ["a", "b", "a", None, None, ""], [0, 2]),
    (Expectation(Unique(), "count"), [1, 2, 2, 2, None, None], [1, 2, 3]),
    (Expectation(Unique(), "number"), [0.0, -0.0, 1.0], [0, 1]),
    (Expectation(Unique(), "flag"), [True, False, None], []),
    (Expectation(Unique(), "moment"), [NOW, NOW, NOW + timedelta(microseconds=1)], [0, 1]),
    (
        Expectation(Fresh(timedelta(hours=1))),
        [NOW - timedelta(hours=1), NOW - timedelta(hours=1, microseconds=1), NOW + timedelta(days=1)],
        [1],
    ),
]


@pytest.mark.parametrize(("expectation", "values", "broken"), CASES)
@pytest.mark.parametrize("sizes", [[], [1, 1, 1, 1]])
def test_each_rule_and_its_edges(
    expectation: Expectation, values: list[Any], broken: list[int], sizes: list[int], workspace: Workspace
) -> None:
    """Bounds belong to a range, an age equal to the bound is fresh, NULL keeps every rule but not_null."""
    rows = CutRows(table(**{expectation.column or "event_time": values}), sizes)
    assert apart(group(expectation), rows, workspace) == {row: [expectation.name] for row in broken}


def test_a_feature_that_is_left_out_is_null_or_its_default(workspace: Workspace) -> None:
    """A column that nobody sent breaks not_null; one with a default is judged by that."""
    rules = (
        Expectation(NotNull(), "number"),
        Expectation(Range(0, 1), "number"),
        Expectation(Range(max=1), "count"),
        Expectation(NotNull(), "count"),
        Expectation(Unique(), "count"),
    )
    rows = CutRows(table(word=["a", "b"]), [1])
    assert set(apart(group(*rules), rows, workspace)[0]) == {"number_not_null", "count_not_null"}
    defaulted = group(*rules, defaults={"count": Column.build("count", DataType.INT64, [5])})
    assert set(apart(defaulted, rows, workspace)[0]) == {"number_not_null", "count_range", "count_unique"}


def test_tombstones_keep_every_rule(workspace: Workspace) -> None:
    """They have no values; nor do they make another row's value come twice."""
    rules = (
        Expectation(NotNull(), "number"),
        Expectation(Unique(), "count"),
        Expectation(Fresh(timedelta(minutes=1))),
    )
    rows = table(number=[None, None, 1.0], count=[1, 1, 1], deleted=[True, None, False])
    names = ["number_not_null", "count_unique", "fresh"]
    assert apart(group(*rules), CutRows(rows, [2]), workspace) == {1: names, 2: names[1:]}


def test_a_row_names_all_that_it_breaks(workspace: Workspace) -> None:
    """In the order of the group."""
    rules = (
        Expectation(Range(0, 1), "number", "small"),
        Expectation(NotNull(), "word"),
        Expectation(Unique(), "count"),
    )
    rows = table(number=[2.0, 0.5, 0.5, 3.0], word=["a", "b", None, None], count=[1, 2, 3, 1])
    assert apart(group(*rules), TableRows(rows), workspace) == {
        0: ["small", "count_unique"],
        2: ["word_not_null"],
        3: ["small", "word_not_null", "count_unique"],
    }


def test_a_refusal_counts_and_shows_samples_of_each_expectation(workspace: Workspace) -> None:
    """One violation for each, whatever the number of rows."""
    rules = (
        Expectation(Range(0, 1), "number", "small"),
        Expectation(NotNull(), "word"),
        Expectation(Unique(), "count"),
        Expectation(Fresh(timedelta(minutes=1))),
    )
    described = group(*rules, policy=FailurePolicy.REJECT)
    rows = table(number=[0.5] * 500 + [7.5] * 500, word=["a"] * 1_000, count=[*range(998), 0, 0])
    for source in (TableRows(rows), CutRows(rows, [300, 1, 400])):
        incoming = IncomingRows(StoredGroup(1, described), source, NOW, workspace, digested=False)
        assert sum(batch.num_rows for batch in incoming.accepted()) == 0
        with pytest.raises(ExpectationsBroken) as broken:
            incoming.finish()
        incoming.close()
        texts = {v.field: v.description for v in broken.value.violations}
        assert list(texts) == ["arrow.number", "arrow.count", "arrow.event_time"]
        assert texts["arrow.number"].startswith(
            "breaks small in 500 of 1000 rows, such as id 500, event_time 2026-03-01T11:00:00Z, number 7.5; id 501"
        )
        assert texts["arrow.count"].startswith("breaks count_unique in 3 of 1000 rows, such as id 0,")
        assert "1000 of 1000" in texts["arrow.event_time"]
        assert all(len(text) <= 200 for text in texts.values())


@given(
    values=st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=1, max_size=40),
    sizes=st.lists(st.integers(0, 10), max_size=8),
)
def test_what_breaks_does_not_depend_on_how_rows_are_cut(
    values: list[int | None], sizes: list[int], workspace: Workspace
) -> None:
    """Against a plain account of the same rules."""
    rules = (
        Expectation(Unique(), "count"),
        Expectation(Range(1, 4), "count"),
        Expectation(OneOf(integers(0, 1, 2, 3)), "count"),
        Expectation(NotNull(), "count"),
    )
    expected: dict[int, list[str]] = {}
    for row, value in enumerate(values):
        broken = []
        if value is not None and values.count(value) > 1:
            broken.append("count_unique")
        if value is not None and not 1 <= value <= 4:
            broken.append("count_range")
        if value is not None and value > 3:
            broken.append("count_one_of")
        if value is None:
            broken.append("count_not_null")
        if broken:
            expected[row] = broken
    assert apart(group(*rules), CutRows(table(count=values), sizes), workspace) == expected


def test_samples_are_three_and_short(workspace: Workspace) -> None:
    """Whatever the values are."""
    described = group(Expectation(OneOf(words("a")), "word"))
    rows = table(word=["x" * 4_000, "y\n", "z", "w"])
    incoming = IncomingRows(StoredGroup(1, described), TableRows(rows), NOW, workspace, digested=False)
    incoming.check_all()
    [broken] = incoming.finish().broken
    assert broken.rows == 4
    assert len(broken.samples) == 3
    assert broken.samples[1] == r"id 1, event_time 2026-03-01T11:00:00Z, word 'y\n'"
    assert max(map(len, broken.samples)) < 120
    incoming.close()


def test_many_values_are_unique_or_not(workspace: Workspace) -> None:
    """More than are hashed in one piece, with repetitions far apart."""
    n = 300_000
    counts = np.arange(n)
    counts[[10, n - 1]] = 77
    rows = pa.table(
        {
            "id": np.arange(n),
            "event_time": pa.array(np.full(n, 1_770_000_000_000_000), UTC_MICROS),
            "count": counts,
        }
    )
    found = apart(group(Expectation(Unique(), "count")), TableRows(rows), workspace)
    assert sorted(found) == [10, 77, n - 1]
