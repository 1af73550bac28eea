"""What a client gets from Predict, and what the log has of it, over the generated stubs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import grpc
import numpy as np
import pytest

from foresight.feature_store.v1 import online_pb2, registry_pb2
from foresight.predictor.v1 import prediction_pb2
from foresight.transforms import TransformSet, source_sha256
from foresight.values import Column, DataType, Field, Transform
from foresight.wire import decode_column, decode_instant
from services.predictor.plans import plan_view
from services.predictor.scoring import apply_transforms
from services.runtime.errors import FailedPrecondition
from services.runtime.status import error_metadata
from tests.wire.predictor import transforms
from tests.wire.predictor.rig import NOW, Replica, Rig, artifact, ask, flight_view, micros, model_version, until


def probability(response: prediction_pb2.PredictResponse) -> list[float]:
    return list(response.outputs[0].float64_values.values)


def expected(delay: float, flights: float, wind: float, hour: float, bias: float = 0.0) -> float:
    total = np.float32(0.01) * np.float32(delay + flights + wind + hour + delay + hour)
    return float(1 / (1 + np.exp(-(total + np.float32(bias)))))


async def failure(call: Awaitable[prediction_pb2.PredictResponse]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_answer_has_scores_ids_model_and_event_time(rig: Rig, replica: Replica) -> None:
    """One row, everything present."""
    at = NOW - timedelta(minutes=3)
    response = await replica.stub.Predict(ask(event_time=at))
    assert probability(response) == [pytest.approx(expected(5.0, 100, 12.0, 0.0), abs=1e-6)]
    assert list(response.outputs[1].bool_values.values) == [True]
    assert (response.model.name, response.model.version) == ("late", 1)
    assert decode_instant(response.event_time) == at
    assert not response.missing
    assert uuid.UUID(response.prediction_ids[0]).version == 7


async def test_the_log_gets_what_the_answer_was_made_of(rig: Rig, replica: Replica) -> None:
    """Two rows, one with a NULL feature under the policy DEFAULT."""
    response = await replica.stub.Predict(ask(2), metadata=[("x-request-id", "abc-1")])
    missing = response.missing[0]
    assert (missing.row, missing.feature) == (1, "flights")
    assert missing.status == online_pb2.FEATURE_STATUS_NULL
    await until(lambda: len(rig.logger.records) == 2)
    record, row = rig.logger.records[response.prediction_ids[1]]
    assert row == 1
    assert (record.replica, record.incarnation) == ("predictor-0", replica.spool.incarnation)
    assert record.first_sequence == 1
    assert (record.request_id, record.caller, record.deployment) == ("abc-1", "local", "late_flights")
    assert (record.view.name, record.view.version, record.applied_commit) == ("flights", 3, 7)
    assert decode_instant(record.event_time) == decode_instant(record.served_at) == NOW
    features = {f.column.name: f for f in record.features}
    assert list(features) == ["delay", "flights", "wind", "total_delay"]
    assert list(features["flights"].column.int64_values.values) == [100, 10]
    assert features["flights"].statuses == bytes([1, 2])
    assert features["flights"].policies == bytes([0, registry_pb2.MISSING_POLICY_DEFAULT])
    assert features["delay"].statuses == b""
    assert list(features["total_delay"].column.float64_values.values) == [5.0, 8.5]
    assert [c.name for c in record.entity_keys] == ["carrier", "origin"]
    assert [c.name for c in record.request_features] == ["hour", "route"]
    assert [list(s.commits) for s in record.sources] == [[3, 3], [4, 4]]
    assert [c.SerializeToString() for c in record.outputs] == [c.SerializeToString() for c in response.outputs]


async def test_null_policy_gives_the_model_null_and_expiry_is_told(rig: Rig, replica: Replica) -> None:
    """A row older than the max age."""
    rig.features.max_age_micros["carriers"] = 60_000_000
    response = await replica.stub.Predict(ask())
    assert probability(response) == [pytest.approx(expected(0.0, 10, 12.0, 0.0), abs=1e-6)]
    assert {(m.feature, m.status) for m in response.missing} == {
        ("delay", online_pb2.FEATURE_STATUS_EXPIRED),
        ("flights", online_pb2.FEATURE_STATUS_EXPIRED),
    }


async def test_fail_policy_names_feature_row_and_status_and_logs_nothing(rig: Rig, replica: Replica) -> None:
    """The second entity has no weather."""
    carrier = Column.build("carrier", DataType.STRING, ["AA", "ZZ"])
    error = await failure(replica.stub.Predict(ask(2, carrier=carrier)))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error_metadata(error) == {"feature": "wind", "row": "1", "status": "NOT_FOUND"}
    assert replica.spool.incarnations()[0].highest_sequence == 0


async def test_a_null_entity_key_reads_not_found(rig: Rig, replica: Replica) -> None:
    """The feature store decides; the policy applies."""
    carrier = Column.build("carrier", DataType.STRING, [None])
    error = await failure(replica.stub.Predict(ask(carrier=carrier)))
    assert error_metadata(error)["status"] == "NOT_FOUND"


async def test_most_rows_at_once_equal_the_single_ones(rig: Rig, replica: Replica) -> None:
    """1,024 rows answer bit for bit what single rows answer."""
    many = await replica.stub.Predict(ask(1_024))
    assert len(set(many.prediction_ids)) == 1_024
    for i in (0, 1, 25, 1_023):
        hour = Column.build("hour", DataType.FLOAT64, [float(i % 24)])
        carrier = Column.build("carrier", DataType.STRING, [("AA", "UA")[i % 2]])
        single = await replica.stub.Predict(ask(hour=hour, carrier=carrier))
        assert probability(single)[0] == probability(many)[i]
    await until(lambda: len(rig.logger.records) == 1_028)


async def test_integers_are_taken_for_a_float_feature(rig: Rig, replica: Replica) -> None:
    """They are logged as the view's type."""
    response = await replica.stub.Predict(ask(hour=Column.build("hour", DataType.INT64, [2**53])))
    await until(lambda: bool(rig.logger.records))
    record, _ = rig.logger.records[response.prediction_ids[0]]
    hour = decode_column(record.request_features[0])
    assert hour.type is DataType.FLOAT64
    assert hour.to_list() == [float(2**53)]


async def test_unknown_deployment_is_not_found(replica: Replica) -> None:
    """Once the deployments are known."""
    error = await failure(replica.stub.Predict(ask(deployment="nobody")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error_metadata(error) == {"kind": "deployment", "name": "nobody"}


async def test_an_absent_feature_store_makes_the_call_unavailable(rig: Rig, replica: Replica) -> None:
    """Nothing is logged, and it works again afterwards."""
    rig.features.away = True
    error = await failure(replica.stub.Predict(ask()))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "sock" not in str(error.details())
    rig.features.away = False
    await replica.stub.Predict(ask())
    assert replica.spool.incarnations()[0].highest_sequence == 1


async def test_the_look_up_gives_up_before_the_caller_does(rig: Rig, replica: Replica) -> None:
    """The caller learns that it was the feature store."""
    rig.features.hold = asyncio.Event()
    error = await failure(replica.stub.Predict(ask(), timeout=2))
    rig.features.hold.set()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error_metadata(error) == {"upstream": "feature store"}


async def test_cancelled_callers_leave_nothing_and_disturb_nobody(rig: Rig, replica: Replica) -> None:
    """Half of the callers go away while the first look-up is out and the others wait for the next."""
    rig.features.hold = asyncio.Event()
    calls = [replica.stub.Predict(ask()) for _ in range(20)]
    await until(lambda: rig.features.waiting == 1 and replica.predictor.admitted_rows == 20)
    for call in calls[::2]:
        call.cancel()
    await asyncio.gather(*calls[::2], return_exceptions=True)
    rig.features.hold.set()
    answers = await asyncio.gather(*calls[1::2])
    assert len({a.prediction_ids[0] for a in answers}) == 10
    rig.features.hold = None
    last = await replica.stub.Predict(ask())
    await until(lambda: last.prediction_ids[0] in rig.logger.records)
    assert {a.prediction_ids[0] for a in (*answers, last)} == rig.logger.records.keys()


async def test_a_full_spool_refuses_and_recovers(rig: Rig) -> None:
    """The bound is on what the logger has not acknowledged."""
    rig.logger.away = True
    async with rig.predictor(bytes_max=20_000, segment_bytes_max=2_000) as replica:
        await until(lambda: replica.deployments.ready)
        answers = await asyncio.gather(*(replica.stub.Predict(ask()) for _ in range(60)), return_exceptions=True)
        refusals = [a for a in answers if isinstance(a, grpc.aio.AioRpcError)]
        answered = len(answers) - len(refusals)
        assert 0 < answered < len(answers)
        assert {r.code() for r in refusals} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert error_metadata(refusals[0]) == {"limit": "spool_bytes_max"}
        rig.logger.away = False
        await until(lambda: len(rig.logger.records) == answered)
        await replica.stub.Predict(ask())
        spool = await replica.stub.GetSpool(prediction_pb2.GetSpoolRequest())
        assert spool.incarnations[-1].highest_sequence == answered + 1


async def test_a_failing_transform_is_told_apart_from_a_bug(rig: Rig, replica: Replica) -> None:
    """An infinity from the user's function fails the call, not the service."""
    output = Field("inverse", DataType.FLOAT64)
    transform = Transform(
        output, f"{transforms.__name__}:fails_on_zero", source_sha256(transforms.fails_on_zero), ("hour",)
    )
    view = flight_view(version=4, transforms=(transform,), features=(*flight_view().features[:5], output))
    rig.features.views[(view.name, 4)] = view
    rig.trainer.register(model_version(2, view=view, inputs=("inverse",)), artifact(0.0, ("inverse",)))
    await rig.trainer.deploy("inverse", "late", 2)
    await until(lambda: all(s.model for s in replica.deployments.listing()) and len(replica.deployments.listing()) == 2)
    error = await failure(replica.stub.Predict(ask(deployment="inverse")))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    await replica.stub.Predict(ask(deployment="inverse", hour=Column.build("hour", DataType.FLOAT64, [2.0])))


@pytest.mark.parametrize("function", [transforms.fails_on_zero, transforms.odd_text])
def test_whatever_a_transform_gives_is_no_fault_of_the_callers(function: Callable[[Any], Any]) -> None:
    type = DataType.STRING if function is transforms.odd_text else DataType.FLOAT64
    named = f"{transforms.__name__}:{function.__name__}"
    transform = Transform(Field("made", type), named, source_sha256(function), ("hour",))
    plan = plan_view(flight_view(transforms=(transform,)))
    hours = {"hour": Column.build("hour", DataType.FLOAT64, [0.0])}
    with pytest.raises(FailedPrecondition):
        apply_transforms(TransformSet([transforms.__name__]), plan, hours)


async def test_a_future_row_is_not_served(rig: Rig, replica: Replica) -> None:
    """Its value is NULL to the model and its status FUTURE."""
    rig.features.rows["carriers"][("AA", "JFK")].event_time_micros = micros(NOW + timedelta(hours=1))
    response = await replica.stub.Predict(ask())
    assert {m.status for m in response.missing} == {online_pb2.FEATURE_STATUS_FUTURE}


async def test_metrics_count_outcomes(replica: Replica) -> None:
    """By deployment and outcome, and stages are timed."""
    await replica.stub.Predict(ask(3))
    await failure(replica.stub.Predict(ask(without="hour")))
    read = replica.metrics.registry.get_sample_value
    labels = {"deployment": "late_flights"}
    assert read("foresight_predictor_predictions_total", labels | {"outcome": "answered"}) == 3
    assert read("foresight_predictor_predictions_total", labels | {"outcome": "invalid"}) == 1
    for stage in ("lookup", "transform", "score", "spool"):
        assert read("foresight_predictor_stage_duration_seconds_count", {"stage": stage}) == 1
