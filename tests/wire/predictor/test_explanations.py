"""Explanations over a real server: they add up, are the same every time, and change nothing about the prediction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.struct_pb2 import Struct

from foresight.predictor.v1 import prediction_pb2
from foresight.scoring import ModelTask, Signature
from foresight.trainer.v1 import model_registry_pb2
from foresight.values import Column, DataType, Field
from foresight.wire import decode_column
from services.predictor.explaining import EXPLAINED_ROWS_MAX, EXPLANATIONS_MAX, Explanations
from tests.wire.predictor.onnx_models import linear_model, with_example
from tests.wire.predictor.rig import MODEL_INPUTS, Replica, Rig, artifact, ask, model_version, until
from tests.wire.predictor.test_isolation import _retry_after_s as retry_after_s
from tests.wire.predictor.test_model_life import signature
from tests.wire.predictor.test_predictor_refusals import details

EXAMPLE = {
    "delay": [0.0, 30.0, -5.0, float("nan")],
    "flights": [10.0, 200.0, 50.0, 7.0],
    "wind": [3.0, 40.0, 9.0, 12.0],
    "hour": [6.0, 12.0, 18.0, 23.0],
    "total_delay": [1.0, 60.0, float("nan"), 8.0],
}


class Held(Executor):
    """Works only when it is released."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: work(*args, **kwargs)))
        return future

    def release(self) -> None:
        for future, work in self.waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(work())
        self.waiting.clear()


@pytest.fixture
def held() -> Held:
    return Held()


@pytest_asyncio.fixture
async def explainable(rig: Rig) -> Rig:
    """A rig whose deployment's model carries an example."""
    carrying = with_example(artifact(0.5, MODEL_INPUTS), signature(*MODEL_INPUTS), EXAMPLE)
    rig.trainer.register(model_version(2), carrying)
    await rig.trainer.deploy("late_flights", "late", 2)
    return rig


@pytest_asyncio.fixture
async def explaining(explainable: Rig) -> AsyncIterator[Replica]:
    async with explainable.predictor() as running:
        await until(lambda: running.deployments.ready)
        yield running


def explained(n: int = 1, **columns: Any) -> prediction_pb2.PredictRequest:
    request = ask(n, **columns)
    request.explain = True
    return request


def columns_of(explanation: prediction_pb2.Explanation) -> dict[str, list[float]]:
    columns = (explanation.base, explanation.score, *explanation.contributions)
    return {c.name: decode_column(c).to_list() for c in columns}


def predicted(replica: Replica) -> int:
    return sum(i.highest_sequence for i in replica.spool.incarnations())


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_contributions_and_base_add_up_to_the_score(explaining: Replica) -> None:
    """For each row; the inputs are the model's, a transform's among them, in its order."""
    n = EXPLAINED_ROWS_MAX
    answer = await explaining.stub.Predict(explained(n))
    explanation = answer.explanation
    assert explanation.output == "probability"
    assert [c.name for c in explanation.contributions] == list(MODEL_INPUTS)
    found = columns_of(explanation)
    assert found["score"] == decode_column(answer.outputs[0]).to_list()
    for row in range(n):
        added = [found[name][row] for name in MODEL_INPUTS]
        largest = max(abs(v) for v in (found["base"][row], found["score"][row], *added))
        assert abs(found["base"][row] + sum(added) - found["score"][row]) <= 1e-9 * largest
    assert any(found["hour"])
    assert any(found["total_delay"])


async def test_the_prediction_is_what_it_is_without_an_explanation(explainable: Rig, explaining: Replica) -> None:
    """Answered and logged."""
    plain = await explaining.stub.Predict(ask(3))
    with_explanation = await explaining.stub.Predict(explained(3))
    assert not plain.HasField("explanation")
    assert list(plain.outputs) == list(with_explanation.outputs)
    assert list(plain.missing) == list(with_explanation.missing)
    ids = [plain.prediction_ids[0], with_explanation.prediction_ids[0]]
    await until(lambda: all(i in explainable.logger.records for i in ids))
    first, second = (explainable.logger.records[i][0] for i in ids)
    for record in (first, second):
        for varying in ("prediction_ids", "first_sequence", "request_id", "latency_us", "served_at"):
            record.ClearField(varying)
    assert first == second


async def test_a_row_is_explained_with_the_same_bits_in_any_company(explaining: Replica) -> None:
    """Alone, among other rows, and while others are asked for."""
    together = columns_of((await explaining.stub.Predict(explained(6))).explanation)
    calls: list[Any] = []
    for row in range(6):
        single = ask(6)
        alone = {c.name: decode_column(c).take([row]) for c in single.columns}
        calls.append(explaining.stub.Predict(explained(1, **alone)))
        calls.append(explaining.stub.Predict(ask(2)))
    answers = [await call for call in calls]
    for row, answer in enumerate(answers[::2]):
        assert columns_of(answer.explanation) == {name: [values[row]] for name, values in together.items()}


async def test_rows_of_json_are_explained_alike(explaining: Replica) -> None:
    rows = []
    for carrier in ("AA", "UA"):
        row = Struct()
        row.update({"carrier": carrier, "origin": "JFK", "hour": 5, "route": "jfk-lax"})
        rows.append(row)
    request = prediction_pb2.PredictRowsRequest(deployment="late_flights", rows=rows, explain=True)
    answer = await explaining.stub.PredictRows(request)
    hour = Column.build("hour", DataType.FLOAT64, [5.0, 5.0])
    assert answer.explanation == (await explaining.stub.Predict(explained(2, hour=hour))).explanation


async def test_too_many_rows_are_refused(explaining: Replica) -> None:
    refused = await failure(explaining.stub.Predict(explained(EXPLAINED_ROWS_MAX + 1)))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(refused)[1] == ["explain"]
    assert predicted(explaining) == 0


async def test_a_model_without_an_example_cannot_explain(replica: Replica) -> None:
    """Nothing is logged, and predictions go on."""
    refused = await failure(replica.stub.Predict(explained()))
    assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "example" in (refused.details() or "")
    assert predicted(replica) == 0
    await replica.stub.Predict(ask())


async def test_explanations_have_a_bound_and_hold_nobody_up(explainable: Rig, held: Held) -> None:
    """Beyond it a request is refused with the time to come again, and nothing of it is logged; others are answered."""
    async with explainable.predictor(explanations=Explanations(held)) as replica:
        await until(lambda: replica.deployments.ready)
        calls = [asyncio.ensure_future(replica.stub.Predict(explained())) for _ in range(EXPLANATIONS_MAX)]
        await until(lambda: len(held.waiting) == EXPLANATIONS_MAX)
        refused = await failure(replica.stub.Predict(explained()))
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert retry_after_s(refused) > 0
        assert predicted(replica) == EXPLANATIONS_MAX
        assert (await replica.stub.Predict(ask(4))).model.version == 2
        assert not any(call.done() for call in calls)
        held.release()
        answers = await asyncio.gather(*calls)
        assert all(answer.HasField("explanation") for answer in answers)
        again = asyncio.ensure_future(replica.stub.Predict(explained()))
        await until(lambda: len(held.waiting) == 1)
        held.release()
        assert (await again).HasField("explanation")


async def test_a_caller_who_goes_leaves_his_place(explainable: Rig, held: Held) -> None:
    """His prediction is made, nobody explains it."""
    async with explainable.predictor(explanations=Explanations(held)) as replica:
        await until(lambda: replica.deployments.ready)
        calls = [asyncio.ensure_future(replica.stub.Predict(explained())) for _ in range(EXPLANATIONS_MAX)]
        await until(lambda: len(held.waiting) == EXPLANATIONS_MAX)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await until(lambda: all(future.cancelled() for future, _ in held.waiting))
        held.waiting.clear()
        last = asyncio.ensure_future(replica.stub.Predict(explained()))
        await until(lambda: len(held.waiting) == 1)
        held.release()
        assert (await last).HasField("explanation")


async def test_a_model_without_a_score_for_a_mix_answers_without_an_explanation(rig: Rig) -> None:
    """Row and example have scores, and a row between them is too large for one: the prediction is made all the same."""
    names = list(MODEL_INPUTS)
    huge = {name: [3e38 if name == "wind" else 0.0] for name in names}
    regression = Signature(ModelTask.REGRESSION, signature(*names).inputs, Field("delay", DataType.FLOAT64))
    sum_of_two = linear_model(names, [float(name in ("wind", "hour")) for name in names], 0.0, classifier=False)
    version = model_version(2)
    version.task = model_registry_pb2.MODEL_TASK_REGRESSION
    version.ClearField("classes")
    rig.trainer.register(version, with_example(sum_of_two, regression, huge))
    await rig.trainer.deploy("late_flights", "late", 2)
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        few = await replica.stub.Predict(explained())
        assert few.explanation.output == "value"
        assert columns_of(few.explanation)["base"] == [pytest.approx(3e38)]
        answer = await replica.stub.Predict(explained(hour=Column.build("hour", DataType.FLOAT64, [3e38])))
        assert len(answer.prediction_ids) == 1
        assert not answer.HasField("explanation")


async def test_a_repeated_request_gets_its_explanation_again(explaining: Replica) -> None:
    """From what is remembered; asked without one, it is another request."""
    request = explained(2)
    request.request_id = "mine"
    first = await explaining.stub.Predict(request)
    again = await explaining.stub.Predict(request)
    assert again.repeated_answer
    assert again.explanation == first.explanation
    request.explain = False
    refused = await failure(explaining.stub.Predict(request))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(refused)[1] == ["request_id"]


async def test_a_stream_explains_what_it_is_asked_to(explaining: Replica) -> None:
    """Each request by itself; one that asks for too much fails in its place."""
    wanted = [explained(1), ask(1), explained(EXPLAINED_ROWS_MAX + 1), explained(1)]
    stream = explaining.stub.PredictStream(iter(prediction_pb2.PredictStreamRequest(request=r) for r in wanted))
    answers = [answer async for answer in stream]
    assert [a.WhichOneof("outcome") for a in answers] == ["response", "response", "error", "response"]
    assert not answers[1].response.HasField("explanation")
    assert answers[0].response.explanation == answers[3].response.explanation
    assert answers[0].response.explanation.contributions
