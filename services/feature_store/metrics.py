"""Metrics of the feature store."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class FeatureStoreMetrics:
    """What the feature store counts beside its calls."""

    def __init__(self, registry: CollectorRegistry) -> None:
        name = "foresight_feature_store"
        self.commits = Counter(f"{name}_commits", "Commits published by this process", registry=registry)
        self.rows_written = Counter(f"{name}_rows_written", "Rows published by this process", registry=registry)
        self.rows_quarantined = Counter(
            f"{name}_rows_quarantined", "Rows that writes of this process kept apart", registry=registry
        )
        self.applied_commit = Gauge(
            f"{name}_applied_commit", "Last commit that the online store has applied", registry=registry
        )
        self.reingested_predictions = Counter(
            f"{name}_reingested_predictions", "Predictions taken back from the log", registry=registry
        )
        self.reingested_outcomes = Counter(
            f"{name}_reingested_outcomes", "Outcomes taken back from the log", registry=registry
        )
        self.skipped_entries = Counter(
            f"{name}_reingestion_skipped", "Log entries that fit no registered view", registry=registry
        )
        self.reingestion_lag_s = Gauge(
            f"{name}_reingestion_lag_seconds",
            "Age of the last reingested prediction while there is more in the log; 0 when caught up",
            registry=registry,
        )
