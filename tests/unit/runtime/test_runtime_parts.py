"""The small parts: ids, request ids, threads."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Sequence
from datetime import timedelta

import pytest

from services.runtime.boundary import REQUEST_ID_BYTES_MAX, request_id_of
from services.runtime.clock import system_clock
from services.runtime.ids import new_id, new_ids
from services.runtime.threads import in_thread


def test_ids_are_version_seven_and_in_the_order_of_their_milliseconds() -> None:
    ids = [new_id() for _ in range(1_000)] + list(new_ids(1_000))
    assert len(set(ids)) == len(ids)
    for text in ids[975:1_025]:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)
    millis = [uuid.UUID(text).int >> 80 for text in ids]
    assert millis == sorted(millis)
    assert abs(millis[-1] / 1_000 - system_clock().timestamp()) < 5


def test_the_clock_is_in_utc() -> None:
    assert system_clock().utcoffset() == timedelta(0)


class Metadata:
    """Stands for the context of a call with this metadata."""

    def __init__(self, *pairs: tuple[str, str | bytes]) -> None:
        self.pairs: Sequence[tuple[str, str | bytes]] = pairs

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return self.pairs


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        ((), ""),
        ((("x-request-id", "abc"),), "abc"),
        ((("x-request-id", "a" * 100),), "a" * REQUEST_ID_BYTES_MAX),
        ((("x-request-id", "line\nbreak"),), ""),
        # Decomposed, which the log refuses.
        ((("x-request-id", "e\u0301"),), ""),
        ((("x-request-id", b"bytes"),), ""),
        ((("other", "abc"),), ""),
    ],
)
def test_the_request_id_is_the_gateways_when_it_can_be_printed(
    pairs: tuple[tuple[str, str | bytes], ...], wanted: str
) -> None:
    assert request_id_of(Metadata(*pairs)) == wanted  # type: ignore[arg-type]  # only the metadata is read


async def test_a_cancelled_caller_waits_for_its_thread() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(10)
        ended.set()

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_a_thread_answers_and_raises_as_the_function_does() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 7, 0)
