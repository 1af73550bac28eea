"""What every engine of statistics keeps, compared with plain Python over exact fractions."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresight.values.instants import EPOCH
from services.feature_store.statistics.description import (
    RANK_STEPS,
    ColumnStatistics,
    Statistics,
    StatisticsEngine,
    TextLengths,
)
from services.feature_store.statistics.engine import SketchingEngine
from services.feature_store.tables.row_source import TableRows

# As it is; and with runs and blocks so short that ordinary examples go through every sketch.
RUN_VALUES = 64
ENGINES: dict[str, StatisticsEngine] = {
    "default": SketchingEngine(),
    "short_runs": SketchingEngine(run_values=RUN_VALUES, block_rows=16),
}
UTC_MICROS = pa.timestamp("us", "UTC")
# Examples of hundreds of rows.
BRIEFLY = settings(max_examples=40)

floats = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers(-(2**63), 2**63 - 1)
few_floats = st.sampled_from([0.0, -0.0, 1.5, -3.25, 1e300, 5e-324])
texts = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(["", "a", "ä", "𝒳", "same"])
instants = st.integers(-62_000_000_000_000_000, 250_000_000_000_000_000)


def of_any(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Few rows, and enough for several runs."""
    rows = st.none() | values
    return st.lists(rows, max_size=20) | st.lists(rows, min_size=100, max_size=300)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> StatisticsEngine:
    return ENGINES[request.param]


def described(engine: StatisticsEngine, values: Sequence[Any] | pa.Array, type: pa.DataType, cut: int = 7) -> Any:
    """The statistics of one column whose rows come in batches of `cut`."""
    array = values if isinstance(values, pa.Array) else pa.array(values, type)
    table = pa.table({"x": array})
    return engine.describe(table.schema, table.to_batches(max_chunksize=cut)).columns[0]


def check_numbers(found: ColumnStatistics, rows: Sequence[Any], *, exact: bool) -> None:
    """All figures of a column of numbers against the definitions."""
    values = sorted(v for v in rows if v is not None)
    n = len(values)
    assert (found.rows, found.nulls) == (len(rows), len(rows) - n)
    assert found.distinct == len(set(values))
    if not n:
        assert replace(found, name="x") == ColumnStatistics("x", found.type, len(rows), len(rows), distinct=0)
        return
    assert found.minimum == values[0]
    assert found.maximum == values[-1]
    check_moments(found, values)
    assert sum(found.histogram_counts) == n
    assert len(found.histogram_edges) == len(found.histogram_counts) + 1
    assert len(found.histogram_counts) <= 20
    assert list(found.histogram_edges) == sorted(found.histogram_edges)
    assert len(found.ranks) == RANK_STEPS + 1
    assert list(found.ranks) == sorted(found.ranks)
    if exact:
        assert list(found.ranks) == [float(values[max(1, -(-j * n // RANK_STEPS)) - 1]) for j in range(RANK_STEPS + 1)]
    else:
        levels = math.ceil(math.log2(max(n / RUN_VALUES, 1))) + 1
        assert rank_error(found.ranks, values) <= levels / (2 * RUN_VALUES) + 1 / n
    counts = Counter(values)
    expected = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:10]
    assert list(zip(found.top_values, found.top_counts, strict=True)) == expected


def check_moments(found: ColumnStatistics, values: Sequence[Any]) -> None:
    """Mean and standard deviation against exact fractions."""
    n = len(values)
    exact = [Fraction(v) for v in values]
    mean = sum(exact, Fraction(0)) / n
    scale = max(abs(v) for v in exact)
    assert found.mean is not None
    assert abs(Fraction(found.mean) - mean) <= scale * Fraction(1, 10**14) + Fraction(5e-324)
    if n == 1:
        assert found.standard_deviation is None
        return
    variance = sum((v - mean) ** 2 for v in exact) / (n - 1)
    root = Fraction(math.isqrt(int(variance * 4**1200)), 2**1200)
    if found.standard_deviation is None:
        assert root > sys.float_info.max
        return
    # Values that differ in their last digits only cannot say more about their spread than those digits.
    slack = root * Fraction(1, 10**9) + scale * Fraction(1, 10**15) + 2 * Fraction(5e-324)
    assert abs(Fraction(found.standard_deviation) - root) <= slack


def rank_error(ranks: Sequence[float], values: Sequence[Any]) -> float:
    """By how much of all values the ranks miss what they stand for."""
    ordered = np.array([float(v) for v in values])
    wanted = np.arange(RANK_STEPS + 1) / RANK_STEPS
    low = np.searchsorted(ordered, ranks, "left") / len(values)
    high = np.searchsorted(ordered, ranks, "right") / len(values)
    return float(np.maximum(np.maximum(low - wanted, wanted - high), 0).max())


@BRIEFLY
@given(rows=of_any(floats) | of_any(few_floats), cut=st.integers(1, 100))
@pytest.mark.parametrize("name", ENGINES)
def test_floats_of_any_size_are_described_as_defined(name: str, rows: list[float | None], cut: int) -> None:
    found = described(ENGINES[name], rows, pa.float64(), cut)
    check_numbers(found, rows, exact=name == "default")
    assert found.type == "float64"


@BRIEFLY
@given(rows=of_any(integers) | of_any(st.integers(-3, 3)), cut=st.integers(1, 100))
@pytest.mark.parametrize("name", ENGINES)
def test_integers_keep_every_digit(name: str, rows: list[int | None], cut: int) -> None:
    found = described(ENGINES[name], rows, pa.int64(), cut)
    check_numbers(found, rows, exact=name == "default")
    assert all(type(value) is int for value in (found.minimum, found.maximum, *found.top_values) if value is not None)


@BRIEFLY
@given(rows=of_any(instants))
@pytest.mark.parametrize("name", ENGINES)
def test_instants_are_described_in_microseconds(name: str, rows: list[int | None]) -> None:
    found = described(
        ENGINES[name], [None if v is None else EPOCH + timedelta(microseconds=v) for v in rows], UTC_MICROS
    )
    check_numbers(found, rows, exact=name == "default")
    assert found.type == "timestamp"


@BRIEFLY
@given(
    rows=of_any(texts), cut=st.integers(1, 100), layout=st.sampled_from([pa.string(), pa.large_string(), "dictionary"])
)
@pytest.mark.parametrize("name", ENGINES)
def test_texts_are_counted_and_measured(name: str, rows: list[str | None], cut: int, layout: Any) -> None:
    array = pa.array(rows, pa.string())
    array = array.dictionary_encode() if layout == "dictionary" else array.cast(layout)
    found = described(ENGINES[name], array, array.type, cut)
    values = [v for v in rows if v is not None]
    counts = Counter(values)
    expected = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    assert found.type == "string"
    assert (found.rows, found.nulls, found.distinct) == (len(rows), len(rows) - len(values), len(counts))
    assert list(zip(found.top_values, found.top_counts, strict=True)) == expected
    assert (found.mean, found.ranks, found.histogram_counts) == (None, (), ())
    if values:
        lengths = [len(v) for v in values]
        assert (found.minimum, found.maximum) == (min(values), max(values))
        assert found.lengths == TextLengths(min(lengths), max(lengths), sum(lengths) / len(lengths))
        assert found.all_values_known


@BRIEFLY
@given(rows=of_any(st.booleans()))
@pytest.mark.parametrize("name", ENGINES)
def test_bools_are_counted_and_their_mean_is_the_share_of_true(name: str, rows: list[bool | None]) -> None:
    found = described(ENGINES[name], rows, pa.bool_())
    values = [v for v in rows if v is not None]
    assert (found.rows, found.nulls, found.distinct) == (len(rows), len(rows) - len(values), len(set(values)))
    assert dict(zip(found.top_values, found.top_counts, strict=True)) == Counter(values)
    if values:
        assert (found.minimum, found.maximum) == (min(values), max(values))
        check_moments(found, [int(v) for v in values])


@BRIEFLY
@given(rows=of_any(st.lists(st.floats(width=32, min_value=-1e6, max_value=1e6), min_size=3, max_size=3)))
@pytest.mark.parametrize("name", ENGINES)
def test_vectors_are_described_by_their_norms(name: str, rows: list[list[float] | None]) -> None:
    found = described(ENGINES[name], rows, pa.list_(pa.float32(), 3))
    norms = [math.sqrt(math.fsum(x * x for x in row)) for row in rows if row is not None]
    assert (found.type, found.rows, found.nulls) == ("float_vector", len(rows), len(rows) - len(norms))
    assert (found.distinct, found.top_values) == (None, ())
    if norms:
        assert found.minimum == pytest.approx(min(norms), rel=1e-12)
        assert found.maximum == pytest.approx(max(norms), rel=1e-12)
        assert found.mean == pytest.approx(math.fsum(norms) / len(norms), rel=1e-12)
        assert sum(found.histogram_counts) == len(norms)


@BRIEFLY
@given(rows=of_any(floats | st.sampled_from([math.nan, math.inf, -math.inf])))
@pytest.mark.parametrize("name", ENGINES)
def test_nan_and_infinity_count_as_null(name: str, rows: list[float | None]) -> None:
    found = described(ENGINES[name], pa.array(rows, pa.float64(), from_pandas=False), pa.float64())
    finite = [v if v is not None and math.isfinite(v) else None for v in rows]
    assert found == described(ENGINES[name], finite, pa.float64())


@BRIEFLY
@given(
    rows=st.lists(st.none() | floats, max_size=RUN_VALUES - 1),
    order=st.randoms(use_true_random=False),
    cuts=st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
def test_rows_that_fit_into_one_run_give_the_same_figures_in_any_order(rows: Any, order: Any, cuts: Any) -> None:
    shuffled = order.sample(rows, len(rows))
    engine = ENGINES["short_runs"]
    assert described(engine, rows, pa.float64(), cuts[0]) == described(engine, shuffled, pa.float64(), cuts[1])


@BRIEFLY
@given(seed=st.integers(0, 2**32 - 1), cuts=st.tuples(st.integers(5, 500), st.integers(5, 500)))
def test_batches_do_not_matter(seed: int, cuts: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    table = pa.table(
        {
            "number": random.normal(size=500),
            "text": [f"t{i}" for i in random.integers(0, 300, 500)],
            "many": pa.array(random.integers(0, 100, 500), mask=random.random(500) < 0.2),
        }
    )
    engine = ENGINES["short_runs"]
    first, second = (engine.describe(table.schema, table.to_batches(max_chunksize=cut)) for cut in cuts)
    assert first == second


def test_no_rows_have_columns_without_figures(engine: StatisticsEngine) -> None:
    schema = pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.bool_()), ("d", pa.list_(pa.float32(), 2))])
    found = engine.describe(schema, [])
    assert found == Statistics(
        0,
        (
            ColumnStatistics("a", "int64", 0, 0, distinct=0),
            ColumnStatistics("b", "string", 0, 0, distinct=0),
            ColumnStatistics("c", "bool", 0, 0, distinct=0),
            ColumnStatistics("d", "float_vector", 0, 0),
        ),
    )


def test_types_that_features_do_not_have_are_counted_only(engine: StatisticsEngine) -> None:
    days = described(engine, pa.array([1, None, 3], pa.date32()), pa.date32())
    assert days == ColumnStatistics("x", "date32[day]", 3, 1)
    assert described(engine, pa.nulls(3), pa.null()) == ColumnStatistics("x", "null", 3, 3)
    narrow = described(engine, pa.array([1, None, 3], pa.int16()), pa.int16())
    assert (narrow.type, narrow.minimum, narrow.maximum, narrow.mean) == ("int16", 1, 3, 2.0)


@pytest.mark.parametrize("pattern", ["shuffled", "sorted", "falling", "organ", "heavy"])
def test_ranks_of_many_runs_stay_within_the_bound(pattern: str) -> None:
    """1,000 runs of 64 values: the error grows with the levels of merging, not with the rows."""
    n = 64_000
    random = np.random.default_rng(3)
    values = {
        "shuffled": random.permutation(n).astype(np.float64),
        "sorted": np.arange(n, dtype=np.float64),
        "falling": np.arange(n, 0, -1, dtype=np.float64),
        "organ": np.concatenate([np.arange(n // 2), np.arange(n // 2)[::-1]]).astype(np.float64),
        "heavy": random.pareto(0.5, n),
    }[pattern]
    table = pa.table({"x": values})
    found = ENGINES["short_runs"].describe(table.schema, TableRows(table).batches()).columns[0]
    assert rank_error(found.ranks, np.sort(values).tolist()) <= 11 / (2 * RUN_VALUES)
    assert sum(found.histogram_counts) == n
    below = np.searchsorted(np.sort(values), np.array(found.histogram_edges[1:-1])) / n
    assert np.abs(np.cumsum(found.histogram_counts)[:-1] / n - below).max() <= 11 / (2 * RUN_VALUES)


def test_many_different_values_are_counted_within_the_stated_error() -> None:
    n = 300_000
    table = pa.table({"number": np.arange(n) * 3, "text": [f"id-{i}" for i in range(n)], "both": np.arange(n) % 90_000})
    found = SketchingEngine(run_values=1 << 14).describe(table.schema, TableRows(table).batches())
    for column, distinct in zip(found.columns, (n, n, 90_000), strict=True):
        # Four standard errors.
        assert column.distinct == pytest.approx(distinct, rel=4 * 0.008)
        assert column.distinct != distinct or column.name == "both"


def test_frequent_values_are_found_among_many_rare_ones() -> None:
    n = 200_000
    random = np.random.default_rng(5)
    numbers = random.integers(10**6, 10**9, n)
    for i in range(10):
        numbers[i * 1_000 : (i + 1) * 1_000 - i * 50] = i
    random.shuffle(numbers)
    table = pa.table({"number": numbers, "text": [str(v) for v in numbers]})
    found = SketchingEngine(run_values=1 << 14).describe(table.schema, TableRows(table).batches())
    truth = Counter(numbers.tolist())
    for column in found.columns:
        assert [int(v) for v in column.top_values[:10]] == list(range(10))
        for value, count in zip(column.top_values[:10], column.top_counts[:10], strict=True):
            assert truth[int(value)] - n / 4_096 <= count <= truth[int(value)]


def test_nulls_in_a_dictionary_are_nulls(engine: StatisticsEngine) -> None:
    encoded = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 1, 0]), pa.array(["a", None]))
    found = described(engine, encoded, encoded.type)
    assert (found.type, found.rows, found.nulls, found.top_values, found.top_counts) == ("string", 5, 3, ("a",), (2,))
