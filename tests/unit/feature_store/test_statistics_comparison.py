"""Comparisons of statistics against scipy and plain counting on the rows themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from services.feature_store.statistics.comparison import ColumnComparison, compare
from services.feature_store.statistics.description import Statistics
from services.feature_store.statistics.engine import SketchingEngine
from services.feature_store.statistics.tables import comparison_table, dump_statistics, load_statistics

NUMBERS, TEXTS, BOOLS = pa.float64(), pa.string(), pa.bool_()


def described(values: Any, type: pa.DataType) -> Statistics:
    """Statistics of one column, as they come back from where they are kept."""
    table = pa.table({"x": pa.array(values, type)})
    return load_statistics(dump_statistics(SketchingEngine().describe(table.schema, table.to_batches())))


def compared(reference: Any, current: Any, type: pa.DataType = NUMBERS) -> ColumnComparison:
    (found,) = compare(described(reference, type), described(current, type))
    return found


def stability(reference: Any, current: Any) -> float:
    """The index over the deciles of the reference, from the rows."""
    inner = np.unique(np.quantile(reference, np.arange(1, 10) / 10, method="inverted_cdf"))
    inner = inner[inner < np.max(reference)]
    shares = []
    for values in (reference, current):
        counts = np.bincount(np.searchsorted(inner, values, side="left"), minlength=len(inner) + 1)
        shares.append((counts + 0.5) / (len(values) + (len(inner) + 1) / 2))
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))


RANDOM = np.random.default_rng(7)
PAIRS = {
    "same": (RANDOM.normal(size=20_000), RANDOM.normal(size=30_000)),
    "shifted": (RANDOM.normal(size=20_000), RANDOM.normal(0.5, size=10_000)),
    "wider": (RANDOM.normal(size=20_000), RANDOM.normal(0, 3, size=10_000)),
    "skewed": (RANDOM.lognormal(0, 2, 30_000), RANDOM.lognormal(0.3, 2, 30_000)),
    "counts": (RANDOM.poisson(2, 20_000).astype(float), RANDOM.poisson(3, 20_000).astype(float)),
    "half_zeros": (np.maximum(RANDOM.normal(size=20_000), 0), np.maximum(RANDOM.normal(0.4, size=9_000), 0)),
    "few": (RANDOM.normal(size=37), RANDOM.normal(1, size=23)),
    "apart": (RANDOM.uniform(0, 1, 5_000), RANDOM.uniform(2, 3, 5_000)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_kolmogorov_smirnov_agrees_with_scipy_on_the_rows(name: str) -> None:
    reference, current = PAIRS[name]
    # With few rows a step of either function is as large as a row.
    tolerance = 0.006 if len(reference) > 1_000 else 0.006 + 2 / len(current)
    assert compared(reference, current).kolmogorov_smirnov == pytest.approx(
        float(ks_2samp(reference, current).statistic), abs=tolerance
    )


@pytest.mark.parametrize("name", PAIRS)
def test_stability_index_agrees_with_the_rows(name: str) -> None:
    reference, current = PAIRS[name]
    found = compared(reference, current).population_stability_index
    assert found == pytest.approx(stability(reference, current), rel=0.05, abs=0.01)


def test_mean_changes_in_deviations_of_the_reference() -> None:
    reference, current = PAIRS["shifted"]
    expected = (current.mean() - reference.mean()) / reference.std(ddof=1)
    assert compared(reference, current).mean_change == pytest.approx(float(expected), rel=1e-12)


def test_a_reference_that_does_not_vary_has_no_unit_for_changes() -> None:
    assert compared([3.0, 3.0], [3.0]).mean_change == 0.0
    assert compared([3.0, 3.0], [4.0]).mean_change is None
    assert compared([3.0, 3.0], [4.0]).kolmogorov_smirnov == 1.0
    assert compared([3.0], [3.0]).kolmogorov_smirnov == 0.0


def test_null_shares_are_of_all_rows() -> None:
    found = compared([1.0, None, 2.0, None], [1.0, 2.0, 3.0, None])
    assert found.null_share_change == -0.25
    assert (found.reference_rows, found.current_rows) == (4, 4)


def test_new_values_of_texts_are_a_share_of_the_rows_with_values() -> None:
    found = compared(["a", "b", None], ["a", "c", "c", None], TEXTS)
    assert found.new_values_share == pytest.approx(2 / 3)
    assert (found.kolmogorov_smirnov, found.mean_change) == (None, None)


def test_new_values_are_not_known_beyond_the_values_that_are_kept() -> None:
    many = [f"t{i}" for i in range(1_001)]
    assert compared(many, ["t1"], TEXTS).new_values_share is None
    assert compared(["t1"], many, TEXTS).new_values_share is None
    assert compared(many[:-1], ["t1", "new"], TEXTS).new_values_share == 0.5


def test_stability_of_texts_is_over_the_frequent_values_and_the_rest() -> None:
    reference, current = ["a"] * 60 + ["b"] * 40, ["a"] * 30 + ["b"] * 50 + ["new"] * 20
    r, c = (np.array(counts) + 0.5 for counts in ([60, 40, 0], [30, 50, 20]))
    r, c = r / r.sum(), c / c.sum()
    expected = float(np.sum((c - r) * np.log(c / r)))
    assert compared(reference, current, TEXTS).population_stability_index == pytest.approx(expected, rel=1e-12)


def test_bools_compare_as_values_and_by_their_mean() -> None:
    found = compared([True] * 3 + [False] * 7, [True] * 8 + [False] * 2, BOOLS)
    assert found.mean_change == pytest.approx(0.5 / np.std([1] * 3 + [0] * 7, ddof=1))
    assert found.new_values_share == 0.0
    assert found.population_stability_index is not None
    assert found.population_stability_index > 0.25


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_rows_do_not_differ_from_themselves(values: Sequence[float]) -> None:
    found = compared(values, values)
    assert found.population_stability_index == pytest.approx(0.0, abs=1e-12)
    assert (found.kolmogorov_smirnov, found.null_share_change) == (0.0, 0.0)
    assert found.mean_change in (0.0, None)


numbers = st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3).map(float))


@given(reference=numbers, current=numbers)
def test_any_two_columns_compare_within_bounds(reference: Any, current: Any) -> None:
    found = compared(reference, current)
    if any(v is not None for v in reference) and any(v is not None for v in current):
        assert found.kolmogorov_smirnov is not None
        assert found.population_stability_index is not None
        assert 0.0 <= found.kolmogorov_smirnov <= 1.0
        assert found.population_stability_index >= 0.0
    else:
        assert (found.kolmogorov_smirnov, found.population_stability_index, found.mean_change) == (None, None, None)


def test_columns_that_both_have_are_compared_in_the_order_of_the_reference() -> None:
    engine = SketchingEngine()
    before = pa.table({"a": [1.5], "b": ["x"], "c": [True]})
    after = pa.table({"c": [False], "new": [1.0], "a": pa.array([2], pa.int64())})
    found = compare(*(engine.describe(rows.schema, rows.to_batches()) for rows in (before, after)))
    assert [(row.column, row.type) for row in found] == [("a", "int64"), ("c", "bool")]
    assert comparison_table(found).column_names[:2] == ["column", "type"]
    assert comparison_table(found).num_rows == 2


def test_what_is_kept_comes_back_as_it_was() -> None:
    table = pa.table(
        {
            "n": pa.array([2**63 - 1, None, -(2**63)], pa.int64()),
            "f": [0.1, 1e300, -5e-324],
            "b": [True, None, False],
            "s": ["a", "", "ü𝒳"],
            "t": pa.array([0, -62_135_596_800_000_000, 253_402_300_799_999_999], pa.timestamp("us", "UTC")),
            "far": pa.array([2**62, 0, 0], pa.timestamp("us", "UTC")),
            "v": pa.array([[1.0, 2.0], None, [0.0, 0.0]], pa.list_(pa.float32(), 2)),
            "d": pa.array([1, 2, None], pa.date32()),
        }
    )
    statistics = SketchingEngine().describe(table.schema, table.to_batches())
    assert load_statistics(dump_statistics(statistics)) == statistics


def test_the_smallest_floats_can_be_compared() -> None:
    """They have no halves."""
    least = 5e-324
    assert compared([least, 0.0, 2 * least], [least, 0.0, 2 * least]).kolmogorov_smirnov == 0
    found = compared([0.0] * 5 + [least] * 5, [0.0] * 10)
    assert found.population_stability_index is not None
    assert found.population_stability_index > 0
    assert found.kolmogorov_smirnov == pytest.approx(0.5, abs=0.006)
