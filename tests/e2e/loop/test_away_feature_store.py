"""The feature store of a running stack is killed: who can be answered without it is, everybody else is told so."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from deploy.local import LocalStack
from foresight.client import (
    Client,
    Column,
    DataType,
    FeatureGroup,
    FeatureStatus,
    FeatureView,
    Field,
    MissingPolicy,
    Predictions,
    Unavailable,
    ViewFeature,
    ViewSource,
)

START = datetime(2026, 5, 1, tzinfo=UTC)
ASKED_AT = START + timedelta(hours=2)
SHOPS = [f"shop-{i}" for i in range(20)]
STOCK = FeatureGroup(
    "stock",
    (Field("shop", DataType.STRING),),
    (Field("items", DataType.INT64), Field("staff", DataType.FLOAT64)),
)


def _view(name: str, items: ViewFeature, staff: ViewFeature) -> FeatureView:
    return FeatureView(
        name,
        Field("sold_out", DataType.BOOL),
        (ViewSource("stock", (items, staff)),),
        request_features=(Field("hour", DataType.FLOAT64),),
    )


BOLD = _view(
    "bold",
    ViewFeature("items", missing=MissingPolicy.LAST_KNOWN, last_known_max_age=timedelta(hours=6)),
    ViewFeature("staff", missing=MissingPolicy.DEFAULT, default=Column.build("staff", DataType.FLOAT64, [2.0])),
)
STRICT = _view("strict", ViewFeature("items"), ViewFeature("staff", missing=MissingPolicy.FAIL))


@pytest.fixture(scope="module")
def built(empty_stack: LocalStack) -> LocalStack:
    """A stack with a deployment of each view."""
    n = len(SHOPS)
    with Client(state=empty_stack.state, retry_s=60) as client:
        client.apply(STOCK, BOLD, STRICT)
        rows = {"shop": SHOPS, "items": range(n), "staff": [i / 4 for i in range(n)], "event_time": START}
        client.write("stock", pd.DataFrame(rows))
        at = [START + timedelta(hours=1)] * n
        spine = {
            "shop": SHOPS,
            "hour": [i % 5 for i in range(n)],
            "event_time": at,
            "sold_out": [i < 9 for i in range(n)],
        }
        for view in ("bold", "strict"):
            dataset = client.create_training_dataset(view, view, pd.DataFrame(spine).astype({"hour": float}))
            model = client.train(view, Pipeline([("model", LogisticRegression())]), train=[dataset])
            client.deploy(view, view, model.version)
    return empty_stack


@pytest.fixture
def client(built: LocalStack) -> Iterator[Client]:
    """A client that does not try again."""
    with Client(state=built.state, retry_s=0) as opened:
        yield opened


def _ask(client: Client, deployment: str) -> Predictions | None:
    """The answer; None: UNAVAILABLE."""
    try:
        return client.predict(
            deployment, [{"shop": shop, "hour": 3.0} for shop in ("shop-3", "shop-17")], event_time=ASKED_AT
        )
    except Unavailable:
        return None


def _ask_until_present(client: Client, deployment: str) -> tuple[list[Predictions], int]:
    """Asks until all features are there; the answers so far, and how many calls had none."""
    answers, refused = [], 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = _ask(client, deployment)
        if answer is None:
            refused += 1
        else:
            answers.append(answer)
            if not answer.missing:
                return answers, refused
    raise AssertionError("the features did not come back")


def test_predictions_go_on_by_policy_while_the_feature_store_is_killed(built: LocalStack, client: Client) -> None:
    """Also across the restart; the strict ones are UNAVAILABLE meanwhile; all that was answered verifies."""
    before = _ask_until_present(client, "bold")[0][-1], _ask_until_present(client, "strict")[0][-1]
    answers: dict[str, list[Predictions]] = {"bold": [], "strict": []}
    # Whether a call meets the gap is for the machine to say, so the store is killed until some did.
    for _ in range(10):
        pid = built.pid("feature_store")
        os.kill(pid, signal.SIGKILL)
        gap = [(_ask(client, "bold"), _ask(client, "strict")) for _ in range(10)]
        built.wait_restarted("feature_store", pid)
        met = [(bold, strict) for bold, strict in gap if strict is None and bold is not None and bold.missing]
        answers["bold"] += [bold for bold, _ in gap if bold is not None]
        answers["strict"] += [strict for _, strict in gap if strict is not None]
        for deployment, found in answers.items():
            found += _ask_until_present(client, deployment)[0]
        if met:
            break
    assert met
    with Client(state=built.state, retry_s=60) as patient:
        patient.wait_ingested()
        for deployment, found in answers.items():
            assert found[-1].outputs == before[deployment == "strict"].outputs
            for answer in found:
                _check(answer, strict=deployment == "strict")
            # Some of hundreds, and of those without the feature store most.
            for answer in (*found[:: max(1, len(found) // 10)], *[a for a in found if a.missing][:10]):
                assert all(patient.verify(prediction_id).verified for prediction_id in answer.ids)
        degraded = next(a for a in answers["bold"] if a.missing)
        log = patient.predictions("bold", view="bold").set_index("prediction_id")["log_degraded"]
        assert log.loc[degraded.ids].all()
        assert not log.loc[answers["bold"][-1].ids].any()
        logged = patient.prediction(degraded.ids[0]).features
        items = logged["items"]
        assert (items.value, items.policy, items.last_known_at) == (3, "last_known", START)
        assert (logged["staff"].value, logged["staff"].policy) == (2.0, "default")
        assert all(row.unaccounted == 0 for row in patient.ledger())


def _check(answer: Predictions, *, strict: bool) -> None:
    """Whole, or without the feature store as the policies say."""
    if strict or not answer.missing:
        assert not answer.missing
        return
    assert {(m.row, m.feature, m.status, m.policy, m.last_known_at) for m in answer.missing} == {
        (row, *what)
        for row in range(2)
        for what in (
            ("items", FeatureStatus.UNAVAILABLE, "last_known", START),
            ("staff", FeatureStatus.UNAVAILABLE, "default", None),
        )
    }
