"""PredictStream: many requests of one call, answered in order as Predict answers each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from random import Random
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2

from foresight.predictor.v1 import prediction_pb2, prediction_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType
from foresight.wire import encode_column
from services.predictor.prediction_codec import size_of_request
from services.predictor.questions import ROWS_MAX
from services.predictor.streams import ROW_BYTES, UNANSWERED_MAX
from services.runtime.status import DETAILS_KEY
from tests.wire.predictor.rig import NOW, Replica, Rig, ask, until
from tests.wire.predictor.test_predictor_refusals import INVALID, details

PATH = "/foresight.predictor.v1.PredictionService/PredictStream"
Stream = grpc.aio.StreamStreamCall[prediction_pb2.PredictStreamRequest, prediction_pb2.PredictStreamResponse]


def message(request: prediction_pb2.PredictRequest) -> prediction_pb2.PredictStreamRequest:
    return prediction_pb2.PredictStreamRequest(request=request)


def hour(value: float, n: int = 1) -> prediction_pb2.PredictRequest:
    return ask(n, event_time=NOW, hour=Column.build("hour", DataType.FLOAT64, [value] * n))


def typed(column: Column) -> prediction_pb2.PredictRequest:
    return prediction_pb2.PredictRequest(columns=[encode_column(column)])


def probability(response: prediction_pb2.PredictResponse) -> float:
    return response.outputs[0].float64_values.values[0]


async def messages(
    requests: Iterable[prediction_pb2.PredictRequest],
) -> AsyncIterator[prediction_pb2.PredictStreamRequest]:
    for request in requests:
        yield message(request)


async def answers_of(stream: Stream) -> tuple[list[prediction_pb2.PredictStreamResponse], grpc.aio.AioRpcError | None]:
    """The answers, and what the stream ended with."""
    answers = []
    try:
        async for answer in stream:
            answers.append(answer)
    except grpc.aio.AioRpcError as error:
        return answers, error
    return answers, None


async def opened(replica: Replica, requests: Iterable[prediction_pb2.PredictRequest]) -> Stream:
    """A stream whose requests were sent and taken, and that waits for more."""
    stream: Stream = replica.stub.PredictStream()
    sent = 0
    for request in requests:
        await stream.write(message(request))
        sent += 1
    await until(lambda: replica.streams.unanswered == sent)
    return stream


@pytest_asyncio.fixture
async def narrow(rig: Rig, replica: Replica) -> AsyncIterator[prediction_pb2_grpc.PredictionServiceAsyncStub]:
    """A client whose transport holds 64 KiB of answers that nobody reads."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
    async with grpc.aio.insecure_channel(rig.address("predictor"), options=options) as channel:
        yield prediction_pb2_grpc.PredictionServiceStub(channel)


async def test_answers_are_those_of_predict_in_the_order_of_the_requests(rig: Rig, replica: Replica) -> None:
    """More requests than may be unanswered; each is logged once."""
    requests = [hour(float(i % 24), n=1 + i % 3) for i in range(3 * UNANSWERED_MAX)]
    answers, error = await answers_of(replica.stub.PredictStream(messages(requests)))
    assert error is None
    assert {a.WhichOneof("outcome") for a in answers} == {"response"}
    alone = {i: probability(await replica.stub.Predict(hour(float(i)))) for i in range(24)}
    assert [probability(a.response) for a in answers] == [alone[i % 24] for i in range(len(requests))]
    ids = [id for a in answers for id in a.response.prediction_ids]
    assert len(set(ids)) == len(ids) == sum(1 + i % 3 for i in range(len(requests)))
    await until(lambda: set(ids) <= rig.logger.records.keys())
    assert rig.logger.duplicates == 0


async def test_requests_of_a_stream_share_look_ups(rig: Rig, replica: Replica) -> None:
    """Those that come while one is under way go together."""
    rig.features.hold = asyncio.Event()
    stream = await opened(replica, [hour(float(i)) for i in range(20)])
    await until(lambda: replica.predictor.admitted_rows == 20)
    rig.features.hold.set()
    await stream.done_writing()
    answers, error = await answers_of(stream)
    assert (len(answers), error) == (20, None)
    assert rig.features.lookups <= 3


async def test_errors_are_answered_in_place_with_what_predict_ends_with(replica: Replica) -> None:
    """Code, text and details to the byte; the requests around them are answered."""
    refused = [request for request, _ in INVALID.values()] + [ask(deployment="nobody")]
    mixed = [request for bad in refused for request in (hour(1.0), bad)] + [hour(1.0)]
    answers, error = await answers_of(replica.stub.PredictStream(messages(mixed)))
    assert error is None
    assert [a.WhichOneof("outcome") for a in answers] == ["response", "error"] * len(refused) + ["response"]
    for request, answer in zip(refused, answers[1::2], strict=True):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await replica.stub.Predict(request)
        assert answer.error.code == caught.value.code().value[0]
        assert answer.error.message == caught.value.details()
        assert answer.error.status == dict(caught.value.trailing_metadata())[DETAILS_KEY]


async def test_a_message_without_a_request_names_it(replica: Replica) -> None:
    """It is answered like any other bad request."""
    stream: Stream = replica.stub.PredictStream()
    await stream.write(prediction_pb2.PredictStreamRequest())
    await stream.write(message(hour(1.0)))
    await stream.done_writing()
    (bad, good), error = await answers_of(stream)
    assert error is None
    violations = error_details_pb2.BadRequest()
    assert any(detail.Unpack(violations) for detail in status_pb2.Status.FromString(bad.error.status).details)
    assert [v.field for v in violations.field_violations] == ["request"]
    assert good.WhichOneof("outcome") == "response"


async def test_bytes_that_are_no_message_end_the_stream_after_the_answers_before(replica: Replica) -> None:
    """What comes after them is not read."""
    calling: Any = replica.channel.stream_stream(PATH)
    good = message(hour(1.0)).SerializeToString()
    stream = calling(iter([good, good, b"\xff\xff", good]))
    answers, error = await answers_of(stream)
    assert len(answers) == 2
    assert error is not None
    assert (error.code(), details(error)[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert replica.spool.incarnations()[0].highest_sequence == 2


async def test_a_caller_who_does_not_read_is_not_read_from(
    rig: Rig, replica: Replica, narrow: prediction_pb2_grpc.PredictionServiceAsyncStub
) -> None:
    """The stream stands still with as many requests unanswered as it may have; then all are answered, in order."""
    requests = [hour(float(i % 24), n=16) for i in range(800)]
    stream: Stream = narrow.PredictStream()

    async def send() -> None:
        for request in requests:
            await stream.write(message(request))
        await stream.done_writing()

    sending = asyncio.create_task(send())
    await until(
        lambda: (
            replica.streams.unanswered == UNANSWERED_MAX
            and replica.predictor.idle
            and not replica.predictor.admitted_rows
        ),
        20,
    )
    assert replica.spool.incarnations()[0].highest_sequence < 16 * len(requests)
    answers, error = await answers_of(stream)
    await sending
    assert (len(answers), error, replica.streams.open) == (len(requests), None, 0)
    first = {i: probability(answers[i].response) for i in range(24)}
    assert len(set(first.values())) == 24
    assert [probability(a.response) for a in answers] == [first[i % 24] for i in range(len(requests))]


async def test_a_stream_of_large_requests_leaves_others_their_place_in_the_queue(rig: Rig, replica: Replica) -> None:
    """Its rows count, not only its requests; nothing of it is refused."""
    rig.features.hold = asyncio.Event()
    stream: Stream = replica.stub.PredictStream(messages([hour(1.0, n=1_000)] * 20))
    await until(lambda: replica.predictor.admitted_rows == 3_000 and rig.features.waiting == 3)
    single = asyncio.ensure_future(replica.stub.Predict(hour(1.0)))
    await until(lambda: replica.predictor.admitted_rows == 3_001)
    assert replica.streams.unanswered == 3
    rig.features.hold.set()
    assert (await single).prediction_ids
    answers, error = await answers_of(stream)
    assert ([len(a.response.prediction_ids) for a in answers], error) == ([1_000] * 20, None)


@pytest.mark.parametrize(
    ("request_", "least"),
    [
        (ask(0), 0),
        (prediction_pb2.PredictRequest(columns=[types_pb2.Column(name="x")]), 0),
        (ask(), ROW_BYTES),
        (ask(100), 100 * ROW_BYTES),
        (hour(1.0, n=2_000), ROWS_MAX * ROW_BYTES),
        (typed(Column.build("x", DataType.TIMESTAMP, [NOW] * 3)), 3 * ROW_BYTES),
        (typed(Column.build("x", DataType.FLOAT_VECTOR, [[1.0]] * 3, 1)), 3 * ROW_BYTES),
        (typed(Column.build("x", DataType.STRING, ["x" * 4_000])), 4_000),
    ],
)
def test_the_size_of_a_request_is_its_bytes_or_its_rows(request_: prediction_pb2.PredictRequest, least: int) -> None:
    assert least <= size_of_request(message(request_)) <= max(1.1 * least, 100)


async def test_a_stream_that_is_cancelled_leaves_nothing(rig: Rig, replica: Replica) -> None:
    """Its requests are dropped from their batch, and others are answered."""
    rig.features.hold = asyncio.Event()
    stream = await opened(replica, [hour(float(i)) for i in range(20)])
    await until(lambda: replica.predictor.admitted_rows == 20)
    stream.cancel()
    await until(lambda: replica.streams.open == 0 and replica.predictor.admitted_rows == 0)
    rig.features.hold.set()
    rig.features.hold = None
    await replica.stub.Predict(hour(1.0))
    await until(lambda: replica.predictor.idle)
    assert replica.spool.incarnations()[0].highest_sequence == 1


async def test_a_stream_that_is_cancelled_while_nobody_reads_leaves_nothing(
    rig: Rig, replica: Replica, narrow: prediction_pb2_grpc.PredictionServiceAsyncStub
) -> None:
    """What holds it up is the transport, not an answer."""
    stream: Stream = narrow.PredictStream()

    async def send() -> None:
        while True:
            await stream.write(message(hour(1.0, n=16)))

    sending = asyncio.create_task(send())
    await until(lambda: replica.streams.unanswered == UNANSWERED_MAX and replica.predictor.idle, 20)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    stream.cancel()
    await until(lambda: replica.streams.open == 0 and replica.predictor.admitted_rows == 0)


async def test_streams_that_break_off_change_no_answer_of_the_others(rig: Rig, replica: Replica) -> None:
    """Half of them go in the middle, with bad requests in between; what anybody was answered is logged once."""
    random = Random(5)
    alone = [probability(await replica.stub.Predict(hour(float(i)))) for i in range(24)]
    ids: set[str] = set()

    async def call(goes_after: int) -> None:
        asked = [random.randrange(24) for _ in range(100)]
        requests = [ask(without="hour") if i % 7 == 3 else hour(float(h)) for i, h in enumerate(asked)]
        stream: Stream = replica.stub.PredictStream(messages(requests))
        count = 0
        async for answer in stream:
            expected = "error" if count % 7 == 3 else "response"
            assert answer.WhichOneof("outcome") == expected
            if expected == "response":
                assert probability(answer.response) == alone[asked[count]]
                ids.update(answer.response.prediction_ids)
            count += 1
            if count == goes_after:
                stream.cancel()
                break
        assert count == min(goes_after, len(asked))

    async with asyncio.TaskGroup() as callers:
        for number in range(12):
            callers.create_task(call(random.randrange(1, 99) if number % 2 else 1_000))
    await until(lambda: replica.streams.open == 0 and replica.predictor.admitted_rows == 0 and replica.predictor.idle)
    await until(lambda: replica.spool.pending == 0)
    assert ids <= rig.logger.records.keys()
    assert rig.logger.duplicates == 0
    (numbers,) = rig.logger.numbers.values()
    assert sorted(numbers) == list(range(1, len(numbers) + 1))


async def test_the_deadline_of_a_request_is_that_of_its_stream(rig: Rig, replica: Replica) -> None:
    """The caller learns before it that it was the feature store."""
    rig.features.hold = asyncio.Event()
    stream: Stream = replica.stub.PredictStream(timeout=4)
    await stream.write(message(hour(1.0)))
    answer = await stream.read()
    rig.features.hold.set()
    assert isinstance(answer, prediction_pb2.PredictStreamResponse)
    assert answer.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status_pb2.Status.FromString(answer.error.status).details)
    assert info.metadata == {"upstream": "feature store"}
    stream.cancel()


async def test_more_than_may_wait_is_refused_in_place(rig: Rig) -> None:
    """With the time after which to come again; what was let in is answered."""
    async with rig.predictor(queue_rows_max=8) as replica:
        await until(lambda: replica.deployments.ready)
        rig.features.hold = asyncio.Event()
        stream = await opened(replica, [hour(float(i)) for i in range(12)])
        rig.features.hold.set()
        await stream.done_writing()
        answers, error = await answers_of(stream)
        assert error is None
        assert [a.WhichOneof("outcome") for a in answers] == ["response"] * 8 + ["error"] * 4
        retry = error_details_pb2.RetryInfo()
        status = status_pb2.Status.FromString(answers[-1].error.status)
        assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert any(detail.Unpack(retry) for detail in status.details)


async def test_when_the_service_stops_what_was_taken_is_answered(rig: Rig, replica: Replica) -> None:
    """Then the stream ends with UNAVAILABLE, and a new one at once; those who had sent all get all."""
    rig.features.hold = asyncio.Event()
    waiting = await opened(replica, [hour(float(i)) for i in range(5)])
    complete: Stream = replica.stub.PredictStream(messages([hour(1.0)] * 3))
    await until(lambda: replica.streams.unanswered == 8 and replica.predictor.admitted_rows == 8)
    replica.streams.end()
    rig.features.hold.set()
    answers, error = await answers_of(waiting)
    assert len(answers) == 5
    assert error is not None
    assert (error.code(), details(error)[0]) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    answers, error = await answers_of(replica.stub.PredictStream(messages([hour(1.0)])))
    assert error is not None
    assert (answers, error.code()) == ([], grpc.StatusCode.UNAVAILABLE)
    answers, error = await answers_of(complete)
    assert len(answers) == 3
