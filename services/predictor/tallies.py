"""What became of requests to one version, counted where it serves; kept as long as it does.

One thread counts: the event loop's.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from datetime import datetime

INFERENCE_BUCKETS_S = (0.000_03, 0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0)
_NS_PER_S = 1_000_000_000
_MS_PER_S = 1_000


@dataclass(slots=True, eq=False)
class Tally:
    """Requests and predictions, with the time that requests took; `last_answer_ms` is Unix time, 0: never.

    `inferences` are runs of the model by time, one count for each of INFERENCE_BUCKETS_S and one beyond; `tracked`: the
    metrics know of it.
    """

    answers: int = 0
    answers_ns: int = 0
    failures: int = 0
    failures_ns: int = 0
    predictions: int = 0
    last_answer_ms: int = 0
    failures_by_code: dict[str, int] = field(default_factory=dict)
    inference_s: float = 0.0
    inferences: list[int] = field(default_factory=lambda: [0] * (len(INFERENCE_BUCKETS_S) + 1))
    tracked: bool = False

    def answered(self, rows: int, seconds: float, now: datetime) -> None:
        """Counts a request that was answered with `rows` predictions."""
        self.answers += 1
        self.answers_ns += int(seconds * _NS_PER_S)
        self.predictions += rows
        self.last_answer_ms = int(now.timestamp() * _MS_PER_S)

    def failed(self, seconds: float, code: str) -> None:
        """Counts a request that ended with this status."""
        self.failures += 1
        self.failures_ns += int(seconds * _NS_PER_S)
        self.failures_by_code[code] = self.failures_by_code.get(code, 0) + 1

    def inferred(self, seconds: float) -> None:
        """Counts a run of the model."""
        self.inference_s += seconds
        self.inferences[bisect_left(INFERENCE_BUCKETS_S, seconds)] += 1
