"""Health, reflection and the end of a server."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.runtime.channel import open_channel
from tests.wire.runtime.stage import SERVICE, Stage, failure_of, running_stage, text, value_of

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ROOT = Path(__file__).parents[3]


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[Stage]:
    """A server."""
    async with running_stage() as running:
        yield running


async def becomes(channel: grpc.aio.Channel, wanted: int, service: str = "") -> None:
    """Waits until health says so."""
    stub = health_pb2_grpc.HealthStub(channel)
    async with asyncio.timeout(10):
        call = stub.Watch(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True)
        async for answer in call:
            if answer.status == wanted:
                break
        call.cancel()


def fail() -> bool:
    raise RuntimeError("the check itself is broken")


async def test_health_follows_readiness_for_the_server_and_each_service(stage: Stage) -> None:
    for service in ("", SERVICE):
        await becomes(stage.channel, SERVING, service)
    stage.ready = lambda: False
    for service in ("", SERVICE):
        await becomes(stage.channel, NOT_SERVING, service)
    stage.ready = lambda: True
    await becomes(stage.channel, SERVING)


async def test_a_readiness_check_that_fails_means_not_ready_and_is_asked_again(stage: Stage) -> None:
    await becomes(stage.channel, SERVING)
    stage.ready = fail
    await becomes(stage.channel, NOT_SERVING)
    stage.ready = lambda: True
    await becomes(stage.channel, SERVING)


async def test_health_of_an_unknown_service_is_not_found(stage: Stage) -> None:
    stub = health_pb2_grpc.HealthStub(stage.channel)
    error = await failure_of(stub.Check(health_pb2.HealthCheckRequest(service="absent")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(stage: Stage) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(stage.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    names: set[str] = set()
    async for answer in stub.ServerReflectionInfo(iter([request])):
        names.update(service.name for service in answer.list_services_response.service)
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


@contextlib.asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The stage as a program, begun."""
    command = (sys.executable, "-m", "tests.wire.runtime.stage", *arguments)
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begun\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def address() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="fs-rt-"))
    yield f"unix:{folder}/s"
    shutil.rmtree(folder, ignore_errors=True)


async def ended(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(20):
        return await process.wait()


async def test_sigterm_lets_a_call_in_flight_finish_and_then_ends_the_process(address: str) -> None:
    async with program(address, "0.2") as process:
        async with open_channel(address) as channel:
            spread: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{SERVICE}/Spread")
            call = spread(text("begun,wait 1"), wait_for_ready=True)
            answers = aiter(call)
            assert value_of(await anext(answers)) == "begun"
            await becomes(channel, SERVING)
            process.send_signal(signal.SIGTERM)
            await becomes(channel, NOT_SERVING)
            assert value_of(await anext(answers)) == "wait 1"
            assert await call.code() is grpc.StatusCode.OK
        assert await ended(process) == 0


async def test_new_calls_are_answered_after_sigterm_until_the_pause_is_over(address: str) -> None:
    async with program(address, "60") as process, open_channel(address) as channel:
        await becomes(channel, SERVING)
        process.send_signal(signal.SIGTERM)
        await becomes(channel, NOT_SERVING)
        unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Unary")
        assert value_of(await unary(text("still here"))) == "still here"
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0


async def test_sigint_leaves_out_the_pause_but_not_the_calls_in_flight(address: str) -> None:
    async with program(address, "60") as process:
        async with open_channel(address) as channel:
            spread: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{SERVICE}/Spread")
            call = spread(text("begun,wait 1"), wait_for_ready=True)
            answers = aiter(call)
            assert value_of(await anext(answers)) == "begun"
            await becomes(channel, SERVING)
            process.send_signal(signal.SIGINT)
            assert value_of(await anext(answers)) == "wait 1"
        assert await ended(process) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_before_the_server_runs_puts_away_what_was_opened(number: signal.Signals) -> None:
    async with program("wait", "60") as process:
        process.send_signal(number)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"put away\n"
        assert await ended(process) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_program_loads_ends_it_in_order(number: signal.Signals) -> None:
    loading = (
        "import os, signal\n"
        "from services.runtime import termination\n"
        "termination.exit_when_told()\n"
        f"try: os.kill(os.getpid(), {int(number)}); signal.pause()\n"
        "except BaseException: raise SystemExit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", loading], cwd=ROOT, timeout=60, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
