"""A service that is away is asked again, streams from their beginning; everything else is raised at once."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression

from foresight.client import (
    Aborted,
    Client,
    DataType,
    FeatureGroup,
    Field,
    InvalidArgument,
    InvalidValue,
    NotConnected,
    PermissionDenied,
    Unavailable,
    Unimplemented,
    Violation,
)
from foresight.client.connection import Connection, Retry, Target
from foresight.feature_store.v1 import offline_pb2, registry_pb2
from foresight.predictor.v1 import prediction_pb2
from foresight.tables import decode_table, encode_table
from foresight.trainer.v1 import flywheel_pb2, model_registry_pb2, training_pb2
from foresight.types.v1 import types_pb2
from foresight.wire import encode_group, encode_instant
from services.runtime import errors
from tests.wire.client.conftest import Pauses
from tests.wire.client.fake_foresight import FakeForesight, Gateway, pieces, tables

NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)
AWAY = errors.Unavailable("the database does not answer")
GROUP = FeatureGroup("weather", (Field("origin", DataType.STRING),), (Field("wind", DataType.FLOAT64),))
# More than one chunk of the stream.
ROWS = pa.table({"origin": ["JFK"] * 100_000, "event_time": [NOON] * 100_000, "wind": [1.5] * 100_000})


def test_a_prediction_is_asked_again_until_the_service_is_back(
    client: Client, fake: FakeForesight, pauses: Pauses
) -> None:
    answer = prediction_pb2.PredictResponse(prediction_ids=["a"], event_time=encode_instant(NOON))
    fake.on("Predict", AWAY, AWAY, answer)
    assert client.predict("delays", {"origin": "JFK"}).ids == ["a"]
    assert pauses.all == [0.05, 0.1]
    assert len({request.SerializeToString() for request in fake.requests("Predict")}) == 1


def test_an_upload_starts_again_from_its_beginning_under_the_same_write_id(client: Client, fake: FakeForesight) -> None:
    fake.on("GetFeatureGroup", registry_pb2.GetFeatureGroupResponse(group=encode_group(GROUP)))
    fake.on("WriteFeatures", AWAY, offline_pb2.WriteFeaturesResponse(commit=7, rows=100_000))
    heard: list[tuple[str, int]] = []
    commit = client.write("weather", ROWS, progress=lambda stage, rows: heard.append((stage, rows)))
    assert (commit.number, commit.rows) == (7, 100_000)
    first, second = fake.requests("WriteFeatures")
    assert first[0].header.write_id == second[0].header.write_id
    assert decode_table([tables(first)]).equals(decode_table([tables(second)]))
    assert heard[-1] == ("uploading", 100_000)
    assert len(second) > 2


def test_a_download_that_breaks_off_starts_again_from_its_beginning(client: Client, fake: FakeForesight) -> None:
    parts = pieces(offline_pb2.ReadFeaturesResponse, encode_table(ROWS))
    assert len(parts) > 2
    attempts = iter([[*parts[:2], AWAY], parts])
    fake.on("ReadFeatures", lambda request: next(attempts))
    assert client.read("weather", output="arrow").num_rows == 100_000
    assert len(fake.requests("ReadFeatures")) == 2


def test_a_training_that_breaks_off_is_trained_again(client: Client, fake: FakeForesight) -> None:
    fitting = training_pb2.TrainResponse(progress=training_pb2.TrainingProgress(stage="fitting", rows=10))
    model = types_pb2.VersionRef(name="delays", version=2)
    done = training_pb2.TrainResponse(version=model_registry_pb2.ModelVersion(model=model))
    attempts = iter([[fitting, AWAY], [fitting, done]])
    fake.on("Train", lambda request: next(attempts))
    heard: list[str] = []
    version = client.train("delays", LogisticRegression(), "d1", progress=lambda stage, rows: heard.append(stage))
    assert version.ref == ("delays", 2)
    assert heard == ["fitting", "fitting"]


def test_a_judgement_whose_answer_was_lost_is_looked_up_and_not_made_twice(client: Client, fake: FakeForesight) -> None:
    """Judged again, a promoted challenger would be its own champion."""
    decision = flywheel_pb2.Decision(
        id="x",
        challenger=types_pb2.VersionRef(name="delays", version=2),
        dataset_id="d1",
        judged_at=encode_instant(NOON),
        promoted=True,
    )
    other = flywheel_pb2.Decision(id="y", challenger=decision.challenger, dataset_id="d2", judged_at=decision.judged_at)
    fake.on("JudgeChallenger", AWAY)
    fake.on("ListDecisions", AWAY, flywheel_pb2.ListDecisionsResponse(decisions=[decision, other]))
    found = client.judge("delays", ("delays", 2), "d1", judged_at=NOON)
    assert (found.id, found.promoted) == ("x", True)
    assert len(fake.requests("JudgeChallenger")) == 1


def test_a_judgement_that_was_not_made_is_made_again(client: Client, fake: FakeForesight) -> None:
    fake.on("JudgeChallenger", AWAY, flywheel_pb2.JudgeChallengerResponse(decision=flywheel_pb2.Decision(id="x")))
    fake.on("ListDecisions", flywheel_pb2.ListDecisionsResponse())
    assert client.judge("delays", ("delays", 2), "d1", judged_at=NOON).id == "x"
    assert len(fake.requests("JudgeChallenger")) == 2


def test_retries_end_after_their_time_with_the_last_error(client: Client, fake: FakeForesight, pauses: Pauses) -> None:
    fake.on("ListFeatureGroups", AWAY)
    with pytest.raises(Unavailable, match="the database does not answer"):
        client.groups()
    assert 28 < pauses.now <= 30


def test_a_change_with_an_etag_is_made_once(client: Client, fake: FakeForesight, pauses: Pauses) -> None:
    """A second attempt would find the first one's etag."""
    fake.on("SetDeployment", AWAY)
    with pytest.raises(Unavailable):
        client.deploy("delays", "delays", etag="e1")
    fake.on("SetDeployment", errors.StaleEtag("somebody else was faster"))
    with pytest.raises(Aborted) as caught:
        client.deploy("delays", "delays", etag="e1")
    assert caught.value.reason == "STALE_ETAG"
    assert pauses.all == []


def test_refusals_are_raised_at_once_with_their_violations(client: Client, fake: FakeForesight, pauses: Pauses) -> None:
    fake.on("Predict", InvalidValue("columns[a]", "is missing", Violation("columns[b]", "is float64, not int64")))
    with pytest.raises(InvalidArgument) as caught:
        client.predict("delays", {"a": 1})
    assert caught.value.violations[1] == Violation("columns[b]", "is float64, not int64")
    fake.on("Predict", errors.PermissionDenied("not you"))
    with pytest.raises(PermissionDenied):
        client.predict("delays", {"a": 1})
    assert pauses.all == []


def test_an_unknown_method_is_unimplemented(gateway: Gateway, client: Client) -> None:
    call: Any = client._connection.channel.unary_unary("/foresight.none.v1.NoService/Nothing")
    with pytest.raises(Unimplemented):
        client._connection.call(call, b"")


def test_a_gateway_that_is_gone_is_named(gateway: Gateway, client: Client, pauses: Pauses) -> None:
    gateway.stop()
    with pytest.raises(NotConnected, match=f"no Foresight answers at 127.0.0.1:{gateway.port}"):
        client.groups()
    assert pauses.now > 1


def test_a_gateway_of_another_authority_is_named_and_not_tried_again(
    gateway: Gateway, pauses: Pauses, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stranger = Gateway(tmp_path_factory.mktemp("stranger"))
    stranger.stop()
    mine = Target.local(gateway.state)
    target = Target(mine.address, Target.local(stranger.state).ca, mine.certificate, mine.key)
    retry = Retry(30.0, clock=lambda: pauses.now, sleep=pauses.sleep)
    with (
        Client(connection=Connection.open(target, retry)) as client,
        pytest.raises(NotConnected, match="no certificate that this client trusts"),
    ):
        client.groups()
    assert pauses.all == []
