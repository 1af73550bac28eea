"""JetStream: each message lands once, in order, whoever is killed in the middle."""

from __future__ import annotations

import asyncio
import random

import pytest
from nats.js.api import RetentionPolicy

from foresight.client import Aborted
from foresight.pipelines import SourceError, run_stream
from foresight.values.pipelines import PipelineRun, RunState
from tests.nats_server.conftest import Connected, Landings, NatsServer
from tests.nats_server.landings import declared

IDLE_S = 0.5


async def drained(landings: Landings, batch_rows: int = 20, **options: object) -> PipelineRun:
    """Runs the pipeline here until its stream is silent."""
    pipeline = declared(landings.server.url, landings.name, batch_rows, **options)
    while True:
        try:
            return await run_stream(pipeline, landings.client, idle_s=IDLE_S)
        except Aborted:
            # What a process sent before it was killed was committed after the position had been read.
            continue


async def test_messages_land_in_order_and_are_acknowledged_after_their_commit(landings: Landings) -> None:
    await landings.made()
    await landings.publish(range(1, 51))
    run = await drained(landings)
    assert landings.landed() == list(range(1, 51))
    assert (run.rows_in, run.rows_out, run.state) == (50, 50, RunState.SUCCEEDED)
    assert landings.client.pipeline(landings.name).position == "50"
    async with Connected(landings.server) as context:
        consumer = await context.consumer_info(landings.name, landings.name)
    assert consumer.ack_floor is not None
    assert (consumer.ack_floor.stream_seq, consumer.num_ack_pending, consumer.num_pending) == (50, 0, 0)
    await landings.publish(range(51, 54))
    assert (await drained(landings)).rows_in == 3
    assert landings.landed() == list(range(1, 54))


async def test_a_consumer_without_a_name_goes_on_at_the_position_too(landings: Landings) -> None:
    await landings.made()
    for first in (1, 31):
        await landings.publish(range(first, first + 30))
        assert (await drained(landings, durable="")).rows_in == 30
    assert landings.landed() == list(range(1, 61))


async def test_only_messages_of_the_subject_land(landings: Landings) -> None:
    await landings.made()
    async with Connected(landings.server) as context:
        for number in range(5):
            await context.publish(f"{landings.name}.departures", b"not for us")
            await landings.publish([number])
    await drained(landings)
    assert landings.landed() == list(range(5))
    assert landings.client.pipeline(landings.name).position == "10"


async def test_a_work_queue_lets_go_of_what_is_committed_and_of_nothing_else(landings: Landings) -> None:
    await landings.made(RetentionPolicy.WORK_QUEUE)
    await landings.publish(range(1, 31))
    first = landings.start(batch_rows=7)
    await landings.until_position(7)
    first.kill()
    await landings.publish(range(31, 41))
    await drained(landings)
    assert landings.landed() == list(range(1, 41))
    async with Connected(landings.server) as context:
        assert (await context.stream_info(landings.name)).state.messages == 0


async def test_what_was_delivered_and_lost_comes_before_what_is_new(landings: Landings) -> None:
    """A consumer that outlives a killed process would deliver the new ones first, and the position pass the lost."""
    await landings.made()
    await landings.publish(range(1, 41))
    # It takes all of them into memory and never fills its batch.
    pipeline = declared(landings.server.url, landings.name, 1_000)
    async with pipeline.source.open(0) as subscription:
        taken = 0
        while taken < 40:
            taken += len(await subscription.receive(1_000))
    await landings.publish(range(41, 61))
    await drained(landings)
    assert landings.landed() == list(range(1, 61))


@pytest.mark.timeout(150)
async def test_every_message_lands_once_while_the_pipeline_is_killed_again_and_again(landings: Landings) -> None:
    await landings.made()
    chosen = random.Random(20260301)
    total, done = 1_500, 0
    publishing = asyncio.create_task(landings.publish(range(1, total + 1)))
    for _ in range(6):
        process = landings.start(batch_rows=chosen.choice([3, 10, 40]))
        done = int(landings.client.pipeline(landings.name).position or 0)
        # At some point of some batch: a batch takes some milliseconds.
        await landings.until_position(min(done + chosen.randint(1, 120), total))
        await asyncio.sleep(chosen.random() * 0.02)
        process.kill()
    await publishing
    landings.start(batch_rows=100)
    await landings.until_position(total)
    assert landings.landed() == list(range(1, total + 1))
    states = [run.state for run in landings.client.pipeline_runs(landings.name)]
    assert states[0] is RunState.RUNNING
    assert set(states[1:]) == {RunState.LOST}


@pytest.mark.timeout(150)
async def test_every_message_lands_once_while_nats_is_killed_again_and_again(landings: Landings) -> None:
    await landings.made()
    total = 600
    landings.start(batch_rows=25)
    publishing = asyncio.create_task(landings.publish(range(1, total + 1)))
    for third in (1, 2):
        await landings.until_position(third * total // 4)
        landings.server.kill()
        await asyncio.sleep(0.2)
        landings.server.start()
    await publishing
    await landings.until_position(total)
    assert landings.landed() == list(range(1, total + 1))
    failed = [run for run in landings.client.pipeline_runs(landings.name) if run.state is RunState.FAILED]
    assert failed
    assert all(run.error.startswith("SourceError: ") for run in failed)


@pytest.mark.timeout(150)
async def test_two_processes_on_one_stream_write_no_row_twice(landings: Landings) -> None:
    await landings.made()
    landings.start(batch_rows=5)
    landings.start(batch_rows=5)
    await landings.publish(range(1, 301))
    await landings.until_position(300)
    assert landings.landed() == list(range(1, 301))


async def test_a_stream_that_was_made_anew_is_not_mistaken_for_the_old_one(landings: Landings) -> None:
    await landings.made()
    await landings.publish(range(1, 11))
    await drained(landings)
    async with Connected(landings.server) as context:
        await context.delete_stream(landings.name)
    await landings.made()
    await landings.publish(range(11, 14))
    with pytest.raises(SourceError, match="made anew"):
        await drained(landings)
    assert landings.landed() == list(range(1, 11))
    assert landings.client.pipeline_runs(landings.name)[0].state is RunState.FAILED


async def test_what_cannot_be_followed_is_said(landings: Landings, nats_server: NatsServer) -> None:
    with pytest.raises(SourceError, match="stream not found"):
        await drained(landings)
    await landings.made(RetentionPolicy.INTEREST)
    with pytest.raises(SourceError, match="interest"):
        await drained(landings)
    nats_server.kill()
    with pytest.raises(SourceError, match="NATS"):
        await drained(landings)
