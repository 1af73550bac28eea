"""Channels to several processes of one service."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.channel import open_channel
from tests.wire.runtime.stage import SERVICE, failure_of, text, value_of

ROOT = Path(__file__).parents[3]
UNARY = f"/{SERVICE}/Unary"
REPEATABLE = ((SERVICE, "Unary"),)

Unary = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


@pytest.fixture
def addresses() -> Iterator[list[str]]:
    folder = Path(tempfile.mkdtemp(prefix="fs-rt-"))
    yield [f"unix:{folder}/{name}" for name in "ab"]
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def serving(address: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that serves at an address."""
    command = (sys.executable, "-m", "tests.wire.runtime.stage", address, "0")
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with open_channel(address) as channel, asyncio.timeout(30):
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def connected(channel: grpc.aio.Channel) -> Unary:
    unary: Unary = channel.unary_unary(UNARY)
    await unary(text("first"), wait_for_ready=True)
    return unary


async def test_a_call_is_answered_by_the_others_whatever_happens_to_one(addresses: list[str]) -> None:
    async with serving(addresses[1]), open_channel(addresses, REPEATABLE) as channel:
        for number in (signal.SIGTERM, signal.SIGKILL):
            async with serving(addresses[0]) as process:
                unary = await connected(channel)
                calls = [unary(text("wait 0.01"), timeout=20) for _ in range(200)]
                process.send_signal(number)
                assert {value_of(await call) for call in calls} == {"wait 0.01"}
                await process.wait()
            assert value_of(await unary(text("alone"), timeout=20)) == "alone"


async def test_a_process_that_hangs_is_left_out_and_its_calls_are_made_elsewhere(addresses: list[str]) -> None:
    async with (
        serving(addresses[0]) as process,
        serving(addresses[1]),
        open_channel(addresses, REPEATABLE) as channel,
    ):
        unary = await connected(channel)
        process.send_signal(signal.SIGSTOP)
        answers = await asyncio.gather(*(unary(text("found"), timeout=60) for _ in range(20)))
        assert {value_of(answer) for answer in answers} == {"found"}


async def test_all_processes_get_calls(addresses: list[str]) -> None:
    async with serving(addresses[0]) as first, serving(addresses[1]) as second, open_channel(addresses) as channel:
        unary = await connected(channel)
        async with asyncio.timeout(60):
            # The second one may be connected a moment later.
            while {value_of(await unary(text("who"))) for _ in range(2)} != {str(first.pid), str(second.pid)}:
                pass


async def test_a_call_that_is_not_repeatable_is_made_once(addresses: list[str]) -> None:
    async with serving(addresses[0]) as first, serving(addresses[1]) as second, open_channel(addresses) as channel:
        unary = await connected(channel)
        calls = [asyncio.ensure_future(failure_of(unary(text("wait 60"), timeout=50))) for _ in range(2)]
        await unary(text("sent after them"))
        first.kill()
        second.kill()
        assert {error.code() for error in await asyncio.gather(*calls)} == {grpc.StatusCode.UNAVAILABLE}
