"""The most frequent of many values: counters for at most `kept` of them (Misra and Gries 1982).

Where there are more different values, the counter after the last kept one is subtracted from all, and who has nothing
left goes (the mergeable form, Agarwal et al. 2012). What stays is decided by these weights; beside them each value has
what was counted since it came in. A count is never too high, and too low by at most n / kept of n values; a value that
occurs more often than that is never lost. Without a subtraction all counts are exact and all values are there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = 4_096


class FrequentValues:
    """Counters of values, known by keys that sort: numbers themselves, or hashes."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self.complete = True
        self.keys: NDArray[Any] | None = None
        self.counts = np.empty(0, np.int64)
        self._weights = np.empty(0, np.int64)

    def add(self, keys: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[np.intp]:
        """Takes sorted different keys and how often each came.

        Returns for each key that is kept now its position in the keys before followed by `keys`.
        """
        former = self.keys if self.keys is not None else keys[:0]
        met = np.minimum(np.searchsorted(keys, former), max(len(keys) - 1, 0))
        known = keys[met] == former if len(keys) else np.zeros(len(former), np.bool_)
        alone = np.flatnonzero(~known)
        crowded = len(keys) + len(alone) > self._kept
        # Where some have to go, those that came once go first, without being looked at.
        chosen = counts > 1 if crowded else np.ones(len(keys), np.bool_)
        chosen[met[known]] = True
        taken = np.flatnonzero(chosen)
        places = np.searchsorted(taken, met[known])
        weights, sums, sources = counts[taken], counts[taken], taken + len(former)
        weights[places] += self._weights[known]
        sums[places] += self.counts[known]
        sources[places] = np.flatnonzero(known)
        keys = np.concatenate([keys[taken], former[alone]])
        weights = np.concatenate([weights, self._weights[alone]])
        sums = np.concatenate([sums, self.counts[alone]])
        sources = np.concatenate([sources, alone])
        if crowded:
            self.complete = False
            surplus = 1 if len(keys) <= self._kept else int(np.partition(weights, -self._kept - 1)[-self._kept - 1])
            stay = np.flatnonzero(weights > surplus)
            keys, weights, sums, sources = keys[stay], weights[stay] - surplus, sums[stay], sources[stay]
        order = np.argsort(keys)
        self.keys, self._weights, self.counts = keys[order], weights[order], sums[order]
        return sources[order]


def runs(ordered: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Of sorted values: where each different one begins, and how often it is there."""
    if not len(ordered):
        return np.empty(0, np.intp), np.empty(0, np.int64)
    changes = np.flatnonzero(ordered[1:] != ordered[:-1])
    bounds = np.empty(len(changes) + 2, np.intp)
    bounds[0], bounds[-1] = 0, len(ordered)
    np.add(changes, 1, out=bounds[1:-1])
    return bounds[:-1], bounds[1:] - bounds[:-1]
