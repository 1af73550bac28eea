"""Metrics of the predictor, named `foresight_predictor_<what>_<unit>`."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from foresight.values import FeatureStatus, InvalidValue
from services.predictor.policies import Missing
from services.predictor.serving import Served
from services.predictor.version_metrics import VersionMetrics
from services.runtime.errors import FeatureMissing, Overloaded, SpoolFull, Unavailable

STAGE_BUCKETS_S = (
    *(0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)
ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)
ShadowOutcome = Literal["recorded", "failed", "dropped"]
STAGES = ("lookup", "transform", "score", "spool")
_OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (InvalidValue, "invalid"),
    (FeatureMissing, "feature_missing"),
    (SpoolFull, "spool_full"),
    (Overloaded, "overloaded"),
    (Unavailable, "unavailable"),
    (asyncio.CancelledError, "cancelled"),
)


class Telemetry:
    """Counts predictions by deployment (names that the registry has, at most 1,000) and outcome, and times stages."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._versions: VersionMetrics | None = None
        self._predictions = Counter(
            "foresight_predictor_predictions",
            "Predictions asked for, by what became of them",
            ["deployment", "outcome"],
            registry=registry,
        )
        self._missing = Counter(
            "foresight_predictor_features_missing",
            "Features without a value of answered predictions, by why and by what was done about it",
            ["deployment", "status", "policy"],
            registry=registry,
        )
        self._degraded = Counter(
            "foresight_predictor_degraded_predictions",
            "Predictions that were answered without the feature store, as it did not answer",
            ["deployment"],
            registry=registry,
        )
        self._last_known_evicted = Counter(
            "foresight_predictor_last_known_evicted_rows",
            "Entities whose last known values had to make room for others",
            registry=registry,
        )
        self._repeated = Counter(
            "foresight_predictor_repeated_requests",
            "Named requests that got the answer to an earlier call again",
            registry=registry,
        )
        self._shadows = Counter(
            "foresight_predictor_shadow_predictions",
            "Predictions that shadows were to make, by what became of them",
            ["deployment", "outcome"],
            registry=registry,
        )
        stages = Histogram(
            "foresight_predictor_stage_duration_seconds",
            "Time of each stage of a prediction request",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=registry,
        )
        self._batch_rows = Histogram(
            "foresight_predictor_batch_rows",
            "Rows that shared a look-up and a run of the model",
            buckets=ROWS_BUCKETS,
            registry=registry,
        )
        self._queue_time = Histogram(
            "foresight_predictor_queue_duration_seconds",
            "Time that a request waited for its batch",
            buckets=STAGE_BUCKETS_S,
            registry=registry,
        )
        # Bound once: finding a child by its labels costs more than the observation.
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._answered: dict[str, Counter] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage that succeeds; may be used in any thread."""
        started = time.perf_counter()
        yield
        self._stages[name].observe(time.perf_counter() - started)

    def batch(self, rows: int, waited_s: Sequence[float]) -> None:
        """A batch of so many rows begins, whose requests waited so long."""
        self._batch_rows.observe(rows)
        for seconds in waited_s:
            self._queue_time.observe(seconds)

    def answered(self, deployment: str, rows: int) -> None:
        """Counts predictions that were recorded and answered."""
        counter = self._answered.get(deployment)
        if counter is None:
            counter = self._answered[deployment] = self._predictions.labels(deployment, "answered")
        counter.inc(rows)

    def missing(self, deployment: str, missing: Sequence[Missing]) -> None:
        """Counts what was missing in an answer."""
        for (status, policy), features in collections.Counter((m.status, m.policy) for m in missing).items():
            self._missing.labels(deployment, status.name.lower(), policy.name.lower()).inc(features)
        degraded = {m.row for m in missing if m.status is FeatureStatus.UNAVAILABLE}
        if degraded:
            self._degraded.labels(deployment).inc(len(degraded))

    def last_known_evicted(self, rows: int) -> None:
        """Counts last known values that had to make room."""
        self._last_known_evicted.inc(rows)

    def repeated(self) -> None:
        """Counts a request that was answered before."""
        self._repeated.inc()

    def shadowed(self, deployment: str, outcome: ShadowOutcome, rows: int) -> None:
        """Counts predictions that shadows were to make."""
        self._shadows.labels(deployment, outcome).inc(rows)

    def failed(self, deployment: str, error: BaseException) -> None:
        """Counts a request that got no answer."""
        outcome = next((name for type, name in _OUTCOMES if isinstance(error, type)), "failed")
        self._predictions.labels(deployment, outcome).inc()

    def watch_versions(self, serving: Callable[[], Iterable[Served]]) -> None:
        """Metrics by model version of whatever serves when the page is read."""
        self._versions = VersionMetrics(serving)
        self._registry.register(self._versions)

    def begun(self, served: Served) -> None:
        """A version has its first request."""
        if self._versions is not None:
            self._versions.track(served)

    def watch(self, what: str, description: str, read: Callable[[], float]) -> None:
        """A gauge `foresight_predictor_<what>` that is read when the page is."""
        Gauge(f"foresight_predictor_{what}", description, registry=self._registry).set_function(read)
