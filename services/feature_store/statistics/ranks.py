"""The distribution of numbers that come as sorted runs: ranks and shares, exact for one run, with a bound beyond.

Every full run of n values is thinned to `kept` order statistics, each in the middle of the n / kept values that it
stands for. Two runs of one weight are merged and thinned by half again, so that a level of the tree holds one run at
most (Munro and Paterson 1980; Manku, Rajagopalan and Lindsay 1998). No chance is involved: equal input, equal output.

A rank is off by at most half the weight of the thinned values, per run and per merge. Over all runs, and over all
merges of one level, that is a share of 1 / (2 kept) of the values, 0.0061 % for 8,192, so that a billion values stay
below 0.1 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = 8_192


class RankSketch:
    """Ranks of numbers of one dtype, int64 or float64. `run_values` is how many values a full run has."""

    def __init__(self, run_values: int, kept: int = KEPT) -> None:
        self._weight = max(1, run_values // min(kept, run_values))
        # Level i holds a sorted array whose values stand for weight * 2^i each, or nothing.
        self._levels: list[NDArray[Any] | None] = []
        self._odd: list[bool] = []
        self._rest: NDArray[Any] | None = None

    def add_run(self, ordered: NDArray[Any]) -> None:
        """Takes a full run of sorted values."""
        carried = ordered[self._weight // 2 :: self._weight].copy()
        for level in range(len(self._levels) + 1):
            if level == len(self._levels):
                self._levels.append(None)
                self._odd.append(False)
            resting = self._levels[level]
            if resting is None:
                self._levels[level] = carried
                return
            merged = np.sort(np.concatenate([resting, carried]))
            # Alternating, or the ranks would drift to one side.
            carried = merged[int(self._odd[level]) :: 2].copy()
            self._odd[level] = not self._odd[level]
            self._levels[level] = None

    def finish(self, ordered: NDArray[Any]) -> Distribution:
        """The distribution of all runs and a last one, of any length, whose sorted values count as they are."""
        arrays, weights = [ordered], [np.ones(len(ordered), np.int64)]
        for level, resting in enumerate(self._levels):
            if resting is not None:
                arrays.append(resting)
                weights.append(np.full(len(resting), self._weight << level, np.int64))
        if len(arrays) == 1:
            return Distribution(ordered, None)
        values = np.concatenate(arrays)
        order = np.argsort(values)
        return Distribution(values[order], np.cumsum(np.concatenate(weights)[order]))


class Distribution:
    """Sorted values with the number of values up to and with each; `cumulated` None: one each."""

    def __init__(self, values: NDArray[Any], cumulated: NDArray[np.int64] | None) -> None:
        self._values = values
        self._cumulated = cumulated
        self.count = len(values) if cumulated is None else int(cumulated[-1])

    def ranks(self, steps: int) -> NDArray[Any]:
        """For each j of 0 to `steps` the smallest value that at least j / steps of the values do not exceed."""
        wanted = np.array([max(1, -(-j * self.count // steps)) for j in range(steps + 1)], np.int64)
        positions = wanted - 1 if self._cumulated is None else np.searchsorted(self._cumulated, wanted)
        return self._values[positions]

    def below(self, edges: NDArray[Any]) -> NDArray[np.int64]:
        """How many values are less than each edge."""
        positions = np.searchsorted(self._values, edges)
        if self._cumulated is None:
            return positions.astype(np.int64)
        return np.concatenate([np.zeros(1, np.int64), self._cumulated])[positions]
