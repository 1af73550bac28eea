"""Shadow arms: they score what was answered, are recorded as what they are, and harm nobody."""

from __future__ import annotations

import asyncio
import dataclasses

from foresight.predictor.v1 import prediction_pb2
from foresight.values import Column, DataType
from services.predictor.requests import Request
from services.predictor.shadows import AT_ONCE, BUSY_ROWS, Shadows
from tests.unit.predictor.virtual_time import run_virtually
from tests.wire.predictor.rig import Replica, Rig, artifact, ask, flight_view, model_version, until
from tests.wire.predictor.test_arms import arm, deploy, entities, outputs


def shadow_count(replica: Replica, outcome: str) -> float:
    name = "foresight_predictor_shadow_predictions_total"
    labels = {"deployment": "late_flights", "outcome": outcome}
    return replica.metrics.registry.get_sample_value(name, labels) or 0.0


async def test_a_shadow_records_what_it_would_have_answered(rig: Rig, replica: Replica) -> None:
    """Under ids of its own, at the same event time, for the same entities; the caller sees nothing of it."""
    await deploy(rig, replica, arm("champion", 1, 1), arm("next", 3, shadow=True), arm("later", 4, shadow=True))
    carriers = entities(rig, 5)
    answer = await replica.stub.Predict(ask(5, carrier=carriers))
    assert [(a.arm, list(a.rows)) for a in answer.arms] == [("champion", list(range(5)))]
    await until(lambda: len(rig.logger.records) == 15)
    (answered,) = {id(r): r for r, _ in rig.logger.records.values() if not r.shadow}.values()
    assert (answered.arm, answered.arm_probability) == ("champion", 1.0)
    shadows = {r.arm: r for r, _ in rig.logger.records.values() if r.shadow}
    assert {name: (r.model.version, r.arm_probability, r.arm_forced) for name, r in shadows.items()} == {
        "next": (3, 0.0, False),
        "later": (4, 0.0, False),
    }
    for name, record in shadows.items():
        assert record.event_time == answered.event_time
        assert list(record.entity_keys) == list(answered.entity_keys)
        assert not set(record.prediction_ids) & set(answered.prediction_ids)
        forced = await replica.stub.Predict(ask(5, carrier=carriers), metadata=[("x-foresight-arm", name)])
        assert [c.SerializeToString() for c in record.outputs] == outputs(forced)
    assert shadow_count(replica, "recorded") >= 10


async def test_a_shadow_that_hangs_delays_nobody(rig: Rig, replica: Replica) -> None:
    """It looks features up that do not come; the answers do."""
    view = flight_view(name="others", version=1)
    rig.features.views[("others", 1)] = view
    rig.trainer.register(model_version(7, view=view), artifact(0.0))
    await deploy(rig, replica, arm("champion", 1, 1), arm("next", 7, shadow=True))
    carriers = entities(rig, 2)
    rig.features.held_view, rig.features.hold = "others", asyncio.Event()
    for _ in range(2 * AT_ONCE):
        assert (await replica.stub.Predict(ask(2, carrier=carriers))).model.version == 1
    assert shadow_count(replica, "recorded") == 0
    rig.features.hold.set()
    await until(lambda: replica.shadows.rows == 0)


async def test_a_shadow_that_cannot_answer_is_counted(rig: Rig, replica: Replica) -> None:
    """Its view fails without a feature that the champion's does without."""
    inputs = ("hour",)
    view = flight_view(name="others", version=1)
    rig.features.views[("others", 1)] = view
    rig.trainer.register(model_version(7, view=view), artifact(0.0))
    rig.features.views[("plain", 1)] = plain = dataclasses.replace(view, name="plain", sources=view.sources[:1])
    rig.trainer.register(model_version(6, view=plain, inputs=inputs), artifact(0.0, inputs))
    await deploy(rig, replica, arm("champion", 6, 1), arm("next", 7, shadow=True))
    carriers = entities(rig, 2)
    del rig.features.rows["weather"][("C1", "JFK")]
    await replica.stub.Predict(ask(2, carrier=carriers))
    await until(lambda: shadow_count(replica, "failed") == 2)
    await until(lambda: len(rig.logger.records) == 2)
    assert not any(record.shadow for record, _ in rig.logger.records.values())


async def test_a_shadow_that_does_not_load_holds_nothing_up(rig: Rig, replica: Replica) -> None:
    """ListServing has its cause; once it can be loaded it scores."""
    rig.trainer.register(model_version(2), artifact(1.0))
    broken = model_version(9)
    rig.trainer.register(broken, b"not a model")
    await rig.trainer.deploy_arms(
        "late_flights", arm("champion", 1, 1), arm("challenger", 2, 1), arm("next", 9, shadow=True), etag="two"
    )
    await until(lambda: replica.deployments.state("late_flights").etag == "two")
    answer = await replica.stub.Predict(ask(20, carrier=entities(rig, 20)))
    assert {a.arm for a in answer.arms} == {"champion", "challenger"}
    await until(lambda: "does not load" in replica.deployments.state("late_flights").arms[2].cause)
    listing = await replica.stub.ListServing(prediction_pb2.ListServingRequest())
    (state,) = listing.deployments
    assert (state.ready, state.cause, state.etag) == (True, "", "two")
    assert [(a.arm, a.ready, bool(a.cause), a.shadow) for a in state.arms] == [
        ("champion", True, False, False),
        ("challenger", True, False, False),
        ("next", False, True, True),
    ]
    assert replica.deployments.ready
    rig.trainer.register(model_version(4), artifact(2.0))
    await rig.trainer.deploy_arms(
        "late_flights", arm("champion", 1, 1), arm("challenger", 2, 1), arm("next", 4, shadow=True), etag="three"
    )
    await until(lambda: all(a.ready for a in replica.deployments.state("late_flights").arms))


async def test_shadows_leave_half_of_the_spool_to_answers(rig: Rig) -> None:
    """While the logger is away records pile up; who is waited for can go on for longer."""
    async with rig.predictor(bytes_max=60_000) as replica:
        await deploy(rig, replica, arm("champion", 1, 1), arm("next", 3, shadow=True))
        carriers = entities(rig, 20)
        rig.logger.away = True
        while not replica.spool.half_full:
            await replica.stub.Predict(ask(20, carrier=carriers))
            await until(lambda: replica.shadows.rows == 0)
        failed, recorded = shadow_count(replica, "failed"), shadow_count(replica, "recorded")
        assert recorded
        await replica.stub.Predict(ask(20, carrier=carriers))
        await until(lambda: replica.shadows.rows == 0)
        assert (shadow_count(replica, "failed"), shadow_count(replica, "recorded")) == (failed + 20, recorded)


async def test_shadows_are_dropped_when_too_many_wait() -> None:
    """And counted; those that were let in are scored."""
    counted: dict[str, int] = {}
    scored: list[int] = []

    async def score(request: Request) -> None:
        scored.append(len(request.columns["id"]))

    def count(deployment: str, outcome: str, rows: int) -> None:
        counted[outcome] = counted.get(outcome, 0) + rows

    shadows = Shadows(score, lambda: 0, count, rows_max=100)
    for _ in range(4):
        shadows.add(_request(40))
    assert counted == {"dropped": 80}
    running = asyncio.create_task(shadows.run())
    await until(lambda: shadows.rows == 0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (scored, counted) == ([40, 40], {"dropped": 80, "recorded": 80})


def test_shadows_wait_while_the_predictor_is_busy_and_are_dropped_when_they_are_old() -> None:
    async def scenario() -> tuple[list[float], dict[str, int]]:
        loop = asyncio.get_running_loop()
        begun: list[float] = []
        counted: dict[str, int] = {}
        busy_until = 2.0

        async def score(request: Request) -> None:
            begun.append(loop.time())

        def count(deployment: str, outcome: str, rows: int) -> None:
            counted[outcome] = counted.get(outcome, 0) + rows

        shadows = Shadows(score, lambda: BUSY_ROWS + 1 if loop.time() - start < busy_until else 0, count)
        running = asyncio.create_task(shadows.run())
        start = loop.time()
        shadows.add(_request(1))
        await asyncio.sleep(1.0)
        assert not begun
        await asyncio.sleep(2.0)
        busy_until = 100.0
        shadows.add(_request(1))
        await asyncio.sleep(10.0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return [at - start for at in begun], counted

    begun, counted = run_virtually(scenario())
    assert len(begun) == 1
    assert 2.0 <= begun[0] < 2.1
    assert counted == {"recorded": 1, "dropped": 1}


def test_what_is_left_when_the_process_stops_is_dropped_after_a_while() -> None:
    async def scenario() -> tuple[float, dict[str, int]]:
        counted: dict[str, int] = {}

        async def score(request: Request) -> None:
            await asyncio.sleep(0.1 if len(request.columns["id"]) == 1 else 1_000.0)

        def count(deployment: str, outcome: str, rows: int) -> None:
            counted[outcome] = counted.get(outcome, 0) + rows

        shadows = Shadows(score, lambda: 0, count)
        running = asyncio.create_task(shadows.run())
        for rows in (1, *[2] * (AT_ONCE + 4)):
            shadows.add(_request(rows))
        await asyncio.sleep(0.05)
        began = asyncio.get_running_loop().time()
        await shadows.close(0.5)
        took = asyncio.get_running_loop().time() - began
        shadows.add(_request(3))
        assert shadows.rows == 0
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return took, counted

    took, counted = run_virtually(scenario())
    assert 0.5 <= took < 0.6
    assert counted == {"recorded": 1, "dropped": 2 * (AT_ONCE + 4) + 3}


def _request(rows: int) -> Request:
    columns = {"id": Column.build("id", DataType.INT64, range(rows))}
    return Request("late_flights", columns, None, "local", "", 5.0)
