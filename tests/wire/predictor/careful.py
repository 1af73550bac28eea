"""A deployment whose view says for each feature what to do without the feature store; nobody fails for good."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from foresight.predictor.v1 import prediction_pb2
from foresight.values import Column, DataType, FeatureView, MissingPolicy, ViewFeature, ViewSource
from tests.wire.predictor.rig import Rig, artifact, ask, flight_view, model_version

CAREFUL = "careful_flights"
AGE_MAX = timedelta(hours=3)
DELAY = ViewFeature("delay", missing=MissingPolicy.LAST_KNOWN, last_known_max_age=AGE_MAX)
FLIGHTS = ViewFeature("flights", missing=MissingPolicy.DEFAULT, default=Column.build("flights", DataType.INT64, [10]))
WIND = ViewFeature("wind")
SOME_WIND = ViewFeature(
    "wind",
    missing=MissingPolicy.LAST_KNOWN,
    default=Column.build("wind", DataType.FLOAT64, [3.0]),
    last_known_max_age=AGE_MAX,
)
SOME_DELAY = ViewFeature(
    "delay",
    missing=MissingPolicy.LAST_KNOWN,
    default=Column.build("delay", DataType.FLOAT64, [1.0]),
    last_known_max_age=AGE_MAX,
)


def careful_view(*, delay: ViewFeature = DELAY, wind: ViewFeature = WIND) -> FeatureView:
    """The flights view with LAST_KNOWN for the delay, a default for the flights, and NULL for the wind."""
    return flight_view(
        version=9,
        sources=(
            ViewSource("carriers", (delay, FLIGHTS), max_age=timedelta(days=1), group_version=2),
            ViewSource("weather", (wind,), group_version=1),
        ),
    )


async def deploy_careful(rig: Rig, **features: ViewFeature) -> None:
    """Deploys it beside the others."""
    view = careful_view(**features)
    rig.features.views[(view.name, view.version)] = view
    rig.trainer.register(model_version(9, view=view), artifact(0.0))
    await rig.trainer.deploy(CAREFUL, "late", 9)


def ask_carefully(*carriers: str, **options: Any) -> prediction_pb2.PredictRequest:
    """A request about these carriers."""
    n = len(carriers)
    return ask(n, deployment=CAREFUL, carrier=Column.build("carrier", DataType.STRING, carriers), **options)


Shown = dict[tuple[int, str], tuple[str, str]]


def shown(response: prediction_pb2.PredictResponse) -> Shown:
    """Status and policy of each missing feature, by row and name."""
    status, policy = (prediction_pb2.MissingFeature.DESCRIPTOR.fields_by_name[f] for f in ("status", "policy"))
    return {
        (m.row, m.feature): (
            status.enum_type.values_by_number[m.status].name.removeprefix("FEATURE_STATUS_"),
            policy.enum_type.values_by_number[m.policy].name.removeprefix("MISSING_POLICY_"),
        )
        for m in response.missing
    }
