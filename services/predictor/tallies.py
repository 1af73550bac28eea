"""What became of requests to one version, counted where it serves; kept as long as it does.

One thread counts: the event loop's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

_NS_PER_S = 1_000_000_000
_MS_PER_S = 1_000


@dataclass(slots=True, eq=False)
class Tally:
    """Requests and predictions, with the time that requests took; `last_answer_ms` is Unix time, 0: never."""

    answers: int = 0
    answers_ns: int = 0
    failures: int = 0
    failures_ns: int = 0
    predictions: int = 0
    last_answer_ms: int = 0

    def answered(self, rows: int, seconds: float, now: datetime) -> None:
        """Counts a request that was answered with `rows` predictions."""
        self.answers += 1
        self.answers_ns += int(seconds * _NS_PER_S)
        self.predictions += rows
        self.last_answer_ms = int(now.timestamp() * _MS_PER_S)

    def failed(self, seconds: float) -> None:
        """Counts a request that got no answer."""
        self.failures += 1
        self.failures_ns += int(seconds * _NS_PER_S)
