"""VerifyPrediction: agrees when nothing changed, and names the cause of every difference."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest

from foresight.predictor.v1 import prediction_pb2
from foresight.values import Column, DataType, Field, Transform
from tests.wire.predictor.rig import NOW, TRANSFORMS, Replica, Rig, artifact, ask, flight_view, micros, until

Cause = prediction_pb2.MismatchCause


async def predicted(rig: Rig, replica: Replica, n: int = 1) -> str:
    """The id of a logged prediction, the last of n rows."""
    response = await replica.stub.Predict(ask(n))
    await until(lambda: response.prediction_ids[-1] in rig.logger.records)
    return response.prediction_ids[-1]


async def verify(replica: Replica, prediction_id: str) -> prediction_pb2.VerifyPredictionResponse:
    return await replica.stub.VerifyPrediction(prediction_pb2.VerifyPredictionRequest(prediction_id=prediction_id))


async def causes(replica: Replica, prediction_id: str) -> dict[str, int]:
    answer = await verify(replica, prediction_id)
    assert answer.verified == (not answer.mismatches)
    return {m.name: m.cause for m in answer.mismatches}


@pytest.mark.parametrize("rows", [1, 2, 65])
async def test_an_unchanged_prediction_is_verified(rig: Rig, replica: Replica, rows: int) -> None:
    """Also a row of a larger request, with policies applied."""
    answer = await verify(replica, await predicted(rig, replica, rows))
    assert answer.verified
    assert (answer.model.name, answer.model.version) == ("late", 1)


async def test_another_row_is_data(rig: Rig, replica: Replica) -> None:
    """The group is named, and the feature whose value differs."""
    prediction = await predicted(rig, replica)
    row = rig.features.rows["carriers"][("AA", "JFK")]
    row.commit, row.values = 5, {"delay": 6.0, "flights": 100}
    assert await causes(replica, prediction) == {
        "carriers": Cause.MISMATCH_CAUSE_DATA,
        "delay": Cause.MISMATCH_CAUSE_DATA,
    }


async def test_another_value_of_the_same_row_is_data(rig: Rig, replica: Replica) -> None:
    """Both values are shown."""
    prediction = await predicted(rig, replica)
    rig.features.rows["weather"][("AA", "JFK")].values = {"wind": 13.0}
    answer = await verify(replica, prediction)
    assert [(m.name, m.recorded, m.replayed) for m in answer.mismatches] == [("wind", "12.0", "13.0")]


async def test_a_vanished_row_is_data(rig: Rig, replica: Replica) -> None:
    """Also under the policy FAIL."""
    prediction = await predicted(rig, replica)
    del rig.features.rows["weather"][("AA", "JFK")]
    assert await causes(replica, prediction) == {
        "weather": Cause.MISMATCH_CAUSE_DATA,
        "wind": Cause.MISMATCH_CAUSE_DATA,
    }


async def test_a_row_that_was_erased_is_forgotten(rig: Rig, replica: Replica) -> None:
    """Only in the commits that the erasure went through; also under the policy FAIL."""
    prediction = await predicted(rig, replica)
    recorded = rig.features.rows["carriers"].pop(("AA", "JFK")).commit
    rig.features.erased_commits["carriers"] = recorded - 1
    assert set((await causes(replica, prediction)).values()) == {Cause.MISMATCH_CAUSE_DATA}
    rig.features.erased_commits["carriers"] = recorded
    found = await causes(replica, prediction)
    assert found["carriers"] == found["delay"] == Cause.MISMATCH_CAUSE_FORGOTTEN
    rig.features.erased_commits["weather"] = rig.features.rows["weather"].pop(("AA", "JFK")).commit
    assert await causes(replica, prediction) == {
        "weather": Cause.MISMATCH_CAUSE_FORGOTTEN,
        "carriers": Cause.MISMATCH_CAUSE_FORGOTTEN,
        "wind": Cause.MISMATCH_CAUSE_FORGOTTEN,
    }


async def test_another_status_of_the_same_row_is_expiry(rig: Rig, replica: Replica) -> None:
    """The max age was another one."""
    prediction = await predicted(rig, replica)
    rig.features.max_age_micros["carriers"] = 1_000_000
    assert await causes(replica, prediction) == {
        "delay": Cause.MISMATCH_CAUSE_EXPIRY,
        "flights": Cause.MISMATCH_CAUSE_EXPIRY,
    }


async def test_another_type_is_told(rig: Rig, replica: Replica) -> None:
    """The values may even look alike."""
    prediction = await predicted(rig, replica)
    rig.features.types["flights"] = DataType.FLOAT64
    assert await causes(replica, prediction) == {"flights": Cause.MISMATCH_CAUSE_TYPE}


async def test_another_transform_is_told(rig: Rig) -> None:
    """The recorded hash is not that of the view."""
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        prediction = await predicted(rig, replica)
    field = Field("total_delay", DataType.FLOAT64)
    changed = Transform(field, f"{TRANSFORMS}:total_delay", "0" * 64, ("delay", "hour"))
    rig.features.views[("flights", 3)] = flight_view(transforms=(changed,))
    (rig.folder / "cache/serving").unlink()
    async with rig.predictor() as replica:
        assert await causes(replica, prediction) == {"transforms": Cause.MISMATCH_CAUSE_TRANSFORM}


async def test_a_transform_that_is_not_to_be_had_is_told(rig: Rig) -> None:
    """The predictor trusts another module now."""
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        prediction = await predicted(rig, replica)
    async with rig.predictor(modules=()) as replica:
        assert await causes(replica, prediction) == {"transforms": Cause.MISMATCH_CAUSE_TRANSFORM}


async def test_another_result_of_a_transform_is_told(rig: Rig, replica: Replica) -> None:
    """The logged result was tampered with; the model's answer then differs too."""
    prediction = await predicted(rig, replica)
    record, _ = rig.logger.records[prediction]
    record.features[-1].column.float64_values.values[0] = 1_000.0
    assert await causes(replica, prediction) == {
        "total_delay": Cause.MISMATCH_CAUSE_TRANSFORM,
        "probability": Cause.MISMATCH_CAUSE_MODEL,
    }


async def test_another_score_is_the_models(rig: Rig, replica: Replica) -> None:
    """One bit in the last place is enough."""
    prediction = await predicted(rig, replica)
    record, _ = rig.logger.records[prediction]
    record.outputs[0].float64_values.values[0] += 1e-16
    assert await causes(replica, prediction) == {"probability": Cause.MISMATCH_CAUSE_MODEL}


async def test_an_artifact_that_is_gone_is_the_models(rig: Rig) -> None:
    """Neither in the cache nor at the trainer."""
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        prediction = await predicted(rig, replica)
    for path in (rig.folder / "cache/artifacts").iterdir():
        path.unlink()
    rig.trainer.artifacts.clear()
    async with rig.predictor() as replica:
        assert await causes(replica, prediction) == {"artifact": Cause.MISMATCH_CAUSE_MODEL}


async def test_a_damaged_artifact_is_the_models(rig: Rig) -> None:
    """The trainer's bytes do not match the recorded digest."""
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        prediction = await predicted(rig, replica)
    for path in (rig.folder / "cache/artifacts").iterdir():
        path.unlink()
    rig.trainer.artifacts = dict.fromkeys(rig.trainer.artifacts, artifact(9.0))
    async with rig.predictor() as replica:
        assert await causes(replica, prediction) == {"artifact": Cause.MISMATCH_CAUSE_MODEL}


async def test_a_prediction_that_still_waits_in_the_spool_is_verified(rig: Rig, replica: Replica) -> None:
    """The logger takes nothing at the moment."""
    rig.logger.away = True
    response = await replica.stub.Predict(ask(3))
    for prediction_id in response.prediction_ids:
        assert (await verify(replica, prediction_id)).verified


async def test_a_prediction_that_nobody_has_is_not_found(replica: Replica) -> None:
    """A well-formed id alone proves nothing."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await verify(replica, "0198b5d1-0000-7000-8000-000000000000")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_an_older_event_time_is_replayed_as_of_then(rig: Rig, replica: Replica) -> None:
    """The features of the asked time, not of now."""
    rig.features.rows["carriers"][("AA", "JFK")].event_time_micros = micros(NOW - timedelta(hours=30))
    request = ask(event_time=NOW - timedelta(hours=29), route=Column.build("route", DataType.STRING, [None]))
    rig.features.rows["weather"][("AA", "JFK")].event_time_micros = micros(NOW - timedelta(hours=30))
    response = await replica.stub.Predict(request)
    await until(lambda: bool(rig.logger.records))
    assert (await verify(replica, response.prediction_ids[0])).verified
