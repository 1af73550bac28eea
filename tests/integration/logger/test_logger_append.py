"""Appending to the prediction log and reading it."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from foresight.logger.v1 import prediction_log_pb2
from foresight.wire import decode_column
from services.runtime.ids import new_id
from tests.integration.logger.rig import Logger, Record, lost, new_incarnation, record


async def test_appended_records_are_read_back_as_they_were_sent(logger: Logger) -> None:
    life = new_incarnation()
    sent = [record(life, 1, 3), record(life, 4), record(life, 5, 2)]
    answer = await logger.append(*sent)
    assert (answer.appended, answer.duplicates, answer.commit) == (6, 0, 3)
    page = await logger.read()
    assert [entry.record for entry in page.entries] == sent
    assert [entry.commit for entry in page.entries] == [1, 2, 3]
    assert (page.cursor, page.head) == (3, 3)
    assert await logger.ledger() == {life: (6, 6, 0, 0)}


async def test_a_record_that_comes_again_is_counted_and_not_stored_again(logger: Logger) -> None:
    life = new_incarnation()
    sent = record(life, 1, 3)
    await logger.append(sent)
    answer = await logger.append(sent)
    assert (answer.appended, answer.duplicates, answer.commit) == (0, 3, 1)
    assert [entry.record for entry in await logger.read_all()] == [sent]
    assert await logger.ledger() == {life: (3, 3, 0, 3)}
    assert logger.metric("foresight_logger_predictions_total") == 3
    assert logger.metric("foresight_logger_duplicates_total") == 3


async def test_a_record_given_twice_in_one_request_is_stored_once(logger: Logger) -> None:
    life = new_incarnation()
    sent = record(life, 1, 2)
    answer = await logger.append(sent, sent)
    assert (answer.appended, answer.duplicates) == (2, 2)
    assert [entry.record for entry in await logger.read_all()] == [sent]


async def test_of_a_partly_known_record_readers_get_each_prediction_once_under_its_sequence_number(
    logger: Logger,
) -> None:
    life = new_incarnation()
    ids = [new_id() for _ in range(6)]
    await logger.append(record(life, 3, 1, ids=[ids[2]]))
    answer = await logger.append(record(life, 1, 6, ids=ids))
    assert (answer.appended, answer.duplicates) == (5, 1)
    records = [entry.record for entry in await logger.read_all()]
    numbers = {i: r.first_sequence + row for r in records for row, i in enumerate(r.prediction_ids)}
    assert numbers == {prediction_id: n for n, prediction_id in enumerate(ids, 1)}
    assert sum(len(r.prediction_ids) for r in records) == 6
    tail = next(r for r in records if r.first_sequence == 4)
    assert decode_column(tail.entity_keys[0]).to_list() == [4, 5, 6]
    assert decode_column(tail.features[0].column).to_list() == [None, 1.0, None]
    assert tail.features[0].statuses == bytes([2, 1, 2])
    assert list(tail.sources[0].commits) == [4, 5, 6]
    found = await logger.log.GetPrediction(prediction_log_pb2.GetPredictionRequest(prediction_id=ids[5]))
    assert (found.record, found.row) == (tail, 2)
    assert await logger.ledger() == {life: (6, 6, 0, 1)}


async def test_a_prediction_id_that_comes_with_other_content_keeps_its_first(logger: Logger) -> None:
    one, two = new_incarnation(), new_incarnation()
    first = record(one, 1)
    await logger.append(first)
    answer = await logger.append(record(two, 1, ids=list(first.prediction_ids)))
    assert (answer.appended, answer.duplicates) == (0, 1)
    assert [entry.record for entry in await logger.read_all()] == [first]
    assert await logger.ledger() == {one: (1, 1, 0, 0), two: (0, 0, 0, 1)}


async def test_records_out_of_order_leave_no_gap_once_all_have_come(logger: Logger) -> None:
    life = new_incarnation()
    await logger.append(record(life, 7, 2))
    assert await logger.ledger() == {life: (8, 2, 0, 0)}
    await logger.append(record(life, 1, 3), record(life, 4, 3))
    assert await logger.ledger() == {life: (8, 8, 0, 0)}


async def test_a_quarantined_number_that_arrives_after_all_counts_as_logged_only(logger: Logger) -> None:
    life = new_incarnation()
    await logger.append(record(life, 1, 2), quarantined=[lost(life, 2, 5), lost(life, 4, 8), lost(life, 4, 8)])
    assert await logger.ledger() == {life: (8, 2, 6, 0)}
    await logger.append(quarantined=[lost(life, 2, 5)])
    await logger.append(record(life, 5, 2))
    assert await logger.ledger() == {life: (8, 4, 4, 0)}
    assert logger.metric("foresight_logger_quarantined_total") == 6


async def test_the_ledger_lists_incarnations_by_replica_and_arrival(logger: Logger) -> None:
    lives = [new_incarnation() for _ in range(3)]
    await logger.append(record(lives[0], 1, replica="predictor-1"))
    await logger.append(record(lives[1], 1, replica="predictor-0"))
    await logger.append(quarantined=[lost(lives[2], 1, 1)])
    answer = await logger.log.GetLedger(prediction_log_pb2.GetLedgerRequest())
    assert [row.incarnation for row in answer.incarnations] == [lives[1], lives[2], lives[0]]


async def test_an_empty_request_answers_the_head(logger: Logger) -> None:
    await logger.append(record(new_incarnation(), 1))
    answer = await logger.append()
    assert (answer.appended, answer.duplicates, answer.commit) == (0, 0, 1)


async def test_pages_hold_at_most_what_was_asked_and_go_on_where_they_ended(logger: Logger) -> None:
    life = new_incarnation()
    sent = [record(life, n) for n in range(1, 8)]
    await logger.append(*sent)
    page = await logger.read(page_size=3)
    assert [entry.record for entry in page.entries] == sent[:3]
    assert (page.cursor, page.head) == (3, 7)
    page = await logger.read(cursor=6, page_size=3)
    assert [entry.record for entry in page.entries] == sent[6:]
    page = await logger.read(cursor=7)
    assert (len(page.entries), page.cursor) == (0, 7)


async def test_pages_stay_under_four_mebibytes_and_a_record_of_nearly_that_size_is_a_page_of_its_own(
    logger: Logger,
) -> None:
    life = new_incarnation()
    sent = [record(life, 1 + n, 1) for n in range(3)]
    for message, size in zip(sent, (4_180_000, 100_000, 100_000), strict=True):
        _pad(message, size)
        await logger.append(message)
    page = await logger.read()
    assert [entry.record.first_sequence for entry in page.entries] == [1]
    assert page.ByteSize() < 4 << 20
    assert [entry.record for entry in await logger.read_all()] == sent


def _pad(message: Record, size: int) -> None:
    """Fills a record up to about `size` bytes with features of long texts."""
    for n in range(size // 4_040):
        feature = message.features.add()
        feature.column.name = f"padding_{n}"
        feature.column.string_values.values.append("x" * 4_000)


async def test_a_cursor_past_the_end_is_out_of_range(logger: Logger) -> None:
    for cursor in (1, 2**63, 2**64 - 1):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await logger.read(cursor=cursor)
        assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_a_prediction_that_has_not_arrived_is_not_found(logger: Logger) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await logger.log.GetPrediction(prediction_log_pb2.GetPredictionRequest(prediction_id=new_id()))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_reader_by_cursor_sees_every_entry_once_while_sixteen_writers_append(logger: Logger) -> None:
    lives = [new_incarnation() for _ in range(16)]
    sent = {life: [record(life, n) for n in range(1, 7)] for life in lives}
    seen: list[str] = []
    finished = asyncio.Event()

    async def write(life: str) -> None:
        for message in sent[life]:
            await logger.append(message)

    async def follow() -> None:
        cursor = 0
        while True:
            last_turn = finished.is_set()
            page = await logger.read(cursor, 5)
            assert page.cursor >= cursor
            assert [entry.commit for entry in page.entries] == list(range(cursor + 1, page.cursor + 1))
            cursor = page.cursor
            seen.extend(i for entry in page.entries for i in entry.record.prediction_ids)
            if last_turn and cursor == page.head:
                return

    async with asyncio.TaskGroup() as group:
        group.create_task(follow())
        async with asyncio.TaskGroup() as writers:
            for life in lives:
                writers.create_task(write(life))
        finished.set()
    assert sorted(seen) == sorted(i for messages in sent.values() for m in messages for i in m.prediction_ids)
    assert await logger.ledger() == dict.fromkeys(lives, (6, 6, 0, 0))


async def test_writers_that_send_the_same_records_at_once_store_each_prediction_once(logger: Logger) -> None:
    life = new_incarnation()
    sent = [record(life, 1 + 3 * n, 3) for n in range(5)]
    answers = await asyncio.gather(*(logger.append(*sent) for _ in range(8)))
    assert sum(answer.appended for answer in answers) == 15
    assert sum(answer.duplicates for answer in answers) == 7 * 15
    assert [entry.record for entry in await logger.read_all()] == sent
    assert await logger.ledger() == {life: (15, 15, 0, 7 * 15)}


async def test_appends_that_are_given_up_at_any_moment_leave_the_log_whole(logger: Logger) -> None:
    life = new_incarnation()
    sent = [record(life, n) for n in range(1, 41)]
    for n, message in enumerate(sent):
        call = asyncio.create_task(logger.append(message))
        await asyncio.wait([call], timeout=n / 10_000)
        call.cancel()
        await asyncio.wait([call])
    answer = await logger.append(*sent)
    assert answer.appended + answer.duplicates == 40
    assert sorted(entry.record.first_sequence for entry in await logger.read_all()) == list(range(1, 41))
    (account,) = (await logger.ledger()).values()
    assert account[:3] == (40, 40, 0)
