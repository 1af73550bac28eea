"""Predictions, outcomes and the log: what each call sends, and what it makes of the answer."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from foresight.client import (
    ArmAnswer,
    Client,
    DataType,
    FeatureStatus,
    InvalidValue,
    MissingFeature,
    NotFound,
    VersionRef,
)
from foresight.feature_store.v1 import offline_pb2, online_pb2, registry_pb2
from foresight.logger.v1 import outcome_pb2, prediction_log_pb2
from foresight.predictor.v1 import prediction_pb2
from foresight.tables import encode_table
from foresight.types.v1 import types_pb2
from foresight.values import Column, micros_from_instant
from foresight.wire import decode_column, encode_column, encode_instant
from services.runtime import errors
from tests.wire.client.delays import HOUR, NOON, described_view, ref
from tests.wire.client.fake_foresight import FakeForesight, pieces


def test_a_prediction_is_asked_with_typed_columns_and_answered_with_plain_values(
    client: Client, fake: FakeForesight
) -> None:
    answer = prediction_pb2.PredictResponse(
        prediction_ids=["a", "b"],
        outputs=[
            encode_column(Column.build("probability", DataType.FLOAT64, [0.25, 0.5])),
            encode_column(Column.build("label", DataType.BOOL, [False, True])),
        ],
        model=ref("delays", 2),
        event_time=encode_instant(NOON),
        missing=[
            prediction_pb2.MissingFeature(row=1, feature="wind", status=online_pb2.FEATURE_STATUS_EXPIRED),
            prediction_pb2.MissingFeature(
                row=1,
                feature="gust",
                status=online_pb2.FEATURE_STATUS_UNAVAILABLE,
                policy=registry_pb2.MISSING_POLICY_LAST_KNOWN,
                last_known_at=encode_instant(NOON - HOUR),
            ),
        ],
    )
    fake.on("Predict", answer)
    found = client.predict("delays", [{"origin": "JFK", "hour": 17}, {"origin": None, "hour": 18}], event_time=NOON)
    assert found.ids == ["a", "b"]
    assert found.outputs == {"probability": [0.25, 0.5], "label": [False, True]}
    assert (found.model, found.event_time, len(found)) == (("delays", 2), NOON, 2)
    assert found.missing == [
        MissingFeature(1, "wind", FeatureStatus.EXPIRED),
        MissingFeature(1, "gust", FeatureStatus.UNAVAILABLE, "last_known", NOON - HOUR),
    ]
    assert found.degraded
    assert not replace(found, missing=found.missing[:1]).degraded
    [request] = fake.requests("Predict")
    assert (request.deployment, request.event_time) == ("delays", encode_instant(NOON))
    assert [decode_column(column).to_list() for column in request.columns] == [["JFK", None], [17, 18]]


def test_an_arm_is_forced_by_name_and_the_answer_tells_who_answered(client: Client, fake: FakeForesight) -> None:
    parts = [
        prediction_pb2.ArmAnswer(arm="champion", model=ref("delays", 2), rows=[0, 2]),
        prediction_pb2.ArmAnswer(arm="challenger", model=ref("delays", 3), rows=[1]),
    ]
    fake.on("Predict", prediction_pb2.PredictResponse(prediction_ids=["a", "b", "c"], arms=parts))
    found = client.predict("delays", [{"hour": hour} for hour in (1, 2, 3)])
    assert found.arms == (
        ArmAnswer("champion", VersionRef("delays", 2), (0, 2)),
        ArmAnswer("challenger", VersionRef("delays", 3), (1,)),
    )
    assert "x-foresight-arm" not in fake.headers["Predict"]
    client.predict("delays", {"hour": 1}, arm="challenger")
    assert fake.headers["Predict"]["x-foresight-arm"] == "challenger"
    with pytest.raises(InvalidValue):
        client.predict("delays", {"hour": 1}, arm="No Arm")


def test_an_explanation_is_lists_and_a_frame(client: Client, fake: FakeForesight) -> None:
    """What each input adds, by name; without one there is none."""

    def floats(name: str, *values: float) -> types_pb2.Column:
        return encode_column(Column.build(name, DataType.FLOAT64, values))

    explanation = prediction_pb2.Explanation(
        output="probability",
        base=floats("base", 0.5, 0.5),
        score=floats("score", 0.25, 0.75),
        contributions=[floats("wind", 0.0, 0.5), floats("hour", -0.25, -0.25)],
    )
    answer = prediction_pb2.PredictResponse(
        prediction_ids=["a", "b"], event_time=encode_instant(NOON), explanation=explanation
    )
    fake.on("Predict", answer)
    found = client.predict("delays", [{"hour": 17}, {"hour": 18}], explain=True).explanation
    assert found is not None
    assert (found.output, found.base, found.score, len(found)) == ("probability", [0.5, 0.5], [0.25, 0.75], 2)
    assert found.to_frame().to_dict("list") == {"wind": [0.0, 0.5], "hour": [-0.25, -0.25]}
    assert list(found.of(0).items()) == [("hour", -0.25), ("wind", 0.0)]
    assert list(found.of(1).items()) == [("wind", 0.5), ("hour", -0.25)]
    answer.ClearField("explanation")
    assert client.predict("delays", {"hour": 17}).explanation is None
    assert [r.explain for r in fake.requests("Predict")] == [True, False]


def test_outcomes_go_by_id_or_by_key_in_calls_of_ten_thousand(client: Client, fake: FakeForesight) -> None:
    fake.on(
        "RecordOutcomes",
        lambda r: outcome_pb2.RecordOutcomesResponse(matched=len(r.observed_at_micros), held=1, duplicates=2),
    )
    n = 25_000
    counts = client.record_outcomes([True] * n, NOON, prediction_ids=[str(i) for i in range(n)])
    assert (counts.matched, counts.held, counts.duplicates) == (n, 3, 6)
    client.record_outcomes(
        [1.5, 2.5],
        [NOON, NOON],
        deployment="delays",
        entity_keys=pd.DataFrame({"origin": ["JFK", None]}),
        event_times=[NOON, NOON - HOUR],
        revisions=[0, 1],
    )
    *parts, by_key = fake.requests("RecordOutcomes")
    assert [id for part in parts for id in part.prediction_ids] == [str(i) for i in range(n)]
    assert [len(decode_column(part.values)) for part in parts] == [10_000, 10_000, 5_000]
    assert decode_column(by_key.entity_keys[0]).to_list() == ["JFK", None]
    assert (list(by_key.revisions), by_key.deployment) == ([0, 1], "delays")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, "prediction_ids"),
        ({"prediction_ids": ["a", "b"]}, "prediction_ids"),
        ({"prediction_ids": ["a"], "entity_keys": [{"origin": "JFK"}]}, "prediction_ids"),
        ({"entity_keys": [{"origin": "JFK"}]}, "event_times"),
        ({"entity_keys": [{"origin": "JFK"}] * 2, "event_times": [NOON]}, "entity_keys.origin"),
        ({"prediction_ids": ["a"], "revisions": [1, 2]}, "revisions"),
        ({"prediction_ids": ["a"], "observed_at": [NOON.replace(tzinfo=None)]}, "observed_at"),
    ],
)
def test_outcomes_that_do_not_fit_together_are_not_sent(
    client: Client, fake: FakeForesight, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        client.record_outcomes(**{"values": [True], "observed_at": NOON, "deployment": "delays", **arguments})
    assert caught.value.violations[0].field == field
    assert fake.requests("RecordOutcomes") == []


def _log(*ids: str, deployment: str = "delays") -> pa.Table:
    return pa.table(
        {
            "prediction_id": list(ids),
            "event_time": [NOON] * len(ids),
            "log_deployment": [deployment] * len(ids),
            "wind": [1.0] * len(ids),
            "known_at": [NOON] * len(ids),
            "commit": [1] * len(ids),
            "deleted": [False] * len(ids),
        }
    )


def _read(tables: dict[str, pa.Table]) -> Any:
    def read(request: Any) -> Iterator[Any]:
        if request.query.group.name not in tables:
            raise errors.NotFound("group", request.query.group.name)
        yield from pieces(offline_pb2.ReadFeaturesResponse, encode_table(tables[request.query.group.name]))

    return read


def test_logged_predictions_come_with_their_outcomes_in_the_order_of_the_log(
    client: Client, fake: FakeForesight
) -> None:
    fake.on("GetFeatureView", described_view())
    late = pa.table({"prediction_id": ["b", "x"], "event_time": [NOON + HOUR] * 2, "late": [True, False]})
    log = pa.concat_tables([_log("a", "b"), _log("c", deployment="other")])
    fake.on("ReadFeatures", _read({"log_predictions_delays_v3": log, "log_outcomes_delays_v3": late}))
    found = client.predictions("delays", view="delays", to_event_time=NOON, output="arrow")
    assert found.column_names == ["prediction_id", "event_time", "log_deployment", "wind", "late", "observed_at"]
    assert found["prediction_id"].to_pylist() == ["a", "b"]
    assert found["late"].to_pylist() == [None, True]
    assert found["observed_at"].to_pylist() == [None, NOON + HOUR]
    assert client.predictions(view="delays", output="arrow").num_rows == 3


def test_predictions_without_any_outcome_have_null_labels(client: Client, fake: FakeForesight) -> None:
    fake.on("GetFeatureView", described_view())
    fake.on("ReadFeatures", _read({"log_predictions_delays_v3": _log("a")}))
    frame = client.predictions(view="delays")
    assert frame["late"].isna().tolist() == [True]
    fake.on("ReadFeatures", _read({}))
    with pytest.raises(NotFound, match="no predictions of the view delays v3"):
        client.predictions(view="delays")


def test_one_prediction_is_told_with_everything_behind_it(client: Client, fake: FakeForesight) -> None:
    wind = Column.build("wind", DataType.FLOAT64, [1.5, None])
    record = prediction_log_pb2.PredictionRecord(
        first_sequence=7,
        prediction_ids=["a", "b"],
        event_time=encode_instant(NOON),
        entity_keys=[encode_column(Column.build("origin", DataType.STRING, ["JFK", "LGA"]))],
        features=[
            prediction_log_pb2.LoggedFeature(column=encode_column(wind), statuses=b"\1\4", policies=b"\0\1"),
            prediction_log_pb2.LoggedFeature(column=encode_column(wind.renamed("gust"))),
            prediction_log_pb2.LoggedFeature(
                column=encode_column(wind.renamed("calm")),
                statuses=b"\1\6",
                policies=b"\0\4",
                last_known_event_time_micros=[0, micros_from_instant(NOON - HOUR)],
                last_known_commits=[0, 7],
            ),
        ],
        outputs=[encode_column(Column.build("probability", DataType.FLOAT64, [0.25, 0.5]))],
    )
    outcome = prediction_log_pb2.LoggedOutcome(
        value=encode_column(Column.build("value", DataType.BOOL, [True])), observed_at=encode_instant(NOON), revision=1
    )
    fake.on("GetPrediction", prediction_log_pb2.GetPredictionResponse(record=record, row=1, outcome=outcome))
    found = client.prediction("b")
    assert (found.prediction_id, found.sequence, found.entity_keys) == ("b", 8, {"origin": "LGA"})
    wind_use, gust_use = found.features["wind"], found.features["gust"]
    assert (wind_use.value, wind_use.status, wind_use.policy) == (None, FeatureStatus.EXPIRED, "null")
    assert (gust_use.status, gust_use.policy) == (FeatureStatus.PRESENT, "")
    calm_use = found.features["calm"]
    assert (calm_use.status, calm_use.policy) == (FeatureStatus.UNAVAILABLE, "last_known")
    assert (calm_use.last_known_at, calm_use.last_known_commit) == (NOON - HOUR, 7)
    assert found.outputs == {"probability": 0.5}
    assert found.outcome is not None
    assert (found.outcome.value, found.outcome.revision) == (True, 1)
    assert (found.arm, found.arm_probability, found.arm_forced, found.shadow) == ("", 1.0, False, False)
    record.arm, record.shadow = "next", True
    fake.on("GetPrediction", prediction_log_pb2.GetPredictionResponse(record=record, row=0))
    beside = client.prediction("a")
    assert (beside.arm, beside.arm_probability, beside.shadow) == ("next", 0.0, True)


def test_a_verification_names_what_differs(client: Client, fake: FakeForesight) -> None:
    mismatch = prediction_pb2.Mismatch(
        name="wind", cause=prediction_pb2.MISMATCH_CAUSE_EXPIRY, recorded="1.5", replayed="NULL"
    )
    fake.on("VerifyPrediction", prediction_pb2.VerifyPredictionResponse(mismatches=[mismatch], model=ref("delays", 2)))
    found = client.verify("a")
    assert (found.verified, found.mismatches[0].cause, found.model) == (False, "expiry", ("delays", 2))
