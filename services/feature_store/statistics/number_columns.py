"""Columns of numbers: integers, floats, timestamps, and the norms of vectors.

Values are gathered into runs of one length and sorted; of a sorted run everything else follows in a pass. Rows that
fit into one run get exact figures that do not depend on their order.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.feature_store.statistics.description import (
    HISTOGRAM_BINS,
    RANK_STEPS,
    TOP_SHOWN,
    ColumnStatistics,
    Value,
)
from services.feature_store.statistics.distincts import DistinctSketch, hash_numbers
from services.feature_store.statistics.frequencies import FrequentValues, runs
from services.feature_store.statistics.moments import Moments
from services.feature_store.statistics.ranks import Distribution, RankSketch


class NumberColumn:
    """Statistics of int64 or float64 values without NULL; `run_values` is how many are sorted at once."""

    def __init__(self, run_values: int, *, counted: bool = True) -> None:
        """`counted` False: different values are not counted, as of norms, which stand for something else."""
        self._run_values = run_values
        self._counted = counted
        self._waiting: list[NDArray[Any]] = []
        self._waiting_values = 0
        self._moments = Moments()
        self._ranks = RankSketch(run_values)
        self._frequent = FrequentValues()
        self._distincts: DistinctSketch | None = None
        self._extremes: tuple[Any, Any] | None = None

    def add(self, values: NDArray[Any]) -> None:
        """Takes values; they are read later and must not change."""
        while self._waiting_values + len(values) >= self._run_values:
            fitting = self._run_values - self._waiting_values
            self._waiting.append(values[:fitting])
            values = values[fitting:]
            ordered = self._ordered()
            keys = self._absorb(ordered)
            self._distincts = self._distincts or DistinctSketch()
            self._distincts.add(hash_numbers(keys))
            self._ranks.add_run(ordered)
        if len(values):
            self._waiting.append(values)
            self._waiting_values += len(values)

    def finish(self, name: str, type: str, rows: int, nulls: int) -> ColumnStatistics:
        """The statistics of all values."""
        if rows == nulls:
            return ColumnStatistics(name, type, rows, nulls, distinct=0 if self._counted else None)
        ordered = self._ordered()
        keys = self._absorb(ordered)
        if self._distincts is None:
            distinct = len(keys)
        else:
            self._distincts.add(hash_numbers(keys))
            distinct = self._distincts.count()
        distribution = self._ranks.finish(ordered)
        assert self._extremes is not None
        least, most = self._extremes
        ranks = distribution.ranks(RANK_STEPS).astype(np.float64)
        ranks[0], ranks[-1] = least, most
        edges, counts = _histogram(distribution, least, most)
        top = self._top() if self._counted else []
        return ColumnStatistics(
            name,
            type,
            rows,
            nulls,
            distinct=distinct if self._counted else None,
            minimum=least.item(),
            maximum=most.item(),
            mean=self._moments.mean,
            standard_deviation=self._moments.standard_deviation,
            ranks=tuple(ranks.tolist()),
            histogram_edges=edges,
            histogram_counts=counts,
            top_values=tuple(value for value, _ in top),
            top_counts=tuple(count for _, count in top),
        )

    def _ordered(self) -> NDArray[Any]:
        """The waiting values as a sorted run."""
        values = np.concatenate(self._waiting) if self._waiting else np.empty(0, np.int64)
        self._waiting, self._waiting_values = [], 0
        values.sort()
        if values.dtype == np.float64:
            # Makes 0.0 of -0.0.
            values += 0.0
        return values

    def _absorb(self, ordered: NDArray[Any]) -> NDArray[Any]:
        """Takes what a sorted run says about everything but ranks, and returns its different values."""
        if not len(ordered):
            return ordered
        least, most = ordered[0], ordered[-1]
        if self._extremes is not None:
            least, most = min(least, self._extremes[0]), max(most, self._extremes[1])
        self._extremes = least, most
        self._moments.add_run(ordered)
        if not self._counted:
            return ordered[:0]
        starts, counts = runs(ordered)
        keys = ordered if len(starts) == len(ordered) else ordered[starts]
        self._frequent.add(keys, counts)
        return keys

    def _top(self) -> list[tuple[Value, int]]:
        """The most frequent values; all of them where there are few."""
        assert self._frequent.keys is not None
        keys, counts = self._frequent.keys, self._frequent.counts
        first = np.lexsort((keys, -counts))[:TOP_SHOWN]
        return [(keys[i].item(), int(counts[i])) for i in first]


def _histogram(distribution: Distribution, least: Any, most: Any) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Edges and counts, see `description`."""
    edges = _whole_edges(int(least), int(most)) if least.dtype == np.int64 else _edges(float(least), float(most))
    inner = np.array(edges[1:-1], least.dtype)
    bounds = [0, *distribution.below(inner).tolist(), distribution.count]
    counts = tuple(after - before for before, after in pairwise(bounds))
    return tuple(float(edge) for edge in edges), counts


def _whole_edges(least: int, most: int) -> list[int]:
    spread = most - least + 1
    width = -(-spread // HISTOGRAM_BINS)
    bins = -(-spread // width)
    return [least + i * width for i in range(bins + 1)]


def _edges(least: float, most: float) -> list[float]:
    shares = [i / HISTOGRAM_BINS for i in range(1, HISTOGRAM_BINS)]
    # Not least + share * (most - least), whose difference may be beyond all floats.
    inner = [min(max(least * (1 - share) + most * share, least), most) for share in shares]
    edges = sorted({least, *inner, most})
    # Neighbouring floats leave no room for more edges, one value none for a second one.
    return edges if len(edges) > 1 else [least, most]
