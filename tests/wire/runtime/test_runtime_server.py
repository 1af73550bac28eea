"""Health, reflection and the end of a server."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
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
        call = stub.Watch(health_pb2.HealthCheckRequest(service=service))
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


async def test_sigterm_lets_a_call_in_flight_finish_and_then_ends_the_process() -> None:
    folder = Path(tempfile.mkdtemp(prefix="fs-rt-"))
    address = f"unix:{folder}/s"
    command = (sys.executable, "-m", "tests.wire.runtime.stage", address)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=asyncio.subprocess.DEVNULL)
    try:
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
        async with asyncio.timeout(10):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        shutil.rmtree(folder, ignore_errors=True)
