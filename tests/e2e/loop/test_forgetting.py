"""A customer is forgotten in a running stack, whose feature store is killed meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import asyncpg
import pandas as pd
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from deploy.local import LocalStack
from foresight.client import (
    Client,
    DataType,
    FailedPrecondition,
    FeatureGroup,
    FeatureView,
    Field,
    LineageThing,
    NotFound,
    VersionRef,
    ViewFeature,
    ViewSource,
)

START = datetime(2026, 4, 1, tzinfo=UTC)
ASKED_AT = START + timedelta(days=2)
MARKER, OTHER = "mk-e2e-forget-me", "guest-7"
GUESTS = [*(f"guest-{i}" for i in range(20)), MARKER]
VISITS = FeatureGroup("visits", (Field("guest", DataType.STRING),), (Field("meals", DataType.FLOAT64),))
VIEW = FeatureView(
    "returning",
    Field("returns", DataType.BOOL),
    (ViewSource("visits", (ViewFeature("meals"),), keys={"guest": "diner"}),),
    request_features=(Field("tip", DataType.FLOAT64),),
)


@pytest.fixture
def client(empty_stack: LocalStack) -> Iterator[Client]:
    """A client of a stack that serves a model trained on all guests."""
    with Client(state=empty_stack.state, retry_s=60) as opened:
        opened.apply(VISITS, VIEW)
        rows = {"guest": GUESTS, "meals": [float(i) for i in range(len(GUESTS))], "event_time": START}
        opened.write("visits", pd.DataFrame(rows))
        dataset = opened.create_training_dataset("all_guests", "returning", _spine(GUESTS))
        pipeline = Pipeline([("impute", SimpleImputer()), ("model", LogisticRegression())])
        model = opened.train("returning", pipeline, train=[dataset])
        opened.deploy("returning", "returning", model.version)
        yield opened


def _spine(guests: list[str]) -> pd.DataFrame:
    n = len(guests)
    truth = [i % 2 == 0 for i in range(n)]
    return pd.DataFrame(
        {"diner": guests, "tip": [1.0] * n, "event_time": [START + timedelta(days=1)] * n, "returns": truth}
    )


async def test_a_customer_is_forgotten_everywhere_though_the_feature_store_is_killed(
    client: Client, empty_stack: LocalStack
) -> None:
    kept = client.create_training_dataset("others", "returning", _spine(GUESTS[:-1]))
    answer = client.predict("returning", [{"diner": d, "tip": 2.0} for d in (MARKER, OTHER)], event_time=ASKED_AT)
    client.record_outcomes([True, False], datetime.now(UTC), prediction_ids=answer.ids)
    client.wait_ingested()
    assert await _tables_with(empty_stack, MARKER)

    with ThreadPoolExecutor(1) as pool:
        forgetting = pool.submit(client.forget_entity, {"guest": MARKER}, request_id="e2e")
        pid = empty_stack.pid("feature_store")
        os.kill(pid, signal.SIGKILL)
        empty_stack.wait_restarted("feature_store", pid)
        done = forgetting.result(timeout=90)

    assert done.rows == {
        VersionRef("visits", 1): 1,
        VersionRef("log_predictions_returning_v1", 1): 1,
        VersionRef("log_outcomes_returning_v1", 1): 1,
    }
    assert done.predictions == 1
    assert list(done.datasets.values()) == ["all_guests"]
    assert done.affected == (LineageThing.parse("model:returning@1"), LineageThing.parse("deployment:returning"))
    assert client.erasure("e2e") == done

    assert await _tables_with(empty_stack, MARKER) == set()
    with pytest.raises(NotFound):
        client.verify(answer.ids[0])
    assert client.verify(answer.ids[1]).verified
    assert client.predictions("returning", view="returning")["diner"].tolist() == [OTHER]
    assert len(client.read_training_dataset(kept.id)) == 20
    [forgotten] = done.datasets
    with pytest.raises(FailedPrecondition, match="forgotten"):
        client.recreate_training_dataset(forgotten)
    again = client.predict("returning", [{"diner": MARKER, "tip": 2.0}], event_time=ASKED_AT)
    assert [m.feature for m in again.missing] == ["meals"]
    client.wait_ingested()
    for row in client.ledger():
        assert row.unaccounted == 0


async def _tables_with(stack: LocalStack, value: str) -> set[str]:
    """Tables of the feature store and the logger that have a value anywhere, in texts or in bytes."""
    found = set()
    for schema in ("feature_store", "logger"):
        url = stack.connection["sink"]["url"].replace("report@", f"{schema}@")
        password = (stack.state / "secrets" / f"{schema}.password").read_text()
        connection = await asyncpg.connect(url, password=password)
        try:
            listed = "SELECT table_name FROM information_schema.tables WHERE table_schema = $1"
            for (name,) in await connection.fetch(listed, schema):
                contains = (
                    f"SELECT count(*) FROM {schema}.{name} t "
                    "WHERE position($1 IN t::text) > 0 OR position($2 IN t::text) > 0"
                )
                if await connection.fetchval(contains, value, value.encode().hex()):
                    found.add(f"{schema}.{name}")
        finally:
            await connection.close()
    return found
