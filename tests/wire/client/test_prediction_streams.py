"""Streams of predictions: order, how far ahead rows are taken, what fails in place, and calls that break."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from foresight.client import (
    Client,
    DataType,
    ForesightError,
    InvalidArgument,
    InvalidValue,
    NotFound,
    Predictions,
    ResourceExhausted,
    Unavailable,
)
from foresight.predictor.v1 import prediction_pb2
from foresight.values import Column
from foresight.wire import decode_column, encode_column, encode_instant
from services.runtime import errors
from services.runtime.status import status_of
from tests.wire.client.conftest import Pauses
from tests.wire.client.delays import NOON, ref
from tests.wire.client.fake_foresight import FakeForesight

Message = prediction_pb2.PredictStreamRequest


def hours_of(request: prediction_pb2.PredictRequest) -> list[Any]:
    return decode_column(request.columns[0]).to_list()


def answer_to(request: prediction_pb2.PredictRequest) -> prediction_pb2.PredictResponse:
    """The hours come back."""
    hours = [float(hour) for hour in hours_of(request)]
    return prediction_pb2.PredictResponse(
        prediction_ids=[f"id {hour}" for hour in hours],
        outputs=[encode_column(Column.build("value", DataType.FLOAT64, hours))],
        model=ref("delays", 2),
        event_time=encode_instant(NOON),
    )


def answered(message: Message) -> prediction_pb2.PredictStreamResponse:
    return prediction_pb2.PredictStreamResponse(response=answer_to(message.request))


def refused(error: Exception) -> prediction_pb2.PredictStreamResponse:
    code, status = status_of(error)
    return prediction_pb2.PredictStreamResponse(
        error=prediction_pb2.PredictStreamError(
            code=code.value[0], message=status.message, status=status.SerializeToString()
        )
    )


def hours(n: int) -> Iterator[dict[str, int]]:
    for i in range(n):
        yield {"hour": i}


def values(answers: Iterator[Predictions]) -> list[float]:
    return [value for answer in answers for value in answer.outputs["value"]]


def test_each_of_many_rows_is_answered_in_its_turn(client: Client, fake: FakeForesight) -> None:
    fake.on("PredictStream", answered)
    assert values(client.predict_stream("delays", hours(300), event_time=NOON)) == [float(i) for i in range(300)]
    sent = fake.requests("PredictStream")
    assert {(m.request.deployment, m.request.request_id) for m in sent} == {("delays", "")}
    assert {m.request.event_time.ToMicroseconds() for m in sent} == {encode_instant(NOON).ToMicroseconds()}


def test_rows_may_be_tables_and_lists_and_none(client: Client, fake: FakeForesight) -> None:
    fake.on("PredictStream", answered)
    several = [{"hour": 1}, [{"hour": 2}, {"hour": 3}], pd.DataFrame({"hour": [4, 5]})]
    answers = list(client.predict_stream("delays", several))
    assert [answer.outputs["value"] for answer in answers] == [[1.0], [2.0, 3.0], [4.0, 5.0]]
    assert list(client.predict_stream("delays", [])) == []


@pytest.mark.parametrize("in_flight", [1, 5, 64])
def test_rows_are_taken_only_so_far_ahead_of_the_answers(client: Client, fake: FakeForesight, in_flight: int) -> None:
    fake.on("PredictStream", answered)
    taken = 0

    def counted() -> Iterator[dict[str, int]]:
        nonlocal taken
        for row in hours(200):
            taken += 1
            yield row

    for number, _ in enumerate(client.predict_stream("delays", counted(), in_flight=in_flight), 1):
        assert taken <= number + in_flight


def test_an_answer_comes_although_the_next_row_does_not(client: Client, fake: FakeForesight) -> None:
    """Rows may come from a queue."""
    fake.on("PredictStream", answered)
    rows: queue.SimpleQueue[dict[str, int] | None] = queue.SimpleQueue()
    answers = client.predict_stream("delays", iter(rows.get, None))
    for hour in range(3):
        rows.put({"hour": hour})
        assert next(answers).outputs == {"value": [float(hour)]}
    rows.put(None)
    assert list(answers) == []


def test_a_request_that_fails_is_raised_in_its_turn(client: Client, fake: FakeForesight) -> None:
    """After the answers before it, with what `predict` would raise."""
    bad = refused(InvalidValue("columns[hour]", "is missing"))
    fake.on("PredictStream", lambda m: bad if hours_of(m.request) == [2] else answered(m))
    answers = client.predict_stream("delays", hours(5))
    assert [next(answers).ids, next(answers).ids] == [["id 0.0"], ["id 1.0"]]
    with pytest.raises(InvalidArgument) as caught:
        next(answers)
    assert [(v.field, v.description) for v in caught.value.violations] == [("columns[hour]", "is missing")]
    assert caught.value.reason == "INVALID_FIELD"
    assert list(answers) == []


def test_errors_can_be_answers_too(client: Client, fake: FakeForesight) -> None:
    """Those of the service, and those of rows that cannot be sent at all."""
    missing = refused(errors.NotFound("deployment", "delays"))
    fake.on("PredictStream", lambda m: missing if hours_of(m.request) == [2] else answered(m))
    rows: list[Any] = [{"hour": 1}, {"hour": 2}, {"hour": 2**70}, "hour", {"hour": 3}]
    found = list(client.predict_stream("delays", rows, errors="yield"))
    assert [type(answer) for answer in found] == [Predictions, NotFound, InvalidValue, InvalidValue, Predictions]


def test_what_the_rows_raise_is_raised_after_their_answers(client: Client, fake: FakeForesight) -> None:
    fake.on("PredictStream", answered)

    def failing() -> Iterator[dict[str, int]]:
        yield from hours(3)
        raise OSError("the disk is gone")

    answers = client.predict_stream("delays", failing(), errors="yield")
    assert [next(answers) for _ in range(3)]
    with pytest.raises(OSError, match="the disk is gone"):
        next(answers)


def test_a_call_that_breaks_goes_on_where_it_was(client: Client, fake: FakeForesight, pauses: Pauses) -> None:
    """What had an answer is not sent again; the rows are taken once."""
    broken = iter([3, 7, 7])
    next_break = next(broken)

    def breaking(message: Message) -> Any:
        nonlocal next_break
        if hours_of(message.request) == [next_break]:
            next_break = next(broken, -1)
            return errors.Unavailable("the service stops")
        return answered(message)

    fake.on("PredictStream", breaking)
    assert values(client.predict_stream("delays", hours(20), request_id="run")) == [float(i) for i in range(20)]
    asked = [hours_of(m.request)[0] for m in fake.requests("PredictStream")]
    assert sorted(set(asked)) == list(range(20))
    assert [asked.count(hour) for hour in (3, 7)] == [2, 3]
    assert {m.request.request_id for m in fake.requests("PredictStream")} == {f"run/{i}" for i in range(20)}
    # Once per break at least: a call may end before the answers that it had are read.
    assert len(pauses.all) >= 3


def test_a_service_that_stays_away_is_given_up(client: Client, fake: FakeForesight, pauses: Pauses) -> None:
    fake.on("PredictStream", lambda m: errors.Unavailable("nobody"))
    with pytest.raises(Unavailable):
        list(client.predict_stream("delays", hours(20)))
    assert 20 < pauses.now <= 30


def test_what_finds_a_service_away_is_asked_again_by_itself(
    client: Client, fake: FakeForesight, pauses: Pauses
) -> None:
    """In its place, not before the time that an overloaded service names."""
    failures = {
        2: refused(errors.Unavailable("the feature store does not answer")),
        4: refused(errors.Overloaded("too many", 3.0)),
    }
    fake.on("PredictStream", lambda m: failures.get(hours_of(m.request)[0]) or answered(m))
    fake.on("Predict", errors.Unavailable("still away"), prediction_pb2.PredictResponse(prediction_ids=["again"]))
    found = [answer.ids for answer in client.predict_stream("delays", hours(6))]
    assert found == [["id 0.0"], ["id 1.0"], ["again"], ["id 3.0"], ["again"], ["id 5.0"]]
    assert max(pauses.all) > 3
    assert [hours_of(r) for r in fake.requests("Predict")] == [[2], [2], [4]]


def test_what_is_asked_again_meets_the_replica_of_its_stream(client: Client, fake: FakeForesight) -> None:
    """A repeat of the stream asks that one, and gets the answer that was given there."""
    fake.on("PredictStream", refused(errors.Unavailable("the feature store does not answer")))
    fake.on("Predict", prediction_pb2.PredictResponse(prediction_ids=["again"]))
    list(client.predict_stream("delays", hours(2), request_id="run"))
    assert [r.request_id for r in fake.requests("Predict")] == ["run/0", "run/1"]
    assert fake.headers["Predict"]["x-foresight-request-id"] == "run"


def test_a_limit_that_waiting_does_not_mend_is_an_error(client: Client, fake: FakeForesight, pauses: Pauses) -> None:
    fake.on("PredictStream", refused(errors.LimitExceeded("too large", limit="bytes")))
    [error] = client.predict_stream("delays", hours(1), errors="yield")
    assert isinstance(error, ResourceExhausted)
    assert (error.metadata, pauses.all) == ({"limit": "bytes"}, [])


def test_whoever_stops_reading_leaves_nothing_behind(client: Client, fake: FakeForesight) -> None:
    """No thread takes rows any more."""
    fake.on("PredictStream", answered)
    answers = client.predict_stream("delays", hours(1_000_000))
    assert next(answers).ids == ["id 0.0"]
    taking = [t for t in threading.enumerate() if t.name == "foresight-rows"]
    assert len(taking) == 1
    answers.close()  # type: ignore[attr-defined]
    taking[0].join(10)
    assert not taking[0].is_alive()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"rows": {"hour": 1}}, "rows"),
        ({"rows": pd.DataFrame({"hour": [1]})}, "rows"),
        ({"rows": "hour"}, "rows"),
        ({"rows": 5}, "rows"),
        ({"in_flight": 0}, "in_flight"),
        ({"in_flight": 65}, "in_flight"),
        ({"errors": "ignore"}, "errors"),
    ],
)
def test_what_cannot_be_meant_is_told_at_once(
    client: Client, fake: FakeForesight, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        client.predict_stream(**{"deployment": "delays", "rows": hours(1), **arguments})
    assert caught.value.violations[0].field == field
    assert fake.requests("PredictStream") == []


def test_every_error_is_one_of_the_clients(client: Client, fake: FakeForesight) -> None:
    """Also one whose details cannot be read."""
    error = prediction_pb2.PredictStreamError(code=99, message="what is this", status=b"\xff")
    fake.on("PredictStream", prediction_pb2.PredictStreamResponse(error=error))
    [found] = client.predict_stream("delays", hours(1), errors="yield")
    assert isinstance(found, ForesightError)
    assert (found.code, found.message) == ("UNKNOWN", "what is this")
