"""Metrics by model version: summed over what serves, never falling while a version serves, gone after it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry

from foresight.scoring import ModelTask, OnnxModel, Signature
from foresight.values import DataType, FeatureView, Field
from services.predictor.models import LoadedModel
from services.predictor.plans import plan_view
from services.predictor.serving import Served
from services.predictor.tallies import INFERENCE_BUCKETS_S
from services.predictor.version_metrics import RETIRED_S, VersionMetrics
from services.predictor.versions import Arm, Deployment, ModelVersion, VersionRef
from tests.wire.predictor.onnx_models import linear_model

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOUR, DELAY = Field("hour", DataType.FLOAT64), Field("delay", DataType.FLOAT64)
PLAN = plan_view(FeatureView("plain", DELAY, request_features=(HOUR,), features=(HOUR,), version=1))
MODEL = LoadedModel(
    OnnxModel(linear_model(["hour"], [1.0], 0.0, classifier=False), Signature(ModelTask.REGRESSION, (HOUR,), DELAY)),
    "0" * 64,
)
REQUESTS = "foresight_predictor_version_requests_total"
PREDICTIONS = "foresight_predictor_version_predictions_total"
TRACKED = 20
INFERENCE = "foresight_predictor_version_inference_duration_seconds"


def served(version: int = 1, deployment: str = "late") -> Served:
    ref = VersionRef("late", version)
    described = ModelVersion(ref, VersionRef("plain", 1), ModelTask.REGRESSION, (HOUR,), None, "0" * 64, 1, True)
    return Served(Deployment(deployment, "1", (Arm("main", described, 1),)), PLAN, MODEL)


class Page:
    """A registry with the collector, of which `serving` is what serves and `now` the time."""

    def __init__(self) -> None:
        self.serving: list[Served] = []
        self.now = 0.0
        self.metrics = VersionMetrics(lambda: self.serving, lambda: self.now, tracked_max=TRACKED)
        self._registry = CollectorRegistry()
        self._registry.register(self.metrics)

    def read(self) -> dict[tuple[str, ...], float]:
        """All samples, by name and the values of the labels."""
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in self._registry.collect()
            for sample in family.samples
        }


@pytest.fixture
def page() -> Page:
    return Page()


def test_requests_are_counted_by_deployment_version_and_code(page: Page) -> None:
    page.serving = [served(1), served(1, "other"), served(2)]
    first, other, _ = page.serving
    first.tally.answered(3, 0.1, NOW)
    first.tally.answered(1, 0.1, NOW)
    first.tally.failed(0.1, "INVALID_ARGUMENT")
    other.tally.failed(0.1, "CANCELLED")
    found = page.read()
    assert found[REQUESTS, "late", "late", "1", "OK"] == 2
    assert found[REQUESTS, "late", "late", "1", "INVALID_ARGUMENT"] == 1
    assert found[REQUESTS, "other", "late", "1", "CANCELLED"] == 1
    assert found[PREDICTIONS, "late", "late", "1"] == 4
    assert found[PREDICTIONS, "late", "late", "2"] == 0


def test_the_time_of_a_model_is_summed_over_its_deployments(page: Page) -> None:
    page.serving = [served(1), served(1, "other")]
    page.serving[0].tally.inferred(0.000_05)
    page.serving[1].tally.inferred(0.002)
    page.serving[1].tally.inferred(7.0)
    found = page.read()
    assert found[INFERENCE + "_count", "late", "1"] == 3
    assert found[INFERENCE + "_sum", "late", "1"] == pytest.approx(7.002_05)
    counts = [found[INFERENCE + "_bucket", "late", "1", repr(bound)] for bound in INFERENCE_BUCKETS_S]
    assert counts == [0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert found[INFERENCE + "_bucket", "late", "1", "+Inf"] == 3


def test_a_version_that_is_gone_is_shown_to_the_next_scrapes_and_then_no_more(page: Page) -> None:
    """With what it counted last; the one after it is shown beside it."""
    old, new = served(1), served(2)
    page.serving = [old]
    page.read()
    page.serving = [new]
    old.tally.answered(5, 0.1, NOW)
    assert page.read()[PREDICTIONS, "late", "late", "1"] == 5
    page.now = RETIRED_S - 1
    assert page.read()[PREDICTIONS, "late", "late", "1"] == 5
    page.now = RETIRED_S
    assert {labels[3] for labels in page.read() if labels[0] == PREDICTIONS} == {"2"}
    assert not any(labels[0].startswith(INFERENCE) and labels[2] == "1" for labels in page.read())


def test_a_version_that_is_loaded_again_counts_on(page: Page) -> None:
    """Nothing falls, neither then nor when what counted before is forgotten."""
    first, again = served(1), served(1)
    page.serving = [first]
    first.tally.answered(5, 0.1, NOW)
    page.read()
    page.serving = [again]
    first.tally.answered(1, 0.1, NOW)
    again.tally.answered(2, 0.1, NOW)
    assert page.read()[PREDICTIONS, "late", "late", "1"] == 8
    page.now = 2 * RETIRED_S
    page.read()
    again.tally.answered(1, 0.1, NOW)
    assert page.read()[PREDICTIONS, "late", "late", "1"] == 9


def test_a_version_that_served_between_two_scrapes_is_counted(page: Page) -> None:
    """It says so when it has its first request."""
    short = served(1)
    page.metrics.track(short)
    short.tally.answered(1, 0.1, NOW)
    assert page.read()[PREDICTIONS, "late", "late", "1"] == 1


def test_the_page_is_bounded(page: Page) -> None:
    """At the bound a new version takes the place of one that is gone; what serves keeps its own."""
    page.serving = [served(version) for version in range(TRACKED)]
    page.read()
    late = served(TRACKED)
    page.metrics.track(late)
    assert len([labels for labels in page.read() if labels[0] == PREDICTIONS]) == TRACKED
    page.serving = [*page.serving[1:], late]
    page.read()
    found = page.read()
    assert len([labels for labels in found if labels[0] == PREDICTIONS]) == TRACKED
    assert (PREDICTIONS, "late", "late", str(TRACKED)) in found
    assert (PREDICTIONS, "late", "late", "0") not in found
