"""A server with one method of each kind, for texts, on a Unix socket; also run as a program by the test of SIGTERM.

What a method does is said by the text that it gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2, status_pb2

from foresight.values import InvalidValue, Violation
from services.runtime import errors, termination
from services.runtime.channel import open_channel
from services.runtime.metrics import Metrics
from services.runtime.server import Ready, Server
from services.runtime.settings import ServiceSettings
from services.runtime.status import DETAILS_KEY

SERVICE = "foresight.testing.v1.EchoService"
SECRET = "postgresql://role:secret@host/database"

Context = grpc.aio.ServicerContext[Any, Any]

FAILURES: dict[str, Callable[[], Exception]] = {
    "bug": lambda: RuntimeError(SECRET),
    "missing": lambda: errors.NotFound("model", "zu spät\n\0"),
    "away": lambda: errors.Unavailable("the database does not answer"),
    "many": lambda: InvalidValue("f0", "x" * 900, *(Violation(f"f{i}", "ü" * 900) for i in range(1, 400))),
    "long": lambda: errors.FailedPrecondition("ä" * 5_000, detail="ö" * 20_000),
}


async def respond(request: StringValue) -> StringValue:
    """Fails as the text says, or answers it; `who` is answered with the id of the process."""
    if request.value == "who":
        return StringValue(value=str(os.getpid()))
    if request.value in FAILURES:
        raise FAILURES[request.value]()
    if request.value.startswith("wait "):
        await asyncio.sleep(float(request.value.removeprefix("wait ")))
    return StringValue(value=request.value)


async def unary(request: StringValue, context: Context) -> StringValue:
    return await respond(request)


async def collect(requests: AsyncIterator[StringValue], context: Context) -> StringValue:
    return StringValue(value=",".join([(await respond(request)).value async for request in requests]))


async def spread(request: StringValue, context: Context) -> AsyncIterator[StringValue]:
    for part in request.value.split(","):
        yield await respond(StringValue(value=part))


async def converse(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
    async for request in requests:
        yield await respond(request)


def add_echo(server: Server) -> None:
    """Adds the four methods."""
    kinds: dict[str, tuple[Any, Any]] = {
        "Unary": (grpc.unary_unary_rpc_method_handler, unary),
        "Collect": (grpc.stream_unary_rpc_method_handler, collect),
        "Spread": (grpc.unary_stream_rpc_method_handler, spread),
        "Converse": (grpc.stream_stream_rpc_method_handler, converse),
    }
    handlers = {
        name: make(behaviour, StringValue.FromString, StringValue.SerializeToString)
        for name, (make, behaviour) in kinds.items()
    }
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


@dataclass
class Stage:
    """A running server and a channel to it; `ready` is what the readiness check says."""

    channel: grpc.aio.Channel
    metrics: Metrics
    server: Server
    ready: Callable[[], bool] = lambda: True

    def calls(self, name: str, stream_in: bool = False, stream_out: bool = False) -> Any:
        """A callable that takes and answers bytes."""
        path = f"/{SERVICE}/{name}"
        if stream_in:
            return self.channel.stream_stream(path) if stream_out else self.channel.stream_unary(path)
        return self.channel.unary_stream(path) if stream_out else self.channel.unary_unary(path)


@contextlib.asynccontextmanager
async def running_stage() -> AsyncIterator[Stage]:
    """Serves the four methods in this process; ends as a signal would end it."""
    folder = Path(tempfile.mkdtemp(prefix="fs-rt-"))
    address = f"unix:{folder}/s"
    metrics = Metrics("testing")
    server = Server(ServiceSettings(listen=address, drain_pause_s=0, stop_grace_s=1), metrics)
    add_echo(server)
    mask = os.umask(0o077)
    try:
        async with open_channel(address) as channel:
            stage = Stage(channel, metrics, server)

            async def ready() -> bool:
                return stage.ready()

            run = asyncio.create_task(server.run([SERVICE], ready))
            try:
                await channel.channel_ready()
                yield stage
            finally:
                server.stopping.set()
                await run
    finally:
        os.umask(mask)
        shutil.rmtree(folder, ignore_errors=True)


def text(value: str) -> bytes:
    """The bytes of a request."""
    return StringValue(value=value).SerializeToString()


def value_of(data: bytes) -> str:
    """The text of an answer."""
    return StringValue.FromString(data).value


async def failure_of(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call succeeded")


def info_of(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str], list[str]]:
    """Reason, metadata and violated fields of an error's details."""
    details = dict(error.trailing_metadata() or ())[DETAILS_KEY]
    assert isinstance(details, bytes)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    status = status_pb2.Status.FromString(details)
    assert status.code == error.code().value[0]
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(bad)
    assert info.domain == "foresight"
    return info.reason, dict(info.metadata), [violation.field for violation in bad.field_violations]


async def serve(address: str, drain_pause_s: float) -> None:
    """Says that it begins, and runs the server until it is told to stop; never gets so far for the address `wait`."""
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    if address == "wait":
        try:
            await asyncio.Event().wait()
        finally:
            sys.stdout.write("put away\n")

    async def ready() -> bool:
        return True

    settings = ServiceSettings(listen=address, drain_pause_s=drain_pause_s, stop_grace_s=10)
    server = Server(settings, Metrics("testing"))
    add_echo(server)
    check: Ready = ready
    await server.run([SERVICE], check)


if __name__ == "__main__":
    termination.run(serve(sys.argv[1], float(sys.argv[2])))
