"""Many predictions over one call, which costs a fraction of a call each.

A thread takes the caller's rows, at most `in_flight` ahead of the answers, and gRPC's sends them; who iterates gets the
answers in the order of the rows. A call that breaks is made anew and sends again what has no answer yet.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, overload

import grpc

from foresight.client.connection import PREDICT_S, Calls, Connection, Headers
from foresight.client.errors import ForesightError, ResourceExhausted, Unavailable
from foresight.client.frames import is_frame
from foresight.client.predictions import Predictions, decode_predictions, encode_request, request_headers
from foresight.client.statuses import error_of, error_of_status
from foresight.predictor.v1 import prediction_pb2, prediction_pb2_grpc
from foresight.values import InvalidValue

# As many as the service takes before it waits for its answers to be read.
IN_FLIGHT_MAX = 64
Failure = ForesightError | InvalidValue
Question = prediction_pb2.PredictRequest | InvalidValue


class PredictionStreamCalls(Calls):
    """Calls about streams of predictions."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._stub = prediction_pb2_grpc.PredictionServiceStub(connection.channel)

    @overload
    def predict_stream(
        self,
        deployment: str,
        rows: Iterable[Any],
        *,
        event_time: datetime | None = None,
        request_id: str = "",
        errors: Literal["raise"] = "raise",
        in_flight: int = IN_FLIGHT_MAX,
        timeout_s: float | None = None,
    ) -> Iterator[Predictions]: ...

    @overload
    def predict_stream(
        self,
        deployment: str,
        rows: Iterable[Any],
        *,
        event_time: datetime | None = None,
        request_id: str = "",
        errors: Literal["yield"],
        in_flight: int = IN_FLIGHT_MAX,
        timeout_s: float | None = None,
    ) -> Iterator[Predictions | Failure]: ...

    def predict_stream(
        self,
        deployment: str,
        rows: Iterable[Any],
        *,
        event_time: datetime | None = None,
        request_id: str = "",
        errors: Literal["raise", "yield"] = "raise",
        in_flight: int = IN_FLIGHT_MAX,
        timeout_s: float | None = None,
    ) -> Iterator[Predictions | Failure]:
        """Predicts for each of many `rows`, and yields one answer for each, in their order.

        Each of `rows` is what `predict` takes: a dict for a single row, or a list of dicts or DataFrame of up to 1,024.
        They are taken as answers come, at most `in_flight` ahead (1 to 64) and by another thread, so they may come from
        a queue and never end. Take fewer ahead when each has many rows. `timeout_s` is for all of it; None: none.

        What one of `rows` fails with is raised in its turn; with `errors="yield"` it is yielded instead, a
        ForesightError or InvalidValue, and the others go on. Failures of the whole, of `rows` itself among them, are
        always raised. Like `predict`, what finds a service away or overloaded is asked again until the client's
        `retry_s` have passed without an answer; what had no answer when the call broke is then a new prediction with
        its own id, and the unanswered one stays in the log. With a `request_id` (at most 100 bytes) the n-th of `rows`
        is asked as `<request_id>/<n>` from 0 on, and a repeat gets the first answer within 10 minutes.
        """
        if isinstance(rows, str | bytes | Mapping) or is_frame(rows) or not isinstance(rows, Iterable):
            raise InvalidValue("rows", "are not an iterable of dicts, lists of dicts or DataFrames")
        if not 1 <= in_flight <= IN_FLIGHT_MAX:
            raise InvalidValue("in_flight", f"is {in_flight}, not 1 to {IN_FLIGHT_MAX}")
        if errors not in ("raise", "yield"):
            raise InvalidValue("errors", 'is neither "raise" nor "yield"')

        def question(number: int, row: Any) -> Question:
            name = f"{request_id}/{number}" if request_id else ""
            try:
                return encode_request(deployment, row, event_time, name)
            except InvalidValue as error:
                return error

        questions = _Questions((question(number, row) for number, row in enumerate(rows)), in_flight)
        asking = _Asking(self._connection, self._stub, questions, request_headers(request_id), timeout_s)
        return _answers(asking, questions, yields_errors=errors == "yield")


def _answers(asking: _Asking, questions: _Questions, *, yields_errors: bool) -> Iterator[Predictions | Failure]:
    try:
        questions.start()
        while (answer := asking.next()) is not None:
            if isinstance(answer, prediction_pb2.PredictResponse):
                yield decode_predictions(answer)
            elif yields_errors:
                yield answer
            else:
                raise answer
    finally:
        questions.stop()
        asking.stop()


class _Questions:
    """Requests that have no answer yet, at most `most`; a thread takes them from their source."""

    def __init__(self, source: Iterator[Question], most: int) -> None:
        self._source = source
        self._most = most
        self._changed = threading.Condition()
        self._unanswered: deque[Question] = deque()
        # How many were answered: the number of the first that is not.
        self._answered = 0
        self._calls = 0
        self._over = False
        self._fault: Exception | None = None

    def start(self) -> None:
        """Begins to take."""
        threading.Thread(target=self._take, name="foresight-rows", daemon=True).start()

    def stop(self) -> None:
        """Takes and sends no more."""
        with self._changed:
            self._over = True
            self._calls += 1
            self._changed.notify_all()

    def first(self) -> Question | None:
        """The first without an answer, when there is one; None after the last. Raises what the source raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._unanswered or self._over)
            if self._unanswered:
                return self._unanswered[0]
            if self._fault is not None:
                raise self._fault
            return None

    def answered(self) -> None:
        """The first has its answer."""
        with self._changed:
            self._unanswered.popleft()
            self._answered += 1
            self._changed.notify_all()

    def sent(self) -> Iterator[prediction_pb2.PredictStreamRequest]:
        """What a call sends, from the first without an answer on; ends what an earlier call sends."""
        with self._changed:
            self._calls += 1
            call, place = self._calls, self._answered
            self._changed.notify_all()
        return self._sent(call, place)

    def _sent(self, call: int, place: int) -> Iterator[prediction_pb2.PredictStreamRequest]:
        while (found := self._to_send(call, place)) is not None:
            place, question = found[0] + 1, found[1]
            if not isinstance(question, InvalidValue):
                yield prediction_pb2.PredictStreamRequest(request=question)

    def _to_send(self, call: int, place: int) -> tuple[int, Question] | None:
        """The question at a place, with the place; None when no more are to be sent by this call."""

        def is_there() -> bool:
            # One that could not be encoded may have been answered before it got its turn here.
            return max(place, self._answered) < self._answered + len(self._unanswered)

        with self._changed:
            self._changed.wait_for(lambda: self._calls != call or self._over or is_there())
            if self._calls != call or not is_there():
                return None
            place = max(place, self._answered)
            return place, self._unanswered[place - self._answered]

    def _take(self) -> None:
        try:
            for question in self._source:
                with self._changed:
                    if self._over:
                        return
                    self._unanswered.append(question)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: len(self._unanswered) < self._most or self._over)
        except Exception as fault:  # noqa: BLE001 - whatever the caller's rows raise is raised where he iterates
            self._fault = fault
        with self._changed:
            self._over = True
            self._changed.notify_all()


class _Asking:
    """The call that is under way, and those that follow it when it breaks."""

    def __init__(
        self,
        connection: Connection,
        stub: prediction_pb2_grpc.PredictionServiceStub,
        questions: _Questions,
        headers: Headers,
        timeout_s: float | None,
    ) -> None:
        self._connection = connection
        self._stub = stub
        self._questions = questions
        self._headers = headers
        self._give_up = None if timeout_s is None else time.monotonic() + timeout_s
        self._call: Any = None

    def next(self) -> prediction_pb2.PredictResponse | Failure | None:
        """The next answer, or what was wrong with its request; None after the last."""
        question = self._questions.first()
        if question is None:
            return None
        answer = question if isinstance(question, InvalidValue) else self._answer_to(question)
        self._questions.answered()
        return answer

    def stop(self) -> None:
        """Leaves the call."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _answer_to(self, question: prediction_pb2.PredictRequest) -> prediction_pb2.PredictResponse | ForesightError:
        response = self._connection.retry.run(self._read)
        if response.WhichOneof("outcome") == "response":
            return response.response
        error = error_of_status(response.error.code, response.error.message, response.error.status)
        if isinstance(error, Unavailable | ResourceExhausted):
            return self._again(question, error)
        return error

    def _read(self) -> prediction_pb2.PredictStreamResponse:
        """The next message of the call, which is made if there is none. Raises Unavailable when it breaks."""
        if self._call is None:
            self._call = self._stub.PredictStream(
                self._questions.sent(), timeout=self._remaining_s(), metadata=self._headers or None
            )
        try:
            response: prediction_pb2.PredictStreamResponse = next(self._call)
        except StopIteration:
            self._call = None
            raise Unavailable(
                f"Foresight at {self._connection.address} ended a stream before its last answer"
            ) from None
        except grpc.RpcError as error:
            self._call = None
            raise error_of(error, self._connection.address) from None
        return response

    def _again(
        self, question: prediction_pb2.PredictRequest, error: ForesightError
    ) -> prediction_pb2.PredictResponse | ForesightError:
        """What a request is answered that is asked again by itself, as `predict` does after such an error."""
        known = [error]

        def ask() -> prediction_pb2.PredictResponse:
            if known:
                raise known.pop()
            timeout_s = min(PREDICT_S, self._remaining_s() or PREDICT_S)
            # With the stream's own, so that the replica answers that a repeat of the stream will meet.
            return self._connection.call_once(self._stub.Predict, question, timeout_s, self._headers)

        try:
            return self._connection.retry.run(ask)
        except ForesightError as last:
            return last

    def _remaining_s(self) -> float | None:
        # A deadline that has passed is the call's to tell.
        return None if self._give_up is None else max(0.001, self._give_up - time.monotonic())
