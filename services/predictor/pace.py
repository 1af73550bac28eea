"""How long batches take, by their rows: a straight line through what was measured, the latest counting most."""

from __future__ import annotations

# What a batch weighs against the one after it: about the last twenty count.
KEPT = 0.95


class Pace:
    """Least squares over (rows, seconds) with weights that fade, in constant space; seconds never shrink with rows."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._rows = 0.0
        self._seconds = 0.0
        self._rows_rows = 0.0
        self._rows_seconds = 0.0

    def took(self, rows: int, seconds: float) -> None:
        """A batch of so many rows took so long."""
        self._weight = KEPT * self._weight + 1
        self._rows = KEPT * self._rows + rows
        self._seconds = KEPT * self._seconds + seconds
        self._rows_rows = KEPT * self._rows_rows + rows * rows
        self._rows_seconds = KEPT * self._rows_seconds + rows * seconds

    def expected_s(self, rows: int) -> float:
        """How long so many rows will take; 0 for none, and before anything was measured."""
        if not rows or not self._weight:
            return 0.0
        mean_rows, mean_s = self._rows / self._weight, self._seconds / self._weight
        spread = self._rows_rows / self._weight - mean_rows * mean_rows
        together = self._rows_seconds / self._weight - mean_rows * mean_s
        # Between batches of all but one size there is no slope to be seen, only noise.
        slope = max(0.0, together / spread) if spread > 0.25 else 0.0
        return max(0.0, mean_s + slope * (rows - mean_rows))
