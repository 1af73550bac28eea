"""How two descriptions of a column differ.

Everything is worked out from kept statistics, so comparing a month of predictions with a training dataset reads no
row. Shares are of values that are not NULL.

- Population stability index (Siddiqi, Credit Risk Scorecards, 2006): the sum over bins of (c - r) ln(c / r), with r and
  c the bin's shares of reference and current. Bins of numbers lie between the deciles of the reference, equal ones
  taken together; bins of texts and bools are the CATEGORIES_MAX most frequent values of the reference, and the rest.
  Shares are (n + 1/2) / (N + bins / 2), half a row added to every bin, so that an empty bin has a logarithm. By custom
  a value below 0.1 is no change, one above 0.25 a large one.
- Kolmogorov-Smirnov distance (Kolmogorov 1933, Smirnov 1948): the greatest difference of the two distribution
  functions, here looked at where either has one of its kept ranks, between which they are taken as straight. Each
  function is then known to 1 / RANK_STEPS at every point, so the distance is within 2 / RANK_STEPS = 0.005, and within
  what the ranks of more than a million rows are off by, below 0.001 (`ranks`).
- Change of the mean: (current - reference) / standard deviation of the reference (Glass's delta, 1976).
- Share of new values: of the current values of a text or bool column those that the reference does not have. Only known
  when the kept values of both are all that there are.

What cannot be said is None: of a column that is NULL throughout, of a reference that does not vary, of other types.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.feature_store.statistics.description import RANK_STEPS, ColumnStatistics, Statistics

DECILES = 10
CATEGORIES_MAX = 20


@dataclass(frozen=True, slots=True)
class ColumnComparison:
    """How a column changed; `type` is that of the current rows. See the module for the measures."""

    column: str
    type: str
    reference_rows: int
    current_rows: int
    null_share_change: float | None
    mean_change: float | None
    population_stability_index: float | None
    kolmogorov_smirnov: float | None
    new_values_share: float | None


def compare(reference: Statistics, current: Statistics) -> list[ColumnComparison]:
    """The columns that both have, in the order of the reference."""
    found = {column.name: column for column in current.columns}
    return [_compare(column, found[column.name]) for column in reference.columns if column.name in found]


def _compare(reference: ColumnStatistics, current: ColumnStatistics) -> ColumnComparison:
    null_share_change = None
    if reference.rows and current.rows:
        null_share_change = current.nulls / current.rows - reference.nulls / reference.rows
    index = distance = new = None
    if reference.ranks and current.ranks:
        index, distance = _number_stability(reference, current), _distance(reference, current)
    elif _is_category(reference) and reference.type == current.type and reference.values and current.values:
        index = _category_stability(reference, current)
        if reference.all_values_known and current.all_values_known:
            known = set(reference.top_values)
            new = _share(current, [value not in known for value in current.top_values])
    return ColumnComparison(
        column=reference.name,
        type=current.type,
        reference_rows=reference.rows,
        current_rows=current.rows,
        null_share_change=null_share_change,
        mean_change=_mean_change(reference, current),
        population_stability_index=index,
        kolmogorov_smirnov=distance,
        new_values_share=new,
    )


def _mean_change(reference: ColumnStatistics, current: ColumnStatistics) -> float | None:
    if reference.mean is None or current.mean is None:
        return None
    if not reference.standard_deviation:
        return 0.0 if reference.mean == current.mean else None
    # Each divided before the difference, which may be beyond all floats.
    change = current.mean / reference.standard_deviation - reference.mean / reference.standard_deviation
    return change if np.isfinite(change) else None


def _number_stability(reference: ColumnStatistics, current: ColumnStatistics) -> float:
    deciles = np.array(reference.ranks)[RANK_STEPS // DECILES : -1 : RANK_STEPS // DECILES]
    # A bin is what is above one edge and up to the next; an edge at the maximum has nothing above it.
    edges = np.unique(deciles[deciles < reference.ranks[-1]])
    return _stability(*(_binned(column, edges) for column in (reference, current)))


def _binned(column: ColumnStatistics, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.diff(_distribution(column, edges), prepend=0.0, append=1.0) * column.values


def _category_stability(reference: ColumnStatistics, current: ColumnStatistics) -> float:
    chosen = reference.top_values[:CATEGORIES_MAX]
    counted = []
    for column in (reference, current):
        counts = dict(zip(column.top_values, column.top_counts, strict=True))
        own = [float(counts.get(value, 0)) for value in chosen]
        counted.append(np.array([*own, max(column.values - sum(own), 0.0)]))
    return _stability(*counted)


def _stability(reference: NDArray[np.float64], current: NDArray[np.float64]) -> float:
    """The index of two counts per bin."""
    r, c = ((counts + 0.5) / (counts.sum() + len(counts) / 2) for counts in (reference, current))
    return float(np.sum((c - r) * np.log(c / r)))


def _distance(reference: ColumnStatistics, current: ColumnStatistics) -> float:
    places = np.unique(np.array(reference.ranks + current.ranks))
    return float(np.abs(_distribution(reference, places) - _distribution(current, places)).max())


def _distribution(column: ColumnStatistics, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of values up to each place, from the kept ranks."""
    ranks = np.array(column.ranks)
    # The last of equal ranks: that many steps lie at or below the place.
    reached = np.searchsorted(ranks, places, side="right") - 1
    inside = (reached >= 0) & (reached < RANK_STEPS)
    at = np.clip(reached, 0, RANK_STEPS - 1)
    # Half of each, as the difference of two floats may be beyond all floats; the smallest floats have no half.
    width = ranks[at + 1] / 2 - ranks[at] / 2
    between = (places / 2 - ranks[at] / 2) / np.where(inside & (width > 0), width, 1.0)
    shares = (reached + np.where(inside, np.clip(between, 0.0, 1.0), 0.0)) / RANK_STEPS
    return np.clip(shares, 0.0, 1.0)


def _is_category(column: ColumnStatistics) -> bool:
    return column.type in ("string", "bool")


def _share(column: ColumnStatistics, chosen: list[bool]) -> float:
    return sum(count for count, taken in zip(column.top_counts, chosen, strict=True) if taken) / column.values
