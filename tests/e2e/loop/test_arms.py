"""A deployment of two arms and a shadow in a whole stack: shares, records, ledger, outcomes, training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from deploy.local import LocalStack
from foresight.client import (
    Arm,
    Client,
    DataType,
    FeatureGroup,
    FeatureView,
    Field,
    Logged,
    NotFound,
    PermissionDenied,
    ViewFeature,
    ViewSource,
)
from foresight.client.connection import Target
from tests.e2e.local_stack.calls import eventually

START = datetime(2026, 3, 1, tzinfo=UTC)
ASKED_AT = START + timedelta(days=1)
SHOPS = 300
SHOP = Field("shop", DataType.INT64)
VISITORS = FeatureGroup("shop_visitors", (SHOP,), (Field("visitors", DataType.FLOAT64),))
BUSY = FeatureView(
    "busy_shops",
    label=Field("busy", DataType.BOOL),
    sources=(ViewSource("shop_visitors", (ViewFeature("visitors"),), max_age=timedelta(days=30)),),
)
CHAMPION, CHALLENGER = Arm("champion", "busy_shops", 1, weight=90), Arm("challenger", "busy_shops", 2, weight=10)
SHADOW = Arm("next", "busy_shops", 3, shadow=True)


@pytest.fixture(scope="module")
def client(stack: LocalStack) -> Iterator[Client]:
    """An operator; three versions of one model that score differently, two as arms and one as shadow."""
    with Client(state=stack.state) as connected:
        connected.apply(VISITORS, BUSY)
        rows = {"shop": range(SHOPS), "event_time": [START] * SHOPS, "visitors": [float(i) for i in range(SHOPS)]}
        connected.write("shop_visitors", pd.DataFrame(rows))
        spine = pd.DataFrame(
            {"shop": range(SHOPS), "event_time": [ASKED_AT] * SHOPS, "busy": [i > SHOPS / 2 for i in range(SHOPS)]}
        )
        dataset = connected.create_training_dataset("busy", "busy_shops", spine)
        for strength in (1e-6, 1e-5, 1e-4):
            columns = ColumnTransformer([("visitors", "passthrough", ["visitors"])])
            model = LogisticRegression(C=strength)
            connected.train("busy_shops", Pipeline([("columns", columns), ("model", model)]), train=[dataset])
        yield connected


def test_ninety_to_ten_with_a_shadow_from_the_answers_to_training_rows(client: Client) -> None:
    """Counted at the client: every answer is logged once, and every question once more by the shadow."""
    client.deploy("busy_ninety", arms=[CHAMPION, CHALLENGER, SHADOW])
    answers = [
        client.predict("busy_ninety", [{"shop": shop} for shop in range(first, first + 30)], event_time=ASKED_AT)
        for first in range(0, SHOPS, 30)
    ]
    by_id = {
        answer.ids[row]: (arm.arm, arm.model.version) for answer in answers for arm in answer.arms for row in arm.rows
    }
    assert len(by_id) == SHOPS
    assert set(by_id.values()) == {("champion", 1), ("challenger", 2)}
    shares = Counter(arm for arm, _ in by_id.values())
    # Within six standard deviations of a tenth.
    assert abs(shares["challenger"] - SHOPS / 10) < 6 * (SHOPS * 0.1 * 0.9) ** 0.5
    outcomes = client.record_outcomes(
        [shop > SHOPS / 2 for shop in range(SHOPS)],
        [datetime.now(UTC)] * SHOPS,
        deployment="busy_ninety",
        entity_keys=pd.DataFrame({"shop": range(SHOPS)}),
        event_times=[ASKED_AT] * SHOPS,
    )
    assert outcomes.matched + outcomes.held == SHOPS

    def logged() -> pd.DataFrame:
        try:
            found: pd.DataFrame = client.predictions("busy_ninety", view="busy_shops")
            return found
        except NotFound:
            return pd.DataFrame({"busy": []})

    eventually(lambda: len(logged()) == 2 * SHOPS and logged()["busy"].notna().all(), within_s=60)
    rows = logged()
    answered, beside = rows[~rows["log_shadow"]], rows[rows["log_shadow"]]
    assert {row.prediction_id: (row.log_arm, row.log_model_version) for row in answered.itertuples()} == by_id
    assert set(beside["log_arm"]) == {"next"}
    assert set(beside["log_arm_probability"]) == {0.0}
    assert sorted(beside["shop"]) == list(range(SHOPS))
    probabilities = {"champion": 0.9, "challenger": 0.1}
    assert all(row.log_arm_probability == probabilities[str(row.log_arm)] for row in answered.itertuples())
    assert not rows["log_arm_forced"].any()
    assert all(row.unaccounted == 0 for row in client.ledger())
    selection = Logged(ASKED_AT + timedelta(days=1), datetime.now(UTC), deployment="busy_ninety")
    dataset = client.create_training_dataset("busy_again", "busy_shops", logged=selection)
    assert dataset.rows == SHOPS
    for id in (answers[0].ids[0], beside["prediction_id"].iloc[0]):
        assert client.verify(id).verified
    told = client.prediction(beside["prediction_id"].iloc[0])
    assert (told.arm, told.shadow, told.outcome is not None) == ("next", True, True)


def test_operators_force_an_arm_through_the_gateway_and_applications_do_not(stack: LocalStack, client: Client) -> None:
    client.deploy("busy_forced", arms=[CHAMPION, CHALLENGER])
    forced = client.predict("busy_forced", [{"shop": 1}, {"shop": 2}], event_time=ASKED_AT, arm="challenger")
    assert [(arm.arm, arm.rows) for arm in forced.arms] == [("challenger", (0, 1))]
    with pytest.raises(NotFound):
        client.predict("busy_forced", {"shop": 1}, arm="nobody")
    target = Target.local(stack.state, "application")
    with Client.connect(target.address, ca=target.ca, certificate=target.certificate, key=target.key) as other:
        assert other.predict("busy_forced", {"shop": 1}, event_time=ASKED_AT).arms
        with pytest.raises(PermissionDenied):
            other.predict("busy_forced", {"shop": 1}, arm="challenger")


def test_weights_change_in_place(client: Client) -> None:
    """Nobody leaves the arm that grows."""
    client.deploy("busy_grown", arms=[CHAMPION, CHALLENGER, SHADOW])
    questions = [{"shop": shop} for shop in range(SHOPS)]

    def in_challenger() -> set[int]:
        answer = client.predict("busy_grown", questions, event_time=ASKED_AT)
        return {row for arm in answer.arms if arm.arm == "challenger" for row in arm.rows}

    before = in_challenger()
    arms = [Arm("champion", "busy_shops", 1, weight=80), Arm("challenger", "busy_shops", 2, weight=20), SHADOW]
    deployment = client.deploy("busy_grown", arms=arms)
    assert list(deployment.arms) == arms
    after = in_challenger()
    assert before < after
