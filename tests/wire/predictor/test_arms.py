"""Deployments with several arms: who gets which, what comes back, what is recorded, and who may ask for one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from foresight.logger.v1 import prediction_log_pb2
from foresight.predictor.v1 import prediction_pb2
from foresight.trainer.v1 import model_registry_pb2
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType
from services.predictor.assignment import Assignment
from services.predictor.explaining import EXPLANATIONS_MAX
from tests.wire.predictor.inference_requests import features_of, infer, keys_of
from tests.wire.predictor.rig import MODEL_INPUTS, NOW, Replica, Rig, artifact, ask, micros, model_version, until
from tests.wire.predictor.test_model_life import checked
from tests.wire.predictor.upstreams import Row

ARM = "x-foresight-arm"
APPLICATION = ("x-forwarded-client-cert", "URI=spiffe://foresight/application/tests")
OPERATOR = ("x-forwarded-client-cert", "URI=spiffe://foresight/operator/tests")
N = 200
BIASES = {1: 0.0, 2: 1.0, 3: -1.0, 4: 2.0}


def arm(name: str, version: int, weight: int = 0, *, shadow: bool = False) -> model_registry_pb2.Arm:
    model = types_pb2.VersionRef(name="late", version=version)
    return model_registry_pb2.Arm(name=name, model=model, weight=weight, shadow=shadow)


async def deploy(rig: Rig, replica: Replica, *arms: model_registry_pb2.Arm, etag: str = "arms", salt: str = "") -> None:
    """Deploys arms, and waits until all of them are there."""
    await until(lambda: replica.deployments.ready)
    for version, bias in BIASES.items():
        rig.trainer.register(model_version(version), artifact(bias))
    await rig.trainer.deploy_arms("late_flights", *arms, etag=etag, salt=salt)

    def there() -> bool:
        state = replica.deployments.state("late_flights")
        return state.etag == etag and not state.cause and all(a.ready for a in state.arms)

    await until(there)


def entities(rig: Rig, n: int = N) -> Column:
    """n carriers, all of which have rows."""
    names = [f"C{i}" for i in range(n)]
    for i, name in enumerate(names):
        at = micros(NOW) - 1_000
        rig.features.rows["carriers"][(name, "JFK")] = Row(at, 3, {"delay": float(i), "flights": i})
        rig.features.rows["weather"][(name, "JFK")] = Row(at, 4, {"wind": float(i % 7)})
    return Column.build("carrier", DataType.STRING, names)


def expected_arms(carriers: Column, *weights: tuple[str, int], salt: str = "late_flights") -> list[str]:
    origin = Column.build("origin", DataType.STRING, ["JFK"] * len(carriers))
    places = Assignment(salt, weights).choose([carriers, origin])
    return [weights[place][0] for place in places]


def arms_of(answer: prediction_pb2.PredictResponse) -> list[str]:
    found = {row: a.arm for a in answer.arms for row in a.rows}
    return [found[row] for row in range(len(answer.prediction_ids))]


def outputs(answer: prediction_pb2.PredictResponse) -> list[bytes]:
    return [c.SerializeToString() for c in answer.outputs]


async def records(rig: Rig, ids: Sequence[str]) -> list[prediction_log_pb2.PredictionRecord]:
    await until(lambda: all(id in rig.logger.records for id in ids))
    return [rig.logger.records[id][0] for id in ids]


def recorded(replica: Replica) -> int:
    """How many predictions were ever in the spool."""
    return max((i.highest_sequence for i in replica.spool.incarnations()), default=0)


async def refused(call: grpc.aio.UnaryUnaryCall[Any, Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_rows_go_to_their_arms_and_come_back_in_order(rig: Rig, replica: Replica) -> None:
    """With the outputs of requests of their own."""
    carriers = entities(rig)
    await deploy(rig, replica, arm("champion", 1, 70), arm("challenger", 2, 30))
    answer = await replica.stub.Predict(ask(N, carrier=carriers))
    found = arms_of(answer)
    assert found == expected_arms(carriers, ("champion", 70), ("challenger", 30))
    assert {a.arm: a.model.version for a in answer.arms} == {"champion": 1, "challenger": 2}
    assert all(list(a.rows) == sorted(a.rows) for a in answer.arms)
    assert answer.model.version == {"champion": 1, "challenger": 2}[found[0]]
    assert len(set(answer.prediction_ids)) == N
    # Each version alone, asked for all rows.
    scores = {}
    for version, name in ((1, "champion"), (2, "challenger")):
        alone = await replica.stub.Predict(ask(N, carrier=carriers), metadata=[(ARM, name)])
        assert {a.model.version for a in alone.arms} == {version}
        scores[name] = alone.outputs[0].float64_values.values
    merged = answer.outputs[0].float64_values.values
    assert list(merged) == [scores[name][row] for row, name in enumerate(found)]


async def test_one_entity_has_one_arm(rig: Rig, replica: Replica) -> None:
    """However it is asked, and after a restart without the trainer."""
    carriers = entities(rig, 20)
    await deploy(rig, replica, arm("champion", 1, 1), arm("challenger", 2, 1))
    together = arms_of(await replica.stub.Predict(ask(20, carrier=carriers)))
    assert set(together) == {"champion", "challenger"}
    for row in range(20):
        one = await replica.stub.Predict(ask(1, carrier=carriers.take([row])))
        assert arms_of(one) == [together[row]]
        (record,) = await records(rig, one.prediction_ids)
        assert (record.arm, record.arm_probability, record.arm_forced) == (together[row], 0.5, False)


async def test_a_restart_serves_all_arms_without_the_trainer(rig: Rig) -> None:
    async with rig.predictor() as replica:
        await deploy(rig, replica, arm("champion", 1, 70), arm("challenger", 2, 30), arm("next", 3, shadow=True))
        carriers = entities(rig, 30)
        before = await replica.stub.Predict(ask(30, carrier=carriers))
        await until(lambda: replica.shadows.rows == 0)
    await rig.stop("trainer")
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        after = await replica.stub.Predict(ask(30, carrier=carriers))
        assert arms_of(after) == arms_of(before)
        assert outputs(after) == outputs(before)
        await until(lambda: all(a.ready for a in replica.deployments.state("late_flights").arms))


async def test_a_null_key_is_an_entity_like_any_other(rig: Rig, replica: Replica) -> None:
    """It has an arm, and always the same one."""
    await deploy(rig, replica, arm("champion", 1, 1), arm("challenger", 2, 1))
    for group in ("carriers", "weather"):
        rig.features.rows[group][(None, "JFK")] = rig.features.rows[group][("AA", "JFK")]
    nulls = Column.build("carrier", DataType.STRING, [None, "AA", None])
    found = arms_of(await replica.stub.Predict(ask(3, carrier=nulls)))
    assert found == expected_arms(nulls, ("champion", 1), ("challenger", 1))
    assert found[0] == found[2]


async def test_raising_an_arm_moves_no_more_than_it_takes(rig: Rig, replica: Replica) -> None:
    carriers = entities(rig)
    await deploy(rig, replica, arm("champion", 1, 90), arm("challenger", 2, 10), etag="one")
    before = arms_of(await replica.stub.Predict(ask(N, carrier=carriers)))
    await deploy(rig, replica, arm("champion", 1, 80), arm("challenger", 2, 20), etag="two")
    after = arms_of(await replica.stub.Predict(ask(N, carrier=carriers)))
    assert {now for was, now in zip(before, after, strict=True) if was == "challenger"} == {"challenger"}
    assert after.count("challenger") > before.count("challenger")


async def test_a_request_whose_part_fails_leaves_nothing_behind(rig: Rig, replica: Replica) -> None:
    """And the row that is named is the request's."""
    carriers = entities(rig)
    await deploy(rig, replica, arm("champion", 1, 70), arm("challenger", 2, 30))
    row = expected_arms(carriers, ("champion", 70), ("challenger", 30)).index("challenger", 20)
    del rig.features.rows["weather"][(f"C{row}", "JFK")]
    error = await refused(replica.stub.Predict(ask(N, carrier=carriers)))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert f"of row {row} " in str(error.details())
    assert recorded(replica) == 0
    # Nobody else is concerned.
    await replica.stub.Predict(ask(row, carrier=carriers.take(list(range(row)))))


async def test_parts_count_as_answered_when_they_are_recorded(rig: Rig) -> None:
    """And not when there is no room for their records."""
    carriers = entities(rig)
    await rig.deploy_flights()
    for bytes_max, outcome, count in ((100, "spool_full", 2), (1 << 20, "answered", N)):
        async with rig.predictor(bytes_max=bytes_max) as replica:
            await deploy(rig, replica, arm("champion", 1, 70), arm("challenger", 2, 30))
            call = replica.stub.Predict(ask(N, carrier=carriers))
            if outcome == "answered":
                await call
            else:
                assert (await refused(call)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            read = replica.metrics.registry.get_sample_value
            labels = {"deployment": "late_flights"}
            other = {"answered": "spool_full", "spool_full": "answered"}[outcome]
            assert read("foresight_predictor_predictions_total", labels | {"outcome": outcome}) == count
            assert not read("foresight_predictor_predictions_total", labels | {"outcome": other})


async def test_missing_features_are_told_by_row_of_the_request(rig: Rig, replica: Replica) -> None:
    carriers = entities(rig, 40)
    await deploy(rig, replica, arm("champion", 1, 1), arm("challenger", 2, 1))
    gone = [3, 4, 17, 18, 39]
    for row in gone:
        del rig.features.rows["carriers"][(f"C{row}", "JFK")]
    answer = await replica.stub.Predict(ask(40, carrier=carriers))
    assert [m.row for m in answer.missing if m.feature == "delay"] == gone


async def test_what_is_wrong_with_a_request_is_told_once(rig: Rig, replica: Replica) -> None:
    await deploy(rig, replica, arm("champion", 1, 1), arm("challenger", 2, 1))
    error = await refused(replica.stub.Predict(ask(4, without="hour")))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_rows_of_json_name_their_arm(rig: Rig, replica: Replica) -> None:
    carriers = entities(rig, 20)
    await deploy(rig, replica, arm("champion", 1, 1), arm("challenger", 2, 1))
    rows = []
    for name in carriers.to_list():
        row = Struct()
        row.update({"carrier": name, "origin": "JFK", "hour": 1.0, "route": "x"})
        rows.append(row)
    answer = await replica.stub.PredictRows(prediction_pb2.PredictRowsRequest(deployment="late_flights", rows=rows))
    assert [r.arm for r in answer.rows] == expected_arms(carriers, ("champion", 1), ("challenger", 1))
    assert [r.model.version for r in answer.rows] == [1 if r.arm == "champion" else 2 for r in answer.rows]


async def test_a_named_request_gets_the_same_arms_again(rig: Rig, replica: Replica) -> None:
    """Nothing is scored again, by shadows neither; a forced arm makes it another request."""
    carriers = entities(rig, 20)
    await deploy(rig, replica, arm("champion", 1, 1), arm("challenger", 2, 1), arm("next", 3, shadow=True))
    request = ask(20, carrier=carriers)
    request.request_id = "mine"
    first = await replica.stub.Predict(request)
    await until(lambda: replica.shadows.rows == 0)
    before = recorded(replica)
    again = await replica.stub.Predict(request)
    assert (again.repeated_answer, list(again.arms), outputs(again)) == (True, list(first.arms), outputs(first))
    assert (replica.shadows.rows, recorded(replica)) == (0, before)
    other = await refused(replica.stub.Predict(request, metadata=[(ARM, "challenger")]))
    assert other.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_explanations_are_put_together(rig: Rig) -> None:
    """Of models with other inputs, too: what one does not take adds nothing to its scores."""
    carriers = entities(rig, 16)
    for version, inputs in ((1, MODEL_INPUTS), (2, MODEL_INPUTS[:3])):
        rig.trainer.register(model_version(version, inputs=inputs), checked(version / 2, *inputs))
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        await rig.trainer.deploy_arms("late_flights", arm("a", 1, 1), arm("b", 2, 1), etag="two")
        await until(lambda: replica.deployments.state("late_flights").etag == "two")
        request = ask(16, carrier=carriers)
        request.explain = True
        answer = await replica.stub.Predict(request)
        found = arms_of(answer)
        assert set(found) == {"a", "b"}
        made = {c.name: list(c.float64_values.values) for c in answer.explanation.contributions}
        assert set(made) == set(MODEL_INPUTS)
        assert {name for name, added in zip(found, made["hour"], strict=True) if added} == {"a"}
        base, score = answer.explanation.base, answer.explanation.score
        for row in range(16):
            added = base.float64_values.values[row] + sum(values[row] for values in made.values())
            assert added == pytest.approx(score.float64_values.values[row], abs=1e-6)
        too_many = ask(17, carrier=entities(rig, 17))
        too_many.explain = True
        assert (await refused(replica.stub.Predict(too_many))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_request_over_many_arms_is_explained(rig: Rig) -> None:
    """More than explanations may be under way at once."""
    arms = 12
    carriers = entities(rig, 100)
    for version in range(1, arms + 1):
        rig.trainer.register(model_version(version), checked(version / 2, *MODEL_INPUTS))
    expected = expected_arms(carriers, *((f"a{version}", 1) for version in range(1, arms + 1)))
    rows = [expected.index(name) for name in sorted(set(expected))]
    assert len(rows) > EXPLANATIONS_MAX
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        each = [arm(f"a{version}", version, 1) for version in range(1, arms + 1)]
        await rig.trainer.deploy_arms("late_flights", *each, etag="many")
        await until(lambda: replica.deployments.state("late_flights").etag == "many")
        request = ask(len(rows), carrier=carriers.take(rows))
        request.explain = True
        answer = await replica.stub.Predict(request)
        assert arms_of(answer) == [expected[row] for row in rows]
        assert list(answer.explanation.score.float64_values.values) == list(answer.outputs[0].float64_values.values)


async def test_a_deployment_with_one_arm_says_nothing_of_arms(rig: Rig, replica: Replica) -> None:
    answer = await replica.stub.Predict(ask(2))
    assert not answer.arms
    (record, _) = await records(rig, answer.prediction_ids)
    assert (record.arm, record.arm_probability, record.arm_forced, record.shadow) == ("", 0.0, False, False)
    listing = await replica.stub.ListServing(prediction_pb2.ListServingRequest())
    assert [list(d.arms) for d in listing.deployments] == [[]]


async def test_testers_force_an_arm(rig: Rig, replica: Replica) -> None:
    """One without weight, a shadow, and the only one; the record says so."""
    await deploy(rig, replica, arm("champion", 1, 3), arm("off", 2), arm("challenger", 3, 1), arm("s", 4, shadow=True))
    for name, version, probability in (("champion", 1, 0.75), ("off", 2, 0.0), ("challenger", 3, 0.25), ("s", 4, 0.0)):
        answer = await replica.stub.Predict(ask(4), metadata=[(ARM, name), OPERATOR])
        assert (arms_of(answer), answer.model.version) == ([name] * 4, version)
        record = (await records(rig, answer.prediction_ids))[0]
        assert (record.arm, record.arm_probability) == (name, probability)
        assert (record.arm_forced, record.shadow) == (True, False)
    await rig.trainer.deploy("late_flights", "late", 1)
    await until(lambda: replica.deployments.state("late_flights").etag == "1")
    answer = await replica.stub.Predict(ask(2), metadata=[(ARM, "primary")])
    assert arms_of(answer) == ["primary"] * 2
    assert (await records(rig, answer.prediction_ids))[0].arm_forced


@pytest.mark.parametrize(
    ("name", "caller", "code"),
    [
        ("challenger", APPLICATION, grpc.StatusCode.PERMISSION_DENIED),
        ("nobody", APPLICATION, grpc.StatusCode.PERMISSION_DENIED),
        ("nobody", OPERATOR, grpc.StatusCode.NOT_FOUND),
        ("No Name", OPERATOR, grpc.StatusCode.INVALID_ARGUMENT),
        ("../x", OPERATOR, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_arms_are_forced_by_operators_and_by_name(
    rig: Rig, replica: Replica, name: str, caller: tuple[str, str], code: grpc.StatusCode
) -> None:
    await deploy(rig, replica, arm("champion", 1, 3), arm("challenger", 2, 1))
    for call in (
        replica.stub.Predict(ask(2), metadata=[(ARM, name), caller]),
        replica.inference.ModelInfer(infer(keys_of()), metadata=[(ARM, name), caller]),
    ):
        assert (await refused(call)).code() is code
    assert recorded(replica) == 0


async def test_a_version_of_the_inference_protocol_is_that_of_an_arm(rig: Rig, replica: Replica) -> None:
    """Everybody may name one that has a weight; none answers for another."""
    await deploy(rig, replica, arm("champion", 1, 3), arm("off", 2), arm("challenger", 3, 1))
    for version in (1, 3):
        answer = await replica.inference.ModelInfer(infer(keys_of(), version=str(version)), metadata=[APPLICATION])
        assert answer.model_version == str(version)
        ids = answer.parameters["prediction_ids"].string_param.split(",")
        record = (await records(rig, ids))[0]
        assert (record.model.version, record.arm_forced) == (version, True)
    off = infer(keys_of(), version="2")
    denied = await refused(replica.inference.ModelInfer(off, metadata=[APPLICATION]))
    assert denied.code() is grpc.StatusCode.PERMISSION_DENIED
    assert (await replica.inference.ModelInfer(off, metadata=[OPERATOR])).model_version == "2"
    unknown = await refused(replica.inference.ModelInfer(infer(keys_of(), version="4")))
    assert unknown.code() is grpc.StatusCode.NOT_FOUND
    other = replica.inference.ModelInfer(infer(keys_of(), version="1"), metadata=[(ARM, "challenger")])
    assert (await refused(other)).code() is grpc.StatusCode.NOT_FOUND


async def test_the_inference_protocol_shares_rows_out(rig: Rig, replica: Replica) -> None:
    await deploy(rig, replica, arm("champion", 1, 1), arm("challenger", 2, 1))
    native = arms_of(await replica.stub.Predict(ask(2)))
    answer = await replica.inference.ModelInfer(infer(keys_of(2)))
    assert answer.parameters["arms"].string_param.split(",") == native


async def test_given_features_go_to_the_first_arm(rig: Rig, replica: Replica) -> None:
    """Other arms may take others."""
    await deploy(rig, replica, arm("champion", 1, 1), arm("challenger", 2, 99), arm("next", 3, shadow=True))
    for sent in (features_of(20), features_of(20, carrier=keys_of(20)["carrier"], origin=keys_of(20)["origin"])):
        answer = await replica.inference.ModelInfer(infer(sent))
        assert set(answer.parameters["arms"].string_param.split(",")) == {"champion"}
        ids = answer.parameters["prediction_ids"].string_param.split(",")
        assert (await records(rig, ids))[0].arm_forced
    assert replica.shadows.rows == 0


async def test_a_version_that_does_not_load_keeps_the_arms_that_serve(rig: Rig, replica: Replica) -> None:
    """All arms that answer are swapped together."""
    await deploy(rig, replica, arm("champion", 1, 1), arm("challenger", 2, 1), etag="one")
    rig.trainer.register(model_version(5), b"not a model")
    await rig.trainer.deploy_arms("late_flights", arm("champion", 3, 1), arm("challenger", 5, 1), etag="two")
    await until(lambda: "does not load" in replica.deployments.state("late_flights").cause)
    state = replica.deployments.state("late_flights")
    assert (state.etag, state.failed) == ("one", True)
    answer = await replica.stub.Predict(ask(20, carrier=entities(rig, 20)))
    assert {a.model.version for a in answer.arms} == {1, 2}


async def test_arms_swapped_under_load_answer_with_their_own_version(rig: Rig, replica: Replica) -> None:
    """Each answer is of one deployment, and each row's score is that of the version that is named."""
    carriers = entities(rig, 12)
    await deploy(rig, replica, arm("a", 1, 1), arm("b", 2, 1), etag="0")
    scores = {}
    for version, name in ((1, "a"), (2, "b")):
        alone = await replica.stub.Predict(ask(12, carrier=carriers), metadata=[(ARM, name)])
        scores[version] = list(alone.outputs[0].float64_values.values)
    done = asyncio.Event()

    async def asking() -> int:
        answers = 0
        while not done.is_set():
            answer = await replica.stub.Predict(ask(12, carrier=carriers))
            found = answer.outputs[0].float64_values.values
            for part in answer.arms:
                assert [found[row] for row in part.rows] == [scores[part.model.version][row] for row in part.rows]
            assert sorted(row for part in answer.arms for row in part.rows) == list(range(12))
            answers += 1
        return answers

    callers = [asyncio.create_task(asking()) for _ in range(4)]
    for swap in range(1, 11):
        versions = (1, 2) if swap % 2 else (2, 1)
        await deploy(rig, replica, arm("a", versions[0], swap), arm("b", versions[1], 1), etag=str(swap))
    done.set()
    assert sum(await asyncio.gather(*callers)) > 0


async def test_predictions_of_arms_verify(rig: Rig, replica: Replica) -> None:
    await deploy(rig, replica, arm("champion", 1, 1), arm("challenger", 2, 1), arm("next", 3, shadow=True))
    answer = await replica.stub.Predict(ask(2))
    await until(lambda: any(r.shadow for r, _ in rig.logger.records.values()))
    shadowed = [id for id, (record, _) in rig.logger.records.items() if record.shadow]
    for id in (*answer.prediction_ids, *shadowed):
        verified = await replica.stub.VerifyPrediction(prediction_pb2.VerifyPredictionRequest(prediction_id=id))
        assert verified.verified, verified.mismatches
