"""Requests with names of their own, over a real server: one prediction each, whatever is repeated."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf import struct_pb2

from foresight.predictor.v1 import prediction_pb2
from foresight.values import Column, DataType
from tests.wire.predictor.rig import Replica, Rig, ask, until


def named(request_id: str, n: int = 1, *, hours: list[float] | None = None) -> prediction_pb2.PredictRequest:
    hour = Column.build("hour", DataType.FLOAT64, hours or [float(i % 24) for i in range(n)])
    request = ask(n, hour=hour)
    request.request_id = request_id
    return request


def first(response: prediction_pb2.PredictResponse) -> prediction_pb2.PredictResponse:
    """The answer as it was when it was given first."""
    copy = prediction_pb2.PredictResponse.FromString(response.SerializeToString())
    copy.repeated_answer = False
    return copy


async def test_a_repeat_gets_the_first_answer_and_is_not_logged(rig: Rig, replica: Replica) -> None:
    """Byte by byte, also after a restart; the log has the name."""
    response = await replica.stub.Predict(named("r-1", 3))
    again = await replica.stub.Predict(named("r-1", 3))
    assert (response.repeated_answer, again.repeated_answer) == (False, True)
    assert first(again) == response
    await until(lambda: response.prediction_ids[2] in rig.logger.records)
    record, _ = rig.logger.records[response.prediction_ids[0]]
    assert record.client_request_id == "r-1"
    assert len(rig.logger.records) == 3


async def test_a_restarted_replica_remembers(rig: Rig) -> None:
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        response = await replica.stub.Predict(named("r-1", 2))
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        again = await replica.stub.Predict(named("r-1", 2))
    assert again.repeated_answer
    assert first(again) == response
    assert set(rig.logger.records) <= set(response.prediction_ids)


async def test_rows_of_json_and_columns_share_a_name(replica: Replica) -> None:
    """What is asked counts, not how."""
    response = await replica.stub.Predict(named("r-1"))
    row = struct_pb2.Struct()
    row.update({"carrier": "AA", "origin": "JFK", "hour": 0.0, "route": "jfk-lax"})
    request = prediction_pb2.PredictRowsRequest(deployment="late_flights", rows=[row], request_id="r-1")
    again = await replica.stub.PredictRows(request)
    assert again.repeated_answer
    assert [r.prediction_id for r in again.rows] == list(response.prediction_ids)


async def test_other_content_under_a_name_is_refused(replica: Replica) -> None:
    await replica.stub.Predict(named("r-1"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await replica.stub.Predict(named("r-1", hours=[5.0]))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "request_id" in (refused.value.details() or "")


async def test_a_storm_of_repeats_is_one_prediction_each(rig: Rig, replica: Replica) -> None:
    """Many callers ask the same few things at once, and half of them hang up."""
    calls = [replica.stub.Predict(named(f"r-{i % 5}")) for i in range(100)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    answers = [await replica.stub.Predict(named(f"r-{i}")) for i in range(5)]
    await until(lambda: all(a.prediction_ids[0] in rig.logger.records for a in answers))
    assert len(rig.logger.records) == 5
