"""Outcomes and the predictions that they belong to."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc
import pytest

from foresight.logger.v1 import outcome_pb2, prediction_log_pb2
from foresight.values import DataType
from foresight.wire import decode_column, decode_instant
from services.runtime.ids import new_id
from tests.integration.logger.rig import (
    ASKED,
    ASKED_MICROS,
    KNOWN_MICROS,
    NOW,
    Logger,
    by_id,
    by_keys,
    new_incarnation,
    record,
)

Counts = tuple[int, int, int]


async def send(logger: Logger, request: outcome_pb2.RecordOutcomesRequest) -> Counts:
    answer = await logger.outcomes.RecordOutcomes(request)
    return answer.matched, answer.held, answer.duplicates


async def refused(logger: Logger, request: outcome_pb2.RecordOutcomesRequest) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await logger.outcomes.RecordOutcomes(request)
    return error.value


async def logged(logger: Logger) -> list[tuple[str, object, int]]:
    """(prediction id, value, revision) of the outcomes in the log; each comes after its prediction."""
    arrived: set[str] = set()
    outcomes = []
    for entry in await logger.read_all():
        if entry.WhichOneof("entry") == "record":
            arrived.update(entry.record.prediction_ids)
        else:
            assert entry.outcome.prediction_id in arrived
            value = decode_column(entry.outcome.value).python(0)
            outcomes.append((entry.outcome.prediction_id, value, entry.outcome.revision))
    return outcomes


async def test_an_outcome_by_id_becomes_an_entry_with_deployment_view_and_time(logger: Logger) -> None:
    sent = record(new_incarnation(), 1, 2)
    await logger.append(sent)
    wanted = sent.prediction_ids[1]
    assert await send(logger, by_id([wanted], [True])) == (1, 0, 0)
    outcome = (await logger.read(cursor=1)).entries[0].outcome
    assert (outcome.prediction_id, outcome.deployment, outcome.revision) == (wanted, "delays", 0)
    assert outcome.view == sent.view
    assert decode_column(outcome.value).to_list() == [True]
    assert decode_instant(outcome.observed_at) == NOW
    found = await logger.log.GetPrediction(prediction_log_pb2.GetPredictionRequest(prediction_id=wanted))
    assert found.outcome == outcome
    other = prediction_log_pb2.GetPredictionRequest(prediction_id=sent.prediction_ids[0])
    assert not (await logger.log.GetPrediction(other)).HasField("outcome")
    assert logger.metric("foresight_logger_outcomes_total", result="matched") == 1
    assert logger.metric("foresight_logger_head") == 2


@pytest.mark.parametrize(
    ("type", "value"),
    [
        (DataType.BOOL, False),
        (DataType.INT64, -(2**63)),
        (DataType.FLOAT64, 0.1),
        (DataType.STRING, "zu spät"),
    ],
)
async def test_values_keep_their_type(logger: Logger, type: DataType, value: object) -> None:
    sent = record(new_incarnation(), 1)
    await logger.append(sent)
    await send(logger, by_id(list(sent.prediction_ids), [value], type=type))
    column = decode_column((await logger.read(cursor=1)).entries[0].outcome.value)
    assert (column.type, column.to_list()) == (type, [value])


async def test_an_outcome_before_its_prediction_is_held_until_it_arrives(logger: Logger) -> None:
    sent = record(new_incarnation(), 1, 2)
    first, second = sent.prediction_ids
    assert await send(logger, by_id([first, second], [True, False])) == (0, 2, 0)
    assert await send(logger, by_id([first], [True])) == (0, 0, 1)
    assert logger.metric("foresight_logger_held_outcomes") == 2
    assert (await logger.read()).head == 0
    await logger.append(sent)
    assert sorted(await logged(logger)) == sorted([(first, True, 0), (second, False, 0)])
    assert await send(logger, by_id([first], [True])) == (0, 0, 1)
    assert logger.metric("foresight_logger_held_outcomes") == 0


async def test_an_outcome_by_keys_matches_whatever_the_order_of_the_key_columns(logger: Logger) -> None:
    sent = record(new_incarnation(), 1, 3, flights=[11, None, 13])
    await logger.append(sent)
    assert await send(logger, by_keys([13, None], [True, False])) == (2, 0, 0)
    assert sorted(await logged(logger)) == sorted(
        [(sent.prediction_ids[2], True, 0), (sent.prediction_ids[1], False, 0)]
    )


async def test_keys_match_only_with_deployment_and_event_time(logger: Logger) -> None:
    await logger.append(record(new_incarnation(), 1, flights=[11]))
    assert await send(logger, by_keys([11], [True], event_time_micros=ASKED_MICROS + 1)) == (0, 1, 0)
    assert await send(logger, by_keys([11], [True], deployment="others")) == (0, 1, 0)
    assert await logged(logger) == []


async def test_an_outcome_by_keys_belongs_to_every_prediction_with_them_also_to_later_ones(logger: Logger) -> None:
    life = new_incarnation()
    early = record(life, 1, 2, flights=[11, 11])
    late = record(life, 3, flights=[11])
    await logger.append(early)
    assert await send(logger, by_keys([11], [True])) == (1, 0, 0)
    await logger.append(late)
    ids = [*early.prediction_ids, *late.prediction_ids]
    assert sorted(await logged(logger)) == sorted((i, True, 0) for i in ids)
    assert await send(logger, by_keys([11], [True])) == (0, 0, 1)
    assert await send(logger, by_keys([11], [False], [1])) == (1, 0, 0)
    assert len(await logged(logger)) == 6


async def test_held_outcomes_by_keys_are_attached_with_all_their_revisions_in_order(logger: Logger) -> None:
    assert await send(logger, by_keys([11], [True])) == (0, 1, 0)
    assert await send(logger, by_keys([11], [False], [2])) == (0, 1, 0)
    sent = record(new_incarnation(), 1, flights=[11])
    await logger.append(sent)
    only = sent.prediction_ids[0]
    assert await logged(logger) == [(only, True, 0), (only, False, 2)]
    assert logger.metric("foresight_logger_held_outcomes") == 0


async def test_a_held_outcome_by_id_goes_before_one_by_keys_of_the_same_revision(logger: Logger) -> None:
    sent = record(new_incarnation(), 1, flights=[11])
    await send(logger, by_keys([11], [True]))
    await send(logger, by_id(list(sent.prediction_ids), [False]))
    await logger.append(sent)
    assert await logged(logger) == [(sent.prediction_ids[0], False, 0)]
    assert logger.metric("foresight_logger_held_outcomes") == 0


async def test_an_exact_repetition_changes_nothing_whichever_way_it_comes(logger: Logger) -> None:
    sent = record(new_incarnation(), 1, flights=[11])
    await logger.append(sent)
    request = by_id(list(sent.prediction_ids), [True])
    assert await send(logger, request) == (1, 0, 0)
    assert await send(logger, request) == (0, 0, 1)
    assert await send(logger, by_keys([11], [True])) == (0, 0, 1)
    assert (await logger.read()).head == 2


async def test_a_correction_needs_a_higher_revision(logger: Logger) -> None:
    sent = record(new_incarnation(), 1)
    ids = list(sent.prediction_ids)
    await logger.append(sent)
    await send(logger, by_id(ids, [True]))
    error = await refused(logger, by_id(ids, [False]))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    assert "values[0]" in (error.details() or "")
    assert (await refused(logger, by_id(ids, [True], observed_at=KNOWN_MICROS - 1))).code() is (
        grpc.StatusCode.ALREADY_EXISTS
    )
    assert await send(logger, by_id(ids, [False], [3])) == (1, 0, 0)
    assert (await refused(logger, by_id(ids, [False], [2]))).code() is grpc.StatusCode.ALREADY_EXISTS
    assert await send(logger, by_id(ids, [True], [0])) == (0, 0, 1)
    found = await logger.log.GetPrediction(prediction_log_pb2.GetPredictionRequest(prediction_id=ids[0]))
    assert found.outcome.revision == 3


async def test_one_contradiction_refuses_all_rows_of_the_request(logger: Logger) -> None:
    sent = record(new_incarnation(), 1, 3)
    ids = list(sent.prediction_ids)
    await logger.append(sent)
    await send(logger, by_id(ids[2:], [True]))
    error = await refused(logger, by_id([*ids[:2], ids[2], new_id()], [True, True, False, True]))
    assert "values[2]" in (error.details() or "")
    assert await logged(logger) == [(ids[2], True, 0)]
    assert logger.metric("foresight_logger_held_outcomes") == 0


async def test_rows_of_one_request_may_correct_each_other_but_not_contradict(logger: Logger) -> None:
    sent = record(new_incarnation(), 1)
    only = sent.prediction_ids[0]
    await logger.append(sent)
    assert (await refused(logger, by_id([only, only], [True, False]))).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await send(logger, by_id([only, only, only], [False, True, True], [1, 0, 0])) == (2, 0, 1)
    assert await logged(logger) == [(only, True, 0), (only, False, 1)]


async def test_an_outcome_may_be_known_up_to_five_minutes_ahead_of_the_clock(logger: Logger) -> None:
    allowed = KNOWN_MICROS + 300_000_000
    error = await refused(logger, by_id([new_id()], [True], observed_at=allowed + 1))
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    assert await send(logger, by_id([new_id()], [True], observed_at=allowed)) == (0, 1, 0)
    logger.now = NOW + timedelta(seconds=1)
    assert await send(logger, by_id([new_id()], [True], observed_at=allowed + 1)) == (0, 1, 0)


async def test_outcomes_that_race_with_their_predictions_are_all_matched(logger: Logger) -> None:
    life = new_incarnation()
    messages = [record(life, n, flights=[n], event_time=ASKED) for n in range(1, 25)]
    answers = await asyncio.gather(
        *(logger.append(m) for m in messages),
        *(send(logger, by_id(list(m.prediction_ids), [True])) for m in messages[::2]),
        *(send(logger, by_keys([m.first_sequence], [True])) for m in messages[1::2]),
    )
    assert len(answers) == 48
    assert sorted(await logged(logger)) == sorted((m.prediction_ids[0], True, 0) for m in messages)
    assert logger.metric("foresight_logger_held_outcomes") == 0
