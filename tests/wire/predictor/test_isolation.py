"""Requests that share a batch do not see each other: storms, swaps, faults and deadlines over a real server."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2

from foresight.predictor.v1 import prediction_pb2
from foresight.scoring import ModelTask, OnnxModel, Signature
from foresight.values import Column, DataType, Field
from foresight.wire import decode_column
from services.runtime.status import DETAILS_KEY, error_metadata
from tests.wire.predictor.rig import MODEL_INPUTS, NOW, Replica, Rig, artifact, ask, flight_view, model_version, until
from tests.wire.predictor.storm import Storm, deploy_all

REQUESTS = 3_000
IN_FLIGHT = 64
SWAPS = 50


@pytest_asyncio.fixture
async def stormy(rig: Rig) -> AsyncIterator[Replica]:
    """A predictor with the storm's deployments."""
    await deploy_all(rig)
    async with rig.predictor() as running:
        await until(lambda: running.deployments.ready)
        yield running


async def test_no_request_of_a_storm_changes_the_answer_of_another(rig: Rig, stormy: Replica) -> None:
    """Bit for bit; batches were shared, everybody was logged once, and nothing is left behind."""
    storm = Storm(stormy.channel, seed=7)
    await storm.ask_alone()
    alone = _batches(stormy)
    report = await storm.rage(REQUESTS, IN_FLIGHT)
    assert not report.wrong, (report.wrong[:5], report.codes)
    assert len(report.codes) == 12
    calls, rows = (after - before for after, before in zip(_batches(stormy), alone, strict=True))
    assert rows > 2 * calls
    await until(lambda: stormy.predictor.admitted_rows == 0 and stormy.predictor.idle)
    await until(lambda: stormy.spool.pending == 0)
    assert report.ids <= rig.logger.records.keys()
    assert rig.logger.duplicates == 0
    (numbers,) = rig.logger.numbers.values()
    assert sorted(numbers) == list(range(1, len(numbers) + 1))


def _batches(replica: Replica) -> tuple[float, float]:
    """Batches so far, and their rows."""
    read = replica.metrics.registry.get_sample_value
    name = "foresight_predictor_batch_rows"
    return read(f"{name}_count") or 0.0, read(f"{name}_sum") or 0.0


async def test_versions_and_scores_belong_together_while_models_are_swapped(rig: Rig, replica: Replica) -> None:
    """Fifty swaps under load: no call fails, and every score is that of the version that the answer names."""
    scores: dict[int, float] = {}
    for version in range(1, SWAPS + 2):
        bias = (version - 1) / 10
        rig.trainer.register(model_version(version), artifact(bias))
        scores[version] = _score(bias)
    answers: list[tuple[int, float]] = []
    stop = asyncio.Event()

    async def caller() -> None:
        while not stop.is_set():
            response = await replica.stub.Predict(ask())
            answers.append((response.model.version, response.outputs[0].float64_values.values[0]))

    async with asyncio.TaskGroup() as callers:
        for _ in range(16):
            callers.create_task(caller())
        for version in range(2, SWAPS + 2):
            await rig.trainer.deploy("late_flights", "late", version)
            await until(lambda version=version: any(v == version for v, _ in answers[-64:]))  # type: ignore[misc]
        stop.set()
    assert {version for version, _ in answers} >= set(range(2, SWAPS + 2))
    assert all(score == scores[version] for version, score in answers)


def _score(bias: float) -> float:
    """What the model with this bias says to `ask()`."""
    fields = {f.name: f for f in flight_view().features}
    classes = Column.build("classes", DataType.BOOL, [False, True])
    signature = Signature(
        ModelTask.BINARY_CLASSIFICATION,
        tuple(fields[name] for name in MODEL_INPUTS),
        Field("late", DataType.BOOL),
        classes,
    )
    values = {"delay": 5.0, "flights": 100, "wind": 12.0, "hour": 0.0, "total_delay": 5.0}
    columns = {name: Column.build(name, fields[name].type, [value]) for name, value in values.items()}
    return float(OnnxModel(artifact(bias), signature).score(columns)[0].values[0])


async def test_requests_of_one_batch_keep_their_own_event_times(rig: Rig, replica: Replica) -> None:
    """One look-up for all but the first: before the row, fresh, expired."""
    rig.features.max_age_micros["carriers"] = int(timedelta(days=1).total_seconds() * 1e6)
    rig.features.hold = asyncio.Event()
    first = asyncio.ensure_future(replica.stub.Predict(ask()))
    await until(lambda: rig.features.waiting == 1)
    times = [NOW, NOW - timedelta(minutes=30), NOW - timedelta(minutes=59)]
    calls = [asyncio.ensure_future(replica.stub.Predict(ask(event_time=at))) for at in times]
    early = asyncio.ensure_future(replica.stub.Predict(ask(event_time=NOW - timedelta(hours=2))))
    await until(lambda: replica.predictor.admitted_rows == 5)
    rig.features.hold.set()
    await asyncio.gather(first, *calls)
    assert rig.features.lookups == 2
    (failed,) = await asyncio.gather(early, return_exceptions=True)
    assert isinstance(failed, grpc.aio.AioRpcError)
    assert error_metadata(failed) == {"feature": "wind", "row": "0", "status": "FUTURE"}
    ids = [call.result().prediction_ids[0] for call in calls]
    await until(lambda: all(i in rig.logger.records for i in ids))
    logged = [rig.logger.records[i][0] for i in ids]
    assert [record.event_time.ToDatetime(NOW.tzinfo) for record in logged] == times
    assert all(decode_column(record.features[0].column).to_list() == [5.0] for record in logged)


async def test_what_cannot_be_answered_in_time_is_refused_at_once(rig: Rig, replica: Replica) -> None:
    """Behind a batch that takes long, by what batches took; whoever finds nobody there is let in all the same."""
    loop = asyncio.get_running_loop()
    rig.features.hold = asyncio.Event()
    loop.call_later(0.3, rig.features.hold.set)
    await replica.stub.Predict(ask())
    rig.features.hold.clear()
    lookups = rig.features.lookups
    slow = asyncio.ensure_future(replica.stub.Predict(ask()))
    await until(lambda: rig.features.lookups == lookups + 1)
    (refused,) = await asyncio.gather(replica.stub.Predict(ask(), timeout=0.2), return_exceptions=True)
    assert isinstance(refused, grpc.aio.AioRpcError)
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_metadata(refused) == {"limit": "deadline"}
    assert 0.02 < _retry_after_s(refused) < 1
    rig.features.hold.set()
    await slow
    assert rig.features.lookups == lookups + 1
    await replica.stub.Predict(ask(), timeout=0.2)
    read = replica.metrics.registry.get_sample_value
    labels = {"deployment": "late_flights", "outcome": "overloaded"}
    assert read("foresight_predictor_predictions_total", labels) == 1


def _retry_after_s(error: grpc.aio.AioRpcError) -> float:
    details = dict(error.trailing_metadata() or ())[DETAILS_KEY]
    assert isinstance(details, bytes)
    for detail in status_pb2.Status.FromString(details).details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return float(retry.retry_delay.ToMilliseconds() / 1_000)
    raise AssertionError("it does not say when to come again")


async def test_rows_that_wait_are_bounded(rig: Rig) -> None:
    """A hundred: those beyond are refused with the bound's name, and let in when the others are done."""
    rig.features.hold = asyncio.Event()
    async with rig.predictor(queue_rows_max=100) as replica:
        await until(lambda: replica.deployments.ready)
        waiting = [asyncio.ensure_future(replica.stub.Predict(ask(25))) for _ in range(4)]
        await until(lambda: replica.predictor.admitted_rows == 100)
        (refused,) = await asyncio.gather(replica.stub.Predict(ask()), return_exceptions=True)
        assert isinstance(refused, grpc.aio.AioRpcError)
        assert error_metadata(refused) == {"limit": "queue_rows_max"}
        rig.features.hold.set()
        await asyncio.gather(*waiting)
        await replica.stub.Predict(ask(100))
        listing = await replica.stub.GetSpool(prediction_pb2.GetSpoolRequest())
        assert listing.incarnations[0].highest_sequence == 200


async def test_a_disk_that_fails_behind_a_batch_records_nobody_twice(rig: Rig) -> None:
    """With fsync: who is not answered is told so, and the batch is not run again."""
    failing = False

    def datasync(fd: int) -> None:
        if failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(fd)

    async with rig.predictor(fsync=True, datasync=datasync) as replica:
        await until(lambda: replica.deployments.ready)
        rig.features.hold = asyncio.Event()
        first = asyncio.ensure_future(replica.stub.Predict(ask()))
        await until(lambda: rig.features.waiting == 1)
        others = [asyncio.ensure_future(replica.stub.Predict(ask())) for _ in range(3)]
        await until(lambda: replica.predictor.admitted_rows == 4)
        failing = True
        rig.features.hold.set()
        for call in await asyncio.gather(first, *others, return_exceptions=True):
            assert isinstance(call, grpc.aio.AioRpcError)
            assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert rig.features.lookups == 2
        failing = False
        await replica.stub.Predict(ask())
        assert replica.spool.incarnations()[0].highest_sequence == 5
