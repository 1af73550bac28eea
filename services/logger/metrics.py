"""What the logger counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from services.runtime.metrics import Metrics


class LoggerMetrics:
    """Counters of what became durable, and gauges of what is stored."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self.predictions = Counter("foresight_logger_predictions", "Predictions stored", registry=registry)
        self.duplicates = Counter(
            "foresight_logger_duplicates", "Predictions that arrived again and were not stored again", registry=registry
        )
        self.quarantined = Counter(
            "foresight_logger_quarantined", "Sequence numbers reported as lost in a spool", registry=registry
        )
        self.forgotten = Counter(
            "foresight_logger_forgotten", "Predictions removed, or dropped as they arrived, for good", registry=registry
        )
        outcomes = Counter(
            "foresight_logger_outcomes", "Outcomes by what became of them", ["result"], registry=registry
        )
        self.outcomes_matched = outcomes.labels("matched")
        self.outcomes_held = outcomes.labels("held")
        self.outcomes_duplicate = outcomes.labels("duplicate")
        self.head = Gauge("foresight_logger_head", "Last position of the log", registry=registry)
        self.held = Gauge("foresight_logger_held_outcomes", "Outcomes whose prediction is missing", registry=registry)
