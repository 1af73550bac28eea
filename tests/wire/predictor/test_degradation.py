"""What is answered while the feature store is away, or has no value: by the policy of each feature."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import grpc
import pytest
import pytest_asyncio

from foresight.feature_store.v1 import registry_pb2
from foresight.predictor.v1 import prediction_pb2
from foresight.values import Column, DataType
from foresight.wire import decode_column, decode_instant
from services.predictor.last_known import LastKnown
from services.predictor.lookup import Lookup
from services.runtime.errors import FailedPrecondition, NotFound
from services.runtime.status import error_metadata
from tests.wire.predictor.careful import AGE_MAX, CAREFUL, SOME_DELAY, SOME_WIND, ask_carefully, deploy_careful, shown
from tests.wire.predictor.rig import NOW, Replica, Rig, ask, micros, until
from tests.wire.predictor.upstreams import Row

FED_AT = NOW - timedelta(hours=1)
GONE = {
    (0, "delay"): ("UNAVAILABLE", "LAST_KNOWN"),
    (0, "flights"): ("UNAVAILABLE", "DEFAULT"),
    (0, "wind"): ("UNAVAILABLE", "NULL"),
}
Leave = Callable[[Rig], Awaitable[None]]


async def stopped(rig: Rig) -> None:
    await rig.stop("features")


async def refusing(rig: Rig) -> None:
    rig.features.away = True


async def silent(rig: Rig) -> None:
    rig.features.hold = asyncio.Event()


async def back(rig: Rig) -> None:
    """The feature store is there again."""
    rig.features.away, rig.features.error = False, None
    if rig.features.hold is not None:
        rig.features.hold.set()
        rig.features.hold = None
    if "features" not in rig.servers:
        await rig.start("features")


@pytest_asyncio.fixture
async def careful(rig: Rig) -> AsyncIterator[Replica]:
    """A predictor that serves both deployments, and has served AA with all features."""
    await deploy_careful(rig)
    async with rig.predictor() as running:
        await until(lambda: running.deployments.ready)
        assert not (await running.stub.Predict(ask_carefully("AA"))).missing
        yield running


async def failure(call: Awaitable[prediction_pb2.PredictResponse]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def mismatches(replica: Replica, response: prediction_pb2.PredictResponse, row: int = 0) -> dict[str, str]:
    """What differs in a replay, with its cause."""
    request = prediction_pb2.VerifyPredictionRequest(prediction_id=response.prediction_ids[row])
    answer = await replica.stub.VerifyPrediction(request)
    assert answer.verified == (not answer.mismatches)
    causes = prediction_pb2.MismatchCause
    return {m.name: causes.Name(m.cause).removeprefix("MISMATCH_CAUSE_") for m in answer.mismatches}


async def present_again(replica: Replica) -> None:
    """Waits until features are read again: a breaker may have to close, and a channel to connect."""
    async with asyncio.timeout(30):
        while (await replica.stub.Predict(ask_carefully("AA"))).missing:
            await asyncio.sleep(0.02)


def bits(response: prediction_pb2.PredictResponse) -> list[float]:
    return list(response.outputs[0].float64_values.values)


@pytest.mark.parametrize("leave", [stopped, refusing, silent])
async def test_policies_answer_while_the_feature_store_is_away(rig: Rig, careful: Replica, leave: Leave) -> None:
    """Killed, without its database, or hanging; the answer and the log say what was done, and it verifies."""
    present = await careful.stub.Predict(ask_carefully("AA"))
    await leave(rig)
    response = await careful.stub.Predict(ask_carefully("AA"))
    assert shown(response) == GONE
    assert {m.feature: decode_instant(m.last_known_at) for m in response.missing if m.HasField("last_known_at")} == {
        "delay": FED_AT
    }
    await until(lambda: response.prediction_ids[0] in rig.logger.records)
    record, _ = rig.logger.records[response.prediction_ids[0]]
    delay, flights, wind, _ = record.features
    assert record.applied_commit == 0
    assert [list(s.commits) for s in record.sources] == [[0], [0]]
    assert decode_column(delay.column).to_list() == [5.0]
    assert (delay.statuses, delay.policies) == (b"\6", bytes([registry_pb2.MISSING_POLICY_LAST_KNOWN]))
    assert (list(delay.last_known_event_time_micros), list(delay.last_known_commits)) == ([micros(FED_AT)], [3])
    assert decode_column(flights.column).to_list() == [10]
    assert decode_column(wind.column).to_list() == [None]
    await back(rig)
    await present_again(careful)
    assert await mismatches(careful, response) == {}
    again = await careful.stub.Predict(ask_carefully("AA"))
    assert bits(again) == bits(present) != bits(response)


@pytest.mark.parametrize("leave", [stopped, refusing, silent])
async def test_a_required_feature_makes_the_call_unavailable(rig: Rig, careful: Replica, leave: Leave) -> None:
    """Retryable, and the feature store is named; nothing is logged."""
    before = careful.spool.incarnations()[0].highest_sequence
    await leave(rig)
    for request in (ask_carefully("ZZ"), ask_carefully("AA", event_time=FED_AT - timedelta(microseconds=1)), ask()):
        error = await failure(careful.stub.Predict(request, timeout=20))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error_metadata(error)["upstream"] == "feature store"
    assert careful.spool.incarnations()[0].highest_sequence == before
    await back(rig)


async def test_known_and_unknown_entities_in_one_batch_do_not_share_their_fate(rig: Rig, careful: Replica) -> None:
    """Whoever can be answered is, to the bit as alone; whoever cannot is told so."""
    await careful.stub.Predict(ask_carefully("UA"))
    await refusing(rig)
    alone = {carrier: bits(await careful.stub.Predict(ask_carefully(carrier))) for carrier in ("AA", "UA")}
    assert alone["AA"] != alone["UA"]
    carriers = ["AA", "ZZ", "UA", "AA", "ZZ", "UA", "AA"] * 20
    calls = [careful.stub.Predict(ask_carefully(carrier), timeout=60) for carrier in carriers]
    found = await asyncio.gather(*calls, return_exceptions=True)
    for carrier, answer in zip(carriers, found, strict=True):
        if carrier == "ZZ":
            assert isinstance(answer, grpc.aio.AioRpcError)
            assert answer.code() is grpc.StatusCode.UNAVAILABLE
            assert error_metadata(answer)["feature"] == "delay"
        else:
            assert isinstance(answer, prediction_pb2.PredictResponse), answer
            assert bits(answer) == alone[carrier]
            assert shown(answer) == GONE


async def test_a_feature_store_that_comes_and_goes_under_load(rig: Rig, careful: Replica) -> None:
    """Every answer is that of its carrier, with the store or without, to the bit; every one verifies."""
    await careful.stub.Predict(ask_carefully("UA"))
    expected: dict[tuple[str, bool], list[float]] = {}
    for carrier in ("AA", "UA"):
        expected[carrier, True] = bits(await careful.stub.Predict(ask_carefully(carrier)))
    await stopped(rig)
    for carrier in ("AA", "UA"):
        expected[carrier, False] = bits(await careful.stub.Predict(ask_carefully(carrier)))
    answers: list[tuple[str, prediction_pb2.PredictResponse]] = []
    stop = asyncio.Event()

    async def ask_on(number: int) -> None:
        while not stop.is_set():
            carrier = ("AA", "UA")[number % 2]
            answers.append((carrier, await careful.stub.Predict(ask_carefully(carrier), timeout=60)))
            number += 1

    def seen(there: bool) -> int:
        return sum(("UNAVAILABLE" not in {s for s, _ in shown(answer).values()}) == there for _, answer in answers)

    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(ask_on(number))
        for _ in range(2):
            wanted = seen(False) + 20
            await until(lambda wanted=wanted: seen(False) >= wanted, 30)  # type: ignore[misc]
            await rig.start("features")
            wanted = seen(True) + 20
            await until(lambda wanted=wanted: seen(True) >= wanted, 30)  # type: ignore[misc]
            await rig.stop("features")
        stop.set()
    await rig.start("features")
    await present_again(careful)
    for carrier, answer in answers:
        there = all(status != "UNAVAILABLE" for status, _ in shown(answer).values())
        assert bits(answer) == expected[carrier, there]
    for _, answer in answers[:: max(1, len(answers) // 50)]:
        assert await mismatches(careful, answer) == {}


async def test_an_error_is_not_an_absence(rig: Rig, careful: Replica) -> None:
    """A feature store that answers, whatever it answers, is not away: nothing is made up."""
    for error, code in (
        (NotFound("feature view", "flights"), grpc.StatusCode.NOT_FOUND),
        (FailedPrecondition("the view changed"), grpc.StatusCode.FAILED_PRECONDITION),
    ):
        rig.features.error = error
        for _ in range(3):
            assert (await failure(careful.stub.Predict(ask_carefully("AA")))).code() is code
    rig.features.error = None
    assert not (await careful.stub.Predict(ask_carefully("AA"))).missing


async def test_an_answer_that_cannot_be_read_is_none(rig: Rig, careful: Replica) -> None:
    """It is the feature store's fault, not that of the caller."""
    rig.features.garbled = True
    error = await failure(careful.stub.Predict(ask()))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error_metadata(error)["upstream"] == "feature store"
    assert shown(await careful.stub.Predict(ask_carefully("AA"))) == GONE


async def test_whoever_has_little_time_is_answered_without_waiting_for_the_others(rig: Rig, careful: Replica) -> None:
    """The store is slow: of a batch, a caller with a short deadline is answered within it, without the store."""
    await silent(rig)
    first = rig.features.hold
    assert first is not None
    ahead = careful.stub.Predict(ask_carefully("AA"))
    await until(lambda: rig.features.waiting == 1)
    # What is looked up from now on waits for another event, whenever it comes.
    await silent(rig)
    patient, hurried = careful.stub.Predict(ask_carefully("AA")), careful.stub.Predict(ask_carefully("AA"), timeout=3)
    await until(lambda: careful.predictor.admitted_rows == 3)
    first.set()
    await ahead
    assert shown(await hurried) == GONE
    await back(rig)
    assert shown(await patient) in ({}, GONE)
    await until(lambda: careful.predictor.idle)


async def test_a_value_stands_in_for_one_that_is_null_expired_or_future(rig: Rig, careful: Replica) -> None:
    """With the row that it is from; the sources say which row was found instead. All of them verify."""
    rows, earlier = rig.features.rows["carriers"], rig.features.earlier.setdefault("carriers", {})
    key = ("AA", "JFK")
    served = rows[key]
    earlier[key] = [served]
    rows[key] = Row(micros(NOW - timedelta(minutes=30)), 5, {"delay": None, "flights": 7})
    null = await careful.stub.Predict(ask_carefully("AA"))
    assert shown(null) == {(0, "delay"): ("NULL", "LAST_KNOWN")}
    rows[key] = Row(micros(NOW + timedelta(minutes=30)), 6, {"delay": 9.0, "flights": 7})
    future = await careful.stub.Predict(ask_carefully("AA"))
    assert shown(future) == {(0, "delay"): ("FUTURE", "LAST_KNOWN"), (0, "flights"): ("FUTURE", "DEFAULT")}
    rows[key] = served
    rig.features.max_age_micros["carriers"] = 60_000_000
    expired = await careful.stub.Predict(ask_carefully("AA"))
    assert shown(expired) == {(0, "delay"): ("EXPIRED", "LAST_KNOWN"), (0, "flights"): ("EXPIRED", "DEFAULT")}
    ids = [answer.prediction_ids[0] for answer in (null, future, expired)]
    await until(lambda: set(ids) <= rig.logger.records.keys())
    records = [rig.logger.records[id][0] for id in ids]
    assert [decode_column(r.features[0].column).to_list() for r in records] == [[5.0]] * 3
    assert [list(r.features[0].last_known_commits) for r in records] == [[3]] * 3
    assert [list(r.sources[0].commits) for r in records] == [[5], [6], [3]]
    assert await mismatches(careful, expired) == {}
    rig.features.max_age_micros.clear()
    rows[key] = Row(micros(NOW + timedelta(minutes=30)), 6, {"delay": 9.0, "flights": 7})
    assert await mismatches(careful, future) == {}
    rows[key] = Row(micros(NOW - timedelta(minutes=30)), 5, {"delay": None, "flights": 7})
    assert await mismatches(careful, null) == {}


@pytest.mark.parametrize(("late", "fresh"), [(timedelta(0), True), (timedelta(microseconds=1), False)])
async def test_a_value_of_exactly_the_maximal_age_is_still_used(
    rig: Rig, careful: Replica, late: timedelta, fresh: bool
) -> None:
    await stopped(rig)
    rig.now = FED_AT + AGE_MAX + late
    if fresh:
        assert shown(await careful.stub.Predict(ask_carefully("AA"))) == GONE
    else:
        assert (await failure(careful.stub.Predict(ask_carefully("AA")))).code() is grpc.StatusCode.UNAVAILABLE


async def test_what_was_deleted_does_not_come_back(rig: Rig, careful: Replica) -> None:
    """NOT_FOUND drops what was known, for now and for when the store is away."""
    gone = rig.features.rows["carriers"].pop(("AA", "JFK"))
    error = await failure(careful.stub.Predict(ask_carefully("AA")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error_metadata(error) == {"feature": "delay", "row": "0", "status": "NOT_FOUND"}
    await refusing(rig)
    assert (await failure(careful.stub.Predict(ask_carefully("AA")))).code() is grpc.StatusCode.UNAVAILABLE
    await back(rig)
    rig.features.rows["carriers"]["AA", "JFK"] = gone
    await present_again(careful)
    await refusing(rig)
    assert shown(await careful.stub.Predict(ask_carefully("AA"))) == GONE


async def test_what_nobody_confirmed_for_long_is_not_used(rig: Rig) -> None:
    """An entity may have been forgotten while the store is away; the default then stands in, and that verifies, too."""
    seconds = [0.0]
    await deploy_careful(rig, delay=SOME_DELAY, wind=SOME_WIND)
    async with rig.predictor(
        lookup=lambda features: Lookup(features, LastKnown(keep_s=600, now=lambda: seconds[0]))
    ) as replica:
        await until(lambda: replica.deployments.ready)
        await replica.stub.Predict(ask_carefully("AA"))
        await stopped(rig)
        seconds[0] = 600.0
        assert shown(await replica.stub.Predict(ask_carefully("AA")))[0, "wind"] == ("UNAVAILABLE", "LAST_KNOWN")
        seconds[0] = 600.1
        late = await replica.stub.Predict(ask_carefully("AA", "ZZ"))
        assert {policy for _, policy in shown(late).values()} == {"DEFAULT"}
        await back(rig)
        await present_again(replica)
        assert [await mismatches(replica, late, row) for row in range(2)] == [{}, {}]


async def test_a_restarted_replica_answers_while_the_feature_store_is_away(rig: Rig) -> None:
    """It is ready with what it kept of views and models, and says which of its answers it cannot give."""
    await deploy_careful(rig, delay=SOME_DELAY)
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
    await rig.stop("features", "trainer")
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        response = await replica.stub.Predict(ask_carefully("AA"))
        assert {policy for _, policy in shown(response).values()} == {"DEFAULT", "NULL"}
        error = await failure(replica.stub.Predict(ask()))
        assert error_metadata(error)["upstream"] == "feature store"


async def test_a_replay_of_a_last_known_value_names_what_differs(rig: Rig, careful: Replica) -> None:
    """Another value in the same row, another row, an erased one, one too old, a policy that was another one."""
    await stopped(rig)
    response = await careful.stub.Predict(ask_carefully("AA"))
    await back(rig)
    await present_again(careful)
    await until(lambda: response.prediction_ids[0] in rig.logger.records)
    rows, key = rig.features.rows["carriers"], ("AA", "JFK")
    served = rows[key]
    assert await mismatches(careful, response) == {}
    rows[key] = Row(served.event_time_micros, served.commit, {"delay": 6.0, "flights": 100})
    assert await mismatches(careful, response) == {"delay": "DATA"}
    rows[key] = Row(served.event_time_micros, served.commit, {"delay": None, "flights": 100})
    assert await mismatches(careful, response) == {"delay": "DATA"}
    del rows[key]
    assert await mismatches(careful, response) == {"delay": "DATA"}
    rig.features.erased_commits["carriers"] = served.commit
    assert await mismatches(careful, response) == {"delay": "FORGOTTEN"}
    rows[key] = served
    rig.features.erased_commits.clear()
    record, _ = rig.logger.records[response.prediction_ids[0]]
    record.features[1].policies = bytes([registry_pb2.MISSING_POLICY_NULL])
    assert await mismatches(careful, response) == {"flights": "DATA"}
    record.features[1].policies = bytes([registry_pb2.MISSING_POLICY_DEFAULT])
    record.event_time.FromDatetime(NOW + AGE_MAX)
    assert await mismatches(careful, response) == {"delay": "EXPIRY"}


async def test_many_rows_at_once_are_degraded_like_single_ones(rig: Rig, careful: Replica) -> None:
    """In a thread, and partly with entities that are not known."""
    await deploy_careful(rig, wind=SOME_WIND)
    await refusing(rig)
    hour = Column.build("hour", DataType.FLOAT64, [1.0] * 200)
    many = await careful.stub.Predict(ask_carefully(*["AA"] * 200, hour=hour))
    assert len(many.missing) == 600
    one = await careful.stub.Predict(ask_carefully("AA", hour=Column.build("hour", DataType.FLOAT64, [1.0])))
    assert bits(many) == bits(one) * 200


async def test_what_was_missing_is_counted(rig: Rig, careful: Replica) -> None:
    """By status and policy; answers without the feature store by themselves."""
    await refusing(rig)
    await careful.stub.Predict(ask_carefully("AA", "AA"))
    await failure(careful.stub.Predict(ask_carefully("ZZ")))

    def value(name: str, **labels: str) -> float | None:
        return careful.metrics.registry.get_sample_value(
            f"foresight_predictor_{name}", {"deployment": CAREFUL} | labels
        )

    for feature_policy in ("last_known", "default", "null"):
        assert value("features_missing_total", status="unavailable", policy=feature_policy) == 2
    assert value("degraded_predictions_total") == 2
    assert value("predictions_total", outcome="unavailable") == 1
