"""What the boundary of every server answers to good calls, bad bytes, errors and bugs, in all four kinds of call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from tests.wire.runtime.stage import SECRET, SERVICE, Stage, failure_of, info_of, running_stage, text, value_of

MALFORMED = b"\xff\xff\xff"
KINDS = [("Unary", False, False), ("Collect", True, False), ("Spread", False, True), ("Converse", True, True)]
kinds = pytest.mark.parametrize(("name", "stream_in", "stream_out"), KINDS)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    """A server for all tests of the module."""
    async with running_stage() as running:
        yield running


async def ask(stage: Stage, name: str, stream_in: bool, stream_out: bool, *requests: bytes) -> list[str]:
    """Calls a method and collects its answers."""
    method = stage.calls(name, stream_in, stream_out)
    call = method(iter(requests)) if stream_in else method(requests[0])
    return [value_of(answer) async for answer in call] if stream_out else [value_of(await call)]


def counted(stage: Stage, name: str, code: str) -> float:
    """Calls of a method that ended with a code."""
    labels = {"service": "testing", "method": f"/{SERVICE}/{name}", "code": code}
    return stage.metrics.registry.get_sample_value("foresight_requests_total", labels) or 0


async def becomes(holds: Callable[[], bool]) -> None:
    """Waits for what the server notes just after it has answered."""
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


@kinds
async def test_a_call_passes_through(stage: Stage, name: str, stream_in: bool, stream_out: bool) -> None:
    before = counted(stage, name, "OK")
    assert await ask(stage, name, stream_in, stream_out, text("hello")) == ["hello"]
    await becomes(lambda: counted(stage, name, "OK") == before + 1)


@kinds
async def test_malformed_bytes_are_invalid_argument(stage: Stage, name: str, stream_in: bool, stream_out: bool) -> None:
    error = await failure_of(ask(stage, name, stream_in, stream_out, MALFORMED))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info_of(error)[0] == "MALFORMED_MESSAGE"


@pytest.mark.parametrize(("name", "stream_out"), [("Collect", False), ("Converse", True)])
async def test_malformed_bytes_in_the_middle_of_a_stream_end_it(stage: Stage, name: str, stream_out: bool) -> None:
    error = await failure_of(ask(stage, name, True, stream_out, text("a"), MALFORMED, text("b")))
    assert info_of(error)[0] == "MALFORMED_MESSAGE"


@kinds
async def test_a_bug_is_internal_and_tells_nothing(stage: Stage, name: str, stream_in: bool, stream_out: bool) -> None:
    error = await failure_of(ask(stage, name, stream_in, stream_out, text("bug")))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert info_of(error)[0] == "INTERNAL"
    assert SECRET not in repr(error)
    assert "RuntimeError" not in repr(error)


@kinds
async def test_an_expected_error_keeps_its_meaning(stage: Stage, name: str, stream_in: bool, stream_out: bool) -> None:
    before = counted(stage, name, "NOT_FOUND")
    error = await failure_of(ask(stage, name, stream_in, stream_out, text("missing")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert info_of(error) == ("NOT_FOUND", {"kind": "model", "name": "zu spät\n\0"}, [])
    await becomes(lambda: counted(stage, name, "NOT_FOUND") == before + 1)


async def test_an_error_in_the_middle_of_a_stream_comes_after_what_was_answered(stage: Stage) -> None:
    answers = []

    async def read() -> None:
        async for answer in stage.calls("Spread", stream_out=True)(text("a,b,away,c")):
            answers.append(value_of(answer))

    error = await failure_of(read())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert answers == ["a", "b"]


async def test_an_error_with_very_many_faults_still_arrives_and_names_the_first_of_them(stage: Stage) -> None:
    error = await failure_of(ask(stage, "Unary", False, False, text("many")))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    reason, _, fields = info_of(error)
    assert reason == "INVALID_FIELD"
    assert fields[:3] == ["f0", "f1", "f2"]


async def test_an_error_with_a_very_long_text_still_arrives(stage: Stage) -> None:
    error = await failure_of(ask(stage, "Unary", False, False, text("long")))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert (error.details() or "").startswith("äää")
    assert info_of(error)[0] == "FAILED_PRECONDITION"


@pytest.mark.parametrize("path", [f"/{SERVICE}/Absent", "/foresight.testing.v1.AbsentService/Unary"])
async def test_an_unknown_method_is_unimplemented_and_is_not_counted(stage: Stage, path: str) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = stage.channel.unary_unary(path)
    error = await failure_of(call(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert info_of(error)[0] == "UNIMPLEMENTED"
    metrics = [sample for family in stage.metrics.registry.collect() for sample in family.samples]
    assert path not in {sample.labels.get("method") for sample in metrics}


async def test_a_message_over_the_limit_is_refused_and_the_server_goes_on(stage: Stage) -> None:
    error = await failure_of(ask(stage, "Unary", False, False, text("x" * (17 << 20))))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await ask(stage, "Unary", False, False, text("hello")) == ["hello"]


async def test_a_caller_whose_time_is_up_is_counted_and_disturbs_nobody(stage: Stage) -> None:
    late = stage.calls("Unary")(text("wait 5"), timeout=0.05)
    assert (await failure_of(late)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await ask(stage, "Unary", False, False, text("hello")) == ["hello"]
    gone = stage.calls("Unary")(text("wait 5"))
    await asyncio.sleep(0.05)
    gone.cancel()
    gauge = "foresight_requests_in_flight"
    await becomes(lambda: stage.metrics.registry.get_sample_value(gauge, {"service": "testing"}) == 0)


async def test_a_caller_may_end_a_stream_early(stage: Stage) -> None:
    call: Any = stage.calls("Spread", stream_out=True)(text("a,wait 5,b"))
    async for answer in call:
        assert value_of(answer) == "a"
        break
    call.cancel()
    assert await ask(stage, "Unary", False, False, text("hello")) == ["hello"]


async def test_random_bytes_never_harm_the_server(stage: Stage) -> None:
    def seeded() -> Iterator[bytes]:
        for seed in range(64):
            yield bytes((seed * 167 + 13 * i * i) % 256 for i in range(seed))

    async def tolerant(data: bytes, call: Callable[[bytes], Awaitable[bytes]]) -> grpc.StatusCode:
        try:
            await call(data)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    codes = {await tolerant(data, stage.calls("Unary")) for data in seeded()}
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
