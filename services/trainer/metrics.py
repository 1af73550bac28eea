"""The trainer's own metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

from prometheus_client import Counter, Gauge, Histogram

from foresight.values import InvalidValue
from services.runtime.errors import ServiceError
from services.runtime.metrics import Metrics
from services.trainer.registry import Registry

_DURATION_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600)


class TrainerMetrics:
    """Counters of trainings, promotions, batch rows, and the number of deployments."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self._trainings = Counter(
            "foresight_trainer_trainings", "Trainings ended, by outcome", ["outcome"], registry=registry
        )
        for outcome in ("registered", "refused", "cancelled", "failed"):
            self._trainings.labels(outcome)
        self._duration = Histogram(
            "foresight_trainer_training_duration_seconds",
            "Time of a training that was registered, waiting for its turn included",
            buckets=_DURATION_BUCKETS_S,
            registry=registry,
        )
        self.promotions = Counter("foresight_trainer_promotions", "Challengers that became champion", registry=registry)
        self.batch_rows = Counter(
            "foresight_trainer_batch_rows", "Rows written by batch predictions", registry=registry
        )
        self._deployments = Gauge("foresight_trainer_deployments", "Deployments that exist", registry=registry)

    async def observe(self, registry: Registry) -> bool:
        """Counts the deployments; as a readiness check: answers True when the registry's database answers."""
        self._deployments.set(await registry.count_deployments())
        return True

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Counts a training by how it ends."""
        started = time.perf_counter()
        outcome = "failed"
        try:
            yield
            outcome = "registered"
            self._duration.observe(time.perf_counter() - started)
        except (ServiceError, InvalidValue):
            outcome = "refused"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._trainings.labels(outcome).inc()
