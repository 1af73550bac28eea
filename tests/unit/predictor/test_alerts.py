"""The alerts that are shipped ask for metrics that there are."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from prometheus_client import CollectorRegistry, generate_latest

from foresight.values import FeatureStatus, MissingPolicy
from services.predictor.policies import Missing
from services.predictor.telemetry import Telemetry

FOLDER = Path(__file__).parents[3] / "deploy" / "prometheus"


def test_alerts_about_degraded_answers_name_metrics_and_labels_of_the_predictor() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    telemetry.missing("late_flights", [Missing(0, "wind", FeatureStatus.UNAVAILABLE, MissingPolicy.DEFAULT)])
    telemetry.watch("feature_store_away", "as in the predictor's __main__", lambda: True)
    page = generate_latest(registry).decode()
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    assert {rule["alert"] for rule in group["rules"]} == {"FeatureStoreAway", "PredictionsDegraded"}
    for rule in group["rules"]:
        names = set(re.findall(r"foresight_\w+", rule["expr"]))
        assert names
        for name in names:
            assert re.search(rf"^{name}(\{{.*\}})? 1\.0$", page, re.MULTILINE), name
    assert 'foresight_predictor_degraded_predictions_total{deployment="late_flights"} 1.0' in page
    assert yaml.safe_load((FOLDER / "prometheus.yml").read_text())["rule_files"] == ["alerts.yml"]
