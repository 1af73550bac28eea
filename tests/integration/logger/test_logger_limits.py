"""What happens at the logger's bounds."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from sqlalchemy import text

from services.logger.log import HELD_MAX
from services.logger.postgres.reading import WRITERS_WAITING_MAX
from services.runtime.ids import new_id
from tests.integration.logger.rig import Logger, by_id, new_incarnation, record


async def test_outcomes_are_refused_when_too_many_wait_for_their_prediction(logger: Logger) -> None:
    sent = record(new_incarnation(), 1)
    async with logger.database.transaction() as connection:
        await connection.execute(text("UPDATE log_state SET held = :held"), {"held": HELD_MAX - 1})
    assert (await logger.outcomes.RecordOutcomes(by_id(list(sent.prediction_ids), [True]))).held == 1
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await logger.outcomes.RecordOutcomes(by_id([new_id()], [True]))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await logger.append(sent)
    assert (await logger.outcomes.RecordOutcomes(by_id([new_id()], [True]))).held == 1


async def test_writers_are_refused_when_too_many_wait_while_readers_are_served(logger: Logger) -> None:
    life = new_incarnation()
    async with logger.store.writing():
        calls = [asyncio.create_task(logger.append(record(life, n))) for n in range(1, WRITERS_WAITING_MAX + 6)]
        done, waiting = await asyncio.wait(calls, timeout=10, return_when=asyncio.FIRST_EXCEPTION)
        assert done
        assert (await logger.read()).head == 0
    results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert len(waiting) > 0
    assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(results) - len(refused) == (await logger.read()).head == WRITERS_WAITING_MAX
