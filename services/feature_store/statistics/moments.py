"""Mean and standard deviation without sums of squares: per block around the block's own mean, then merged.

Blocks merge as in Chan, Golub and LeVeque (1983), on the root of the sum of squared deviations, which needs half the
exponents of the sum itself. Integers are counted from the smallest one of their block, as exact differences, so that
large ones keep the digits in which they differ. Floats near the end of their range are scaled by a power of two.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_VALUES = 65_536
# Squares of numbers with exponents in between, and sums of them, are ordinary floats.
_EXPONENT_MIN, _EXPONENT_MAX = -400, 400
# Deviations and roots of sums of numbers below this one stay finite.
_HUGE_EXPONENT = 900
_HUGE_SCALE = 256


class Moments:
    """Mean and standard deviation of int64 or float64 values that come in sorted runs."""

    def __init__(self) -> None:
        self._count = 0
        # The mean is anchor + mean, in units of 2^scale; of floats the anchor is 0.
        self._anchor = 0
        self._mean = 0.0
        # Root of the sum of squared deviations, in the same units.
        self._root = 0.0
        self._scale = 0

    def add_run(self, ordered: NDArray[Any]) -> None:
        """Takes sorted values."""
        for start in range(0, len(ordered), BLOCK_VALUES):
            block = ordered[start : start + BLOCK_VALUES]
            if block.dtype == np.int64:
                anchor = int(block[0])
                # The difference of two int64 is an uint64.
                offsets = (block.view(np.uint64) - block[:1].view(np.uint64)).astype(np.float64)
                self._merge(len(block), anchor, *_around_mean(offsets))
                continue
            if not self._scale and _exponent(block) > _HUGE_EXPONENT:
                self._scale = _HUGE_SCALE
                self._mean, self._root = math.ldexp(self._mean, -_HUGE_SCALE), math.ldexp(self._root, -_HUGE_SCALE)
            self._merge(len(block), 0, *_around_mean(np.ldexp(block, -self._scale) if self._scale else block))

    @property
    def mean(self) -> float | None:
        """The mean."""
        return math.ldexp(self._anchor + self._mean, self._scale) if self._count else None

    @property
    def standard_deviation(self) -> float | None:
        """That of the sample; None for fewer than two values, or when a float cannot hold it."""
        if self._count < 2:
            return None
        try:
            return math.ldexp(self._root / math.sqrt(self._count - 1), self._scale)
        except OverflowError:
            return None

    def _merge(self, count: int, anchor: int, mean: float, root: float) -> None:
        if not self._count:
            self._count, self._anchor, self._mean, self._root = count, anchor, mean, root
            return
        both = self._count + count
        apart = (anchor - self._anchor) + (mean - self._mean)
        self._mean += apart * (count / both)
        self._root = math.hypot(self._root, root, apart * math.sqrt(self._count * (count / both)))
        self._count = both


def _around_mean(block: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and root of the sum of squared deviations of sorted values."""
    mean = float(block.mean())
    deviations = block - mean
    # What rounding left over in the mean.
    rest = float(deviations.mean())
    mean += rest
    deviations -= rest
    exponent = _exponent(deviations)
    if _EXPONENT_MIN < exponent < _EXPONENT_MAX:
        return mean, math.sqrt(_square_sum(deviations))
    scaled = np.ldexp(deviations, -exponent)
    return mean, math.ldexp(math.sqrt(_square_sum(scaled)), exponent)


def _square_sum(values: NDArray[np.float64]) -> float:
    # A dot product would wake the threads of the linear algebra library.
    return float(np.einsum("i,i->", values, values))


def _exponent(ordered: NDArray[np.float64]) -> int:
    """The binary exponent of the greatest magnitude among sorted values."""
    return math.frexp(max(abs(float(ordered[0])), abs(float(ordered[-1]))))[1]
