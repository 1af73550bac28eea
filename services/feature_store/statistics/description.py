"""Statistics as values, and the rules that every engine keeps.

NULL, NaN and infinity count as NULL; -0.0 is 0.0. Figures are about the other values only.

- `minimum` and `maximum` are exact, to the last digit; texts compare by code points.
- `mean` and `standard_deviation` (of the sample, so None for fewer than two values) are computed around a mean, not
  from sums of squares. Of bools they are those of 0 and 1; of timestamps in microseconds since 1970.
- `ranks[j]` is the smallest value v for which at least j / RANK_STEPS of the values are <= v (the inverted empirical
  distribution function, type 1 of Hyndman and Fan 1996); `ranks[0]` is the minimum.
- The histogram has HISTOGRAM_BINS bins of one width from minimum to maximum, each without its upper edge but the last
  one. Of integers and timestamps the width is a whole number, at least 1, and there are as few bins as that needs. The
  counts sum to the values.
- `top_values` are the most frequent values, ties by value, with how often each occurs.
- Of float vectors, all figures are those of their Euclidean norms; `distinct` and `top_values` are left out.
- Other types have `rows` and `nulls` only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import pyarrow as pa

RANK_STEPS = 400
HISTOGRAM_BINS = 20
# Most frequent values kept, and of texts their bytes; answers show the first TOP_SHOWN.
TOP_VALUES_MAX = 1_000
TOP_BYTES_MAX = 256 << 10
TOP_SHOWN = 10
QUANTILES_PERCENT = (1, 5, 25, 50, 75, 95, 99)

# Of timestamps: microseconds since 1970.
Value: TypeAlias = int | float | bool | str


@dataclass(frozen=True, slots=True)
class TextLengths:
    """Lengths of texts, in characters."""

    minimum: int
    maximum: int
    mean: float


@dataclass(frozen=True, slots=True)
class ColumnStatistics:
    """Statistics of one column; see the module for the rules. `type` is a data type's name, or that of an Arrow type
    that features do not have. What does not apply, or has no value to be about, is None or empty."""

    name: str
    type: str
    rows: int
    nulls: int
    distinct: int | None = None
    minimum: Value | None = None
    maximum: Value | None = None
    mean: float | None = None
    standard_deviation: float | None = None
    ranks: tuple[float, ...] = ()
    histogram_edges: tuple[float, ...] = ()
    histogram_counts: tuple[int, ...] = ()
    top_values: tuple[Value, ...] = ()
    top_counts: tuple[int, ...] = ()
    lengths: TextLengths | None = None

    @property
    def values(self) -> int:
        """Rows that are not NULL."""
        return self.rows - self.nulls

    @property
    def quantiles(self) -> tuple[float, ...]:
        """The quantiles of QUANTILES_PERCENT."""
        return tuple(self.ranks[p * RANK_STEPS // 100] for p in QUANTILES_PERCENT) if self.ranks else ()

    @property
    def all_values_known(self) -> bool:
        """Whether `top_values` are all values that there are."""
        return self.distinct == len(self.top_values) and sum(self.top_counts) == self.values

    def shown_values(self) -> list[tuple[Value, int]]:
        """The most frequent values and their counts for people, at most TOP_SHOWN; where there are more different
        ones than that, only those that occur more than once."""
        found = list(zip(self.top_values, self.top_counts, strict=True))[:TOP_SHOWN]
        few = self.distinct is not None and self.distinct <= TOP_SHOWN
        return found if few else [(value, count) for value, count in found if count > 1]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of all columns of some rows."""

    rows: int
    columns: tuple[ColumnStatistics, ...]


class StatisticsEngine(Protocol):
    """Computes statistics; the same rows, in the same order, give the same ones."""

    def describe(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Statistics:
        """The statistics of rows that are gone through once. Blocks."""
        ...
