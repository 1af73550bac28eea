"""Predictions of an entity leave the log for good; nobody else's do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import grpc
import pytest

from foresight.logger.v1 import outcome_pb2, prediction_log_pb2
from foresight.types.v1 import types_pb2
from foresight.values import DataType
from foresight.wire import decode_column, encode_instant
from services.logger.forgetting import FORGOTTEN_KEPT, POSITIONS_PER_CALL, RECORDS_PER_CALL
from services.runtime.ids import new_id
from tests.conftest import MakeDatabase
from tests.integration.logger.rig import (
    ASKED,
    ASKED_MICROS,
    KNOWN_MICROS,
    NOW,
    Logger,
    Record,
    by_id,
    by_keys,
    column,
    lost,
    new_incarnation,
    record,
    running_logger,
)

OPERATOR = (("x-forwarded-client-cert", "URI=spiffe://foresight/operator/local"),)
APPLICATION = (("x-forwarded-client-cert", "URI=spiffe://foresight/application/demo"),)


def selection(
    *keys: types_pb2.Column, version: int = 2, entity_keys: Sequence[str] = ("flight", "origin")
) -> prediction_log_pb2.PredictionSelection:
    """Predictions of the view of the rig's records."""
    view = types_pb2.VersionRef(name="flight_delay", version=version)
    return prediction_log_pb2.PredictionSelection(views=[view], keys=keys, entity_keys=entity_keys)


def flight(number: int) -> prediction_log_pb2.PredictionSelection:
    return selection(column("flight", DataType.INT64, [number]))


def request(
    *selections: prediction_log_pb2.PredictionSelection,
    request_id: str = "first",
    served_before: datetime = NOW,
    after: int = 0,
) -> prediction_log_pb2.ForgetPredictionsRequest:
    return prediction_log_pb2.ForgetPredictionsRequest(
        request_id=request_id, served_before=encode_instant(served_before), selections=selections, after=after
    )


async def forget(
    logger: Logger, *selections: prediction_log_pb2.PredictionSelection, **options: Any
) -> tuple[int, int]:
    """Goes through the whole log; predictions and outcomes removed."""
    after = 0
    while True:
        done = await logger.log.ForgetPredictions(request(*selections, after=after, **options))
        assert done.position >= after
        after = done.position
        if after == done.end:
            return done.predictions, done.outcomes


async def refusal(
    logger: Logger, asked: prediction_log_pb2.ForgetPredictionsRequest, **options: Any
) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await logger.log.ForgetPredictions(asked, **options)
    return error.value.code()


async def is_known(logger: Logger, prediction_id: str) -> bool:
    try:
        await logger.log.GetPrediction(prediction_log_pb2.GetPredictionRequest(prediction_id=prediction_id))
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return False
    return True


async def flights_in_log(logger: Logger) -> list[int]:
    entries = [entry.record for entry in await logger.read_all() if entry.WhichOneof("entry") == "record"]
    return [number for r in entries for number in decode_column(r.entity_keys[0]).to_list()]


async def test_rows_leave_their_record_and_the_others_keep_their_sequence_numbers(logger: Logger) -> None:
    life = new_incarnation()
    sent = record(life, 1, 5, flights=[7, 8, 7, 9, 7])
    await logger.append(sent)
    assert await forget(logger, flight(7)) == (3, 0)
    [entry] = await logger.read_all()
    left = entry.record
    assert list(left.prediction_ids) == [sent.prediction_ids[1], sent.prediction_ids[3]]
    assert list(left.forgotten_offsets) == [0, 2, 4]
    assert decode_column(left.features[0].column).to_list() == [None, None]
    assert left.features[0].statuses == bytes([2, 2])
    assert list(left.sources[0].commits) == [2, 4]
    found = await logger.log.GetPrediction(
        prediction_log_pb2.GetPredictionRequest(prediction_id=sent.prediction_ids[3])
    )
    assert (found.record, found.row) == (left, 1)
    assert not await is_known(logger, sent.prediction_ids[2])
    assert await logger.ledger() == {life: (5, 5, 0, 0)}
    # A retry of the whole record brings nothing back, and is no contradiction.
    answer = await logger.append(sent)
    assert (answer.appended, answer.duplicates) == (0, 2)
    assert await flights_in_log(logger) == [8, 9]
    assert await logger.ledger() == {life: (5, 5, 0, 2)}


async def test_a_record_that_loses_rows_twice_knows_all_that_it_lost(logger: Logger) -> None:
    sent = record(new_incarnation(), 1, 4, flights=[7, 8, 9, 7])
    await logger.append(sent)
    assert await forget(logger, flight(7)) == (2, 0)
    assert await forget(logger, flight(8), request_id="second") == (1, 0)
    [entry] = await logger.read_all()
    assert list(entry.record.forgotten_offsets) == [0, 1, 3]
    found = await logger.log.GetPrediction(
        prediction_log_pb2.GetPredictionRequest(prediction_id=sent.prediction_ids[2])
    )
    assert found.row == 0


async def test_positions_of_what_is_gone_are_passed_over_by_readers(logger: Logger) -> None:
    life = new_incarnation()
    sent = [record(life, n, flights=[7 if 2 <= n <= 7 else n]) for n in range(1, 9)]
    await logger.append(*sent)
    await forget(logger, flight(7))
    page = await logger.read(page_size=3)
    assert [entry.commit for entry in page.entries] == [1]
    assert (page.cursor, page.head) == (3, 8)
    empty = await logger.read(cursor=3, page_size=3)
    assert (len(empty.entries), empty.cursor, empty.head) == (0, 6, 8)
    assert [entry.record for entry in await logger.read_all(page_size=3)] == [sent[0], sent[7]]
    later = record(life, 9)
    assert (await logger.append(later)).commit == 9
    assert (await logger.read(cursor=8)).entries[0].record == later


async def test_outcomes_go_with_their_predictions_and_so_do_those_that_wait(logger: Logger) -> None:
    sent = record(new_incarnation(), 1, 2, flights=[7, 8])
    await logger.append(sent)
    await logger.outcomes.RecordOutcomes(by_id(sent.prediction_ids, [True, False]))
    # One that attached by keys, and ones whose prediction never came: of this flight, and of another one.
    await logger.outcomes.RecordOutcomes(by_keys([7], [False], [1]))
    await logger.outcomes.RecordOutcomes(by_keys([7, 9], [True, True], event_time_micros=ASKED_MICROS + 1))
    assert (await logger.store.state()).held == 2
    predictions, outcomes = await forget(logger, flight(7))
    assert (predictions, outcomes) == (1, 4)
    state = await logger.store.state()
    assert state.held == 1
    left = [entry.outcome.prediction_id for entry in await logger.read_all() if entry.WhichOneof("entry") == "outcome"]
    assert left == [sent.prediction_ids[1]]
    assert await _rows(logger, "SELECT count(*) FROM claims") == [(1,)]


async def test_a_waiting_outcome_of_a_view_with_other_keys_stays(logger: Logger) -> None:
    other = outcome_pb2.RecordOutcomesRequest(
        deployment="others",
        entity_keys=[column("flight", DataType.INT64, [7])],
        event_time_micros=[ASKED_MICROS],
        values=column("late", DataType.BOOL, [True]),
        observed_at_micros=[KNOWN_MICROS],
    )
    await logger.outcomes.RecordOutcomes(other)
    assert await forget(logger, flight(7)) == (0, 0)
    assert (await logger.store.state()).held == 1


async def test_what_was_served_before_and_arrives_later_is_dropped_and_accounted_for(logger: Logger) -> None:
    life = new_incarnation()
    await forget(logger, flight(7), served_before=ASKED + timedelta(seconds=1))
    late = record(life, 1, 4, flights=[7, 8, 7, 9])
    await logger.outcomes.RecordOutcomes(by_id([late.prediction_ids[0]], [True]))
    answer = await logger.append(late)
    assert (answer.appended, answer.duplicates) == (2, 0)
    assert await flights_in_log(logger) == [8, 9]
    assert await logger.ledger() == {life: (4, 4, 0, 0)}
    assert (await logger.store.state()).held == 0
    again = await logger.append(late)
    assert (again.appended, again.duplicates) == (0, 2)
    # New ones about the same entity are new data.
    fresh = record(life, 5, flights=[7], event_time=ASKED + timedelta(seconds=2))
    assert (await logger.append(fresh)).appended == 1
    assert logger.metric("foresight_logger_forgotten_total") == 4


async def test_what_must_not_come_back_is_known_to_every_process_and_after_a_restart(
    postgres_url: MakeDatabase,
) -> None:
    settings = postgres_url("logger")
    async with running_logger(settings) as one, running_logger(settings) as two:
        # Both have looked before.
        await one.append(record(new_incarnation(), 1))
        await two.append(record(new_incarnation(), 1))
        await forget(one, flight(7))
        assert (await two.append(record(new_incarnation(), 1, flights=[7]))).appended == 0
    async with running_logger(settings) as three:
        assert (await three.append(record(new_incarnation(), 1, flights=[7]))).appended == 0


async def test_the_log_stops_remembering_whom_it_forgot(logger: Logger) -> None:
    await forget(logger, flight(7))
    logger.now = NOW + FORGOTTEN_KEPT + timedelta(seconds=1)
    assert (await logger.append(record(new_incarnation(), 1, flights=[7]))).appended == 1
    await forget(logger, flight(8), request_id="second")
    assert await _rows(logger, "SELECT request_id FROM forgotten_keys") == [("second",)]


async def test_only_the_view_the_values_and_the_types_that_were_named_are_removed(logger: Logger) -> None:
    sent = record(new_incarnation(), 1, 2, flights=[7, None])
    await logger.append(sent)
    await forget(logger, selection(column("flight", DataType.INT64, [7]), version=3), request_id="version")
    await forget(logger, selection(column("flight", DataType.STRING, ["7"])), request_id="type")
    await forget(
        logger,
        selection(column("flight", DataType.INT64, [7]), column("origin", DataType.STRING, ["EWR"])),
        request_id="other value",
    )
    await forget(logger, flight(7), request_id="later", served_before=ASKED)
    await forget(logger, flight(0), request_id="zero stands for NULL")
    assert await flights_in_log(logger) == [7, None]
    both = selection(column("origin", DataType.STRING, ["JFK"]), column("flight", DataType.INT64, [7]))
    assert await forget(logger, both, request_id="both") == (1, 0)
    assert await flights_in_log(logger) == [None]


async def test_a_prediction_can_be_named_by_its_id(logger: Logger) -> None:
    sent = record(new_incarnation(), 1, 2)
    await logger.append(sent)
    await forget(logger, selection(column("prediction_id", DataType.STRING, [sent.prediction_ids[0]])))
    assert not await is_known(logger, sent.prediction_ids[0])
    assert await is_known(logger, sent.prediction_ids[1])


async def test_a_long_log_takes_several_calls_each_of_which_can_be_repeated(logger: Logger) -> None:
    life = new_incarnation()
    n = RECORDS_PER_CALL + 20
    await logger.append(*(record(life, i, flights=[7 if i % 50 else 8]) for i in range(1, n + 1)))
    asked = request(flight(7))
    first = await logger.log.ForgetPredictions(asked)
    assert first.position < first.end == n
    assert 0 < first.predictions < n - n // 50
    again = await logger.log.ForgetPredictions(asked)
    assert again.position == n
    assert again.predictions == n - n // 50
    assert await forget(logger, flight(7)) == (n - n // 50, 0)
    assert await flights_in_log(logger) == [8] * (n // 50)
    assert n < POSITIONS_PER_CALL


async def test_every_bad_request_is_refused_and_changes_nothing(logger: Logger) -> None:
    await logger.append(record(new_incarnation(), 1, flights=[7]))
    null = selection(column("flight", DataType.INT64, [None]))
    two = selection(column("flight", DataType.INT64, [7, 8]))
    for wrong in (
        request(),
        request(flight(7), request_id=""),
        request(flight(7), request_id="x" * 129),
        request(selection()),
        request(null),
        request(two),
        request(selection(column("flight", DataType.FLOAT64, [7.0]))),
        request(selection(column("flight", DataType.INT64, [7]), version=0)),
        request(*([flight(7)] * 1_025)),
        prediction_log_pb2.ForgetPredictionsRequest(request_id="x", selections=[flight(7)]),
    ):
        assert await refusal(logger, wrong) is grpc.StatusCode.INVALID_ARGUMENT, wrong
    assert await refusal(logger, request(flight(7), after=2)) is grpc.StatusCode.OUT_OF_RANGE
    assert await refusal(logger, request(flight(7)), metadata=APPLICATION) is grpc.StatusCode.PERMISSION_DENIED
    assert await flights_in_log(logger) == [7]
    await logger.log.ForgetPredictions(request(flight(7), request_id="mine"), metadata=OPERATOR)
    assert await flights_in_log(logger) == []
    assert await refusal(logger, request(flight(8), request_id="mine")) is grpc.StatusCode.ALREADY_EXISTS


async def test_a_predictor_cannot_say_that_it_forgot(logger: Logger) -> None:
    sent = record(new_incarnation(), 1)
    sent.forgotten_offsets.append(3)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await logger.append(sent)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_no_column_of_the_log_holds_the_value_afterwards(logger: Logger) -> None:
    life = new_incarnation()
    marker = "xk-marker-1947"
    named, other = (_named(life, 1 + i, name) for i, name in enumerate((marker, "someone-else")))
    waiting = _named(life, 3, marker)
    await logger.append(named, other, quarantined=[lost(life, 9, 9)])
    assert await _tables_with(logger, marker) == {"records"}
    key = column("customer", DataType.STRING, [marker])
    await forget(logger, selection(key, entity_keys=["customer"]))
    await logger.append(waiting)
    assert await _tables_with(logger, marker) == set()
    assert await _tables_with(logger, "someone-else") == {"records"}


def _named(life: str, sequence: int, name: str) -> Record:
    sent = record(life, sequence, ids=[new_id()])
    del sent.entity_keys[:]
    sent.entity_keys.append(column("customer", DataType.STRING, [name]))
    return sent


async def _tables_with(logger: Logger, value: str) -> set[str]:
    """Tables of the log that have a value anywhere, in texts or in bytes."""
    tables = await _rows(logger, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'logger'")
    found = set()
    for (table,) in tables:
        [(count,)] = await _rows(
            logger,
            f"SELECT count(*) FROM {table} t WHERE position('{value}' IN t::text) > 0 "
            f"OR position('{value.encode().hex()}' IN t::text) > 0",
        )
        if count:
            found.add(str(table))
    return found


async def _rows(logger: Logger, statement: str) -> list[tuple[Any, ...]]:
    async with logger.database.statements() as connection:
        return [tuple(row) for row in await connection.exec_driver_sql(statement)]
