"""Metrics of statistics. Labels are kinds of rows and what became of a request."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)


class StatisticsMetrics:
    """How often statistics were computed or found, by kind of rows, and how long computing took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        name = "foresight_feature_store_statistics"
        # kind: commit, latest, dataset, log; outcome: computed, found, failed.
        self.asked = Counter(name, "Statistics asked for or made with a write", ["kind", "outcome"], registry=registry)
        self.seconds = Histogram(
            f"{name}_seconds", "Time to compute statistics", ["kind"], buckets=BUCKETS_S, registry=registry
        )
