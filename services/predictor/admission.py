"""Refuses at once what cannot be answered in time, so that those who are let in are.

Two bounds: rows that wait or are being worked on, over all deployments, and per request the time that it still has
against the time that it would take, by what batches took lately.
"""

from __future__ import annotations

from services.runtime.errors import Overloaded

QUEUE_ROWS_MAX = 8_192
RETRY_AFTER_MIN_S = 0.05
RETRY_AFTER_MAX_S = 5.0


class Admission:
    """Counts the rows that were let in and are not done."""

    def __init__(self, rows_max: int = QUEUE_ROWS_MAX) -> None:
        self._rows_max = rows_max
        self.rows = 0

    def enter(self, rows: int, expected_s: float, remaining_s: float | None) -> None:
        """Lets a request in; `leave` follows. Raises Overloaded.

        A single request is let in however large it is, when nothing else is there.
        """
        if self.rows and self.rows + rows > self._rows_max:
            raise Overloaded("too many predictions wait to be made", _retry_after_s(expected_s), limit="queue_rows_max")
        if remaining_s is not None and expected_s > remaining_s:
            raise Overloaded(
                "the prediction would not be ready within the call's deadline",
                _retry_after_s(expected_s - remaining_s),
                limit="deadline",
            )
        self.rows += rows

    def leave(self, rows: int) -> None:
        """A request that was let in is done, however it ended."""
        self.rows -= rows


def _retry_after_s(seconds: float) -> float:
    return min(max(seconds, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)
