"""Metrics by model version: requests and predictions of each deployment, and the time that the model takes.

Where a version serves it counts in a `Tally`; what the tallies hold is added up here when the page is read. A version's
figures go on as long as it serves anywhere, however often it is loaded anew, and for RETIRED_S after it has ended, so
that the next scrapes see what it counted last. Then its labels go: the page holds what serves and little more, never
more than TRACKED_MAX tallies.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from services.predictor.serving import Served
from services.predictor.tallies import INFERENCE_BUCKETS_S, Tally

RETIRED_S = 300.0
TRACKED_MAX = 4_096

# Deployment, model, version.
_Labels = tuple[str, str, str]


@dataclass(slots=True, eq=False)
class _Tracked:
    """A tally, and how far it was added up; `gone_at`: since when it does not serve, None: it does."""

    labels: _Labels
    tally: Tally
    gone_at: float | None = None
    codes: Counter[str] = field(default_factory=Counter)
    predictions: int = 0
    inference_s: float = 0.0
    inferences: list[int] = field(default_factory=lambda: [0] * (len(INFERENCE_BUCKETS_S) + 1))


class VersionMetrics:
    """A collector of a registry; `serving` says what serves now, and is called when the page is read."""

    def __init__(
        self,
        serving: Callable[[], Iterable[Served]],
        monotonic: Callable[[], float] = time.monotonic,
        *,
        tracked_max: int = TRACKED_MAX,
    ) -> None:
        self._serving = serving
        self._monotonic = monotonic
        self._tracked_max = tracked_max
        # The page is read in a thread of its own.
        self._lock = threading.Lock()
        self._tracked: dict[int, _Tracked] = {}
        self._totals: dict[_Labels, _Totals] = {}

    def track(self, served: Served) -> None:
        """Counts what this version counts, though it may be replaced before the page is read."""
        with self._lock:
            self._track(served)

    def collect(self) -> Iterator[Metric]:
        """The page's lines."""
        with self._lock:
            self._see(self._serving())
            yield from _families(self._totals)

    def describe(self) -> Iterator[Metric]:
        """The names, without a look at what serves: a registry asks for them at once."""
        return _families({})

    def _track(self, served: Served) -> None:
        version, tally = served.deployment.version, served.tally
        tally.tracked = True
        if id(tally) in self._tracked:
            return
        if len(self._tracked) >= self._tracked_max and not self._drop_one_that_is_gone():
            return
        labels = (served.deployment.name, version.model.name, str(version.model.version))
        self._tracked[id(tally)] = _Tracked(labels, tally)
        self._totals.setdefault(labels, _Totals()).tallies += 1

    def _see(self, serving: Iterable[Served]) -> None:
        now, present = self._monotonic(), set[int]()
        for served in serving:
            self._track(served)
            present.add(id(served.tally))
        for key, tracked in list(self._tracked.items()):
            self._totals[tracked.labels].add(tracked)
            if key in present:
                tracked.gone_at = None
            elif tracked.gone_at is None:
                tracked.gone_at = now
            elif now - tracked.gone_at >= RETIRED_S:
                self._drop(key)

    def _drop_one_that_is_gone(self) -> bool:
        gone = next((key for key, tracked in self._tracked.items() if tracked.gone_at is not None), None)
        if gone is not None:
            self._drop(gone)
        return gone is not None

    def _drop(self, key: int) -> None:
        labels = self._tracked.pop(key).labels
        self._totals[labels].tallies -= 1
        if not self._totals[labels].tallies:
            del self._totals[labels]


@dataclass(slots=True, eq=False)
class _Totals:
    """What all tallies with the same labels counted, and how many of them there are."""

    tallies: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    predictions: int = 0
    inference_s: float = 0.0
    inferences: list[int] = field(default_factory=lambda: [0] * (len(INFERENCE_BUCKETS_S) + 1))

    def add(self, tracked: _Tracked) -> None:
        """Adds what a tally counted since it was last added up."""
        tally = tracked.tally
        # Copies: the event loop goes on counting.
        codes = Counter({"OK": tally.answers, **tally.failures_by_code.copy()})
        predictions, inference_s, inferences = tally.predictions, tally.inference_s, tally.inferences.copy()
        self.codes.update(codes - tracked.codes)
        self.predictions += predictions - tracked.predictions
        self.inference_s += inference_s - tracked.inference_s
        self.inferences = [
            total + now - seen for total, now, seen in zip(self.inferences, inferences, tracked.inferences, strict=True)
        ]
        tracked.codes, tracked.predictions = codes, predictions
        tracked.inference_s, tracked.inferences = inference_s, inferences


def _families(totals: dict[_Labels, _Totals]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "foresight_predictor_version_requests",
        "Requests that a model version answered or failed",
        labels=["deployment", "model", "version", "code"],
    )
    predictions = CounterMetricFamily(
        "foresight_predictor_version_predictions",
        "Predictions that a model version answered",
        labels=["deployment", "model", "version"],
    )
    inference = HistogramMetricFamily(
        "foresight_predictor_version_inference_duration_seconds",
        "Time of one run of a model, for all rows of a batch",
        labels=["model", "version"],
    )
    by_version: dict[tuple[str, str], _Totals] = {}
    for labels, total in totals.items():
        for code, count in sorted(total.codes.items()):
            requests.add_metric([*labels, code], count)
        predictions.add_metric(labels, total.predictions)
        of_version = by_version.setdefault(labels[1:], _Totals())
        of_version.inference_s += total.inference_s
        of_version.inferences = [a + b for a, b in zip(of_version.inferences, total.inferences, strict=True)]
    for (model, version), total in by_version.items():
        inference.add_metric([model, version], _buckets(total.inferences), total.inference_s)
    yield from (requests, predictions, inference)


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    """Counts up to each bound, as the page has them."""
    bounds = [*(repr(float(bound)) for bound in INFERENCE_BUCKETS_S), "+Inf"]
    return [(bound, float(sum(counts[: i + 1]))) for i, bound in enumerate(bounds)]
