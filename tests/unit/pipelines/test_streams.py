"""Runs over messages: each counts once, in order, whatever breaks in between and however often it is delivered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.pipelines import Message, Source, Stream, TooManySkipped, run_once, run_stream, stream
from foresight.values import InvalidValue
from foresight.values.pipelines import PipelineRun, RunState, Trigger
from tests.unit.pipelines.store_in_memory import Killed, StoreInMemory, row

T0 = datetime(2026, 3, 1, tzinfo=UTC)
IDLE_S = 0.05


class Queue:
    """A source with a memory: messages 1 to n; delivers again what was not acknowledged, and `again` more before it.

    `die_at_acknowledgement`: numbers of acknowledgements at which the reader is killed.
    """

    def __init__(self, n: int, again: int = 0, *, ends: bool = True) -> None:
        self.n = n
        self.acknowledged = 0
        self.acknowledgements = 0
        self.die_at_acknowledgement: set[int] = set()
        self.open_now = 0
        self.limits: list[int] = []
        self.delivered: list[int] = []
        self._again = again
        self._ends = ends
        self._next = 1

    @contextlib.asynccontextmanager
    async def open(self, after: int) -> AsyncIterator[Queue]:
        self._next = max(1, self.acknowledged + 1 - self._again)
        assert self._next <= after + 1, "it never let go of what was not committed"
        self.open_now += 1
        try:
            yield self
        finally:
            self.open_now -= 1

    async def receive(self, limit: int) -> list[Message]:
        self.limits.append(limit)
        last = min(self._next + limit - 1, self.n)
        found = [Message(position, f"{position}") for position in range(self._next, last + 1)]
        self._next = last + 1
        if not found and not self._ends:
            await asyncio.Event().wait()
        self.delivered += [m.position for m in found]
        return found

    async def acknowledge(self, position: int) -> None:
        self.acknowledgements += 1
        if self.acknowledgements in self.die_at_acknowledgement:
            raise Killed
        self.acknowledged = max(self.acknowledged, position)


def minutes(messages: list[Message]) -> list[dict[str, Any]]:
    """One row per message, a minute apart."""
    return [row(T0 + timedelta(minutes=int(message.data))) for message in messages]


def counted(source: Any, function: Callable[..., Any] = minutes, **options: Any) -> Stream:
    """A stream over a source."""
    return stream(group="weather", source=source, name="landings", **options)(function)


def landed(store: StoreInMemory) -> list[int]:
    """The numbers of the messages whose rows are stored, in the order of the commits."""
    return [(r["event_time"] - T0) // timedelta(minutes=1) for r in store.rows]


def drained(declared: Stream, store: StoreInMemory) -> PipelineRun:
    """Runs a stream until its source ends or is silent."""
    run = run_once(declared, store, idle_s=IDLE_S)
    assert run is not None
    return run


def test_messages_become_rows_in_batches_and_are_acknowledged_after_their_commit() -> None:
    queue, store = Queue(12), StoreInMemory()
    run = drained(counted(queue, batch_rows=5), store)
    assert landed(store) == list(range(1, 13))
    assert (store.writes, store.positions, queue.acknowledged) == (3, {"landings": "12"}, 12)
    assert (run.state, run.trigger, run.rows_in, run.rows_out) == (RunState.SUCCEEDED, Trigger.MANUAL, 12, 12)
    assert queue.open_now == 0


@given(
    st.integers(1, 30),
    st.integers(1, 7),
    st.integers(0, 10),
    st.sets(st.integers(1, 60)),
    st.sets(st.integers(1, 60)),
    st.sets(st.integers(1, 60)),
)
def test_every_message_lands_once_wherever_the_process_is_killed(
    n: int, batch_rows: int, again: int, before: set[int], after: set[int], acknowledging: set[int]
) -> None:
    queue, store = Queue(n, again), StoreInMemory()
    store.die_before, store.die_after, queue.die_at_acknowledgement = before, after, acknowledging
    for _ in range(200):
        with contextlib.suppress(Killed):
            drained(counted(queue, batch_rows=batch_rows), store)
            break
    assert landed(store) == list(range(1, n + 1))
    assert store.positions == {"landings": str(n)}


def test_what_was_delivered_before_is_passed_over_and_not_counted() -> None:
    queue, store = Queue(6, again=4), StoreInMemory()
    drained(counted(queue), store)
    queue.n = 8
    run = drained(counted(queue), store)
    assert queue.delivered == [1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7, 8]
    assert (landed(store), run.rows_in) == (list(range(1, 9)), 2)


def test_no_more_is_taken_from_the_source_than_fits_the_batch() -> None:
    queue = Queue(20)
    writing: list[int] = []

    def slow(messages: list[Message]) -> list[dict[str, Any]]:
        writing.append(len(queue.delivered))
        return minutes(messages)

    drained(counted(queue, slow, batch_rows=6), StoreInMemory())
    assert writing == [6, 12, 18, 20], "nothing is read ahead while a batch is being written"
    assert max(queue.limits) == 6


def test_a_batch_is_not_kept_waiting_for_more_than_its_time() -> None:
    queue, store = Queue(3, ends=False), StoreInMemory()
    run = drained(counted(queue, batch_rows=500, batch_s=0.01), store)
    assert (landed(store), run.rows_in) == ([1, 2, 3], 3)


async def test_a_stream_that_is_stopped_ends_well_and_drops_what_it_gathers() -> None:
    queue, store, stop = Queue(7, ends=False), StoreInMemory(), asyncio.Event()
    running = asyncio.create_task(run_stream(counted(queue, batch_rows=5, batch_s=600), store, stop=stop))
    async with asyncio.timeout(10):
        while queue.acknowledged < 5 or len(queue.delivered) < 7:
            await asyncio.sleep(0)
        stop.set()
        run = await running
    assert (run.state, landed(store), queue.open_now) == (RunState.SUCCEEDED, [1, 2, 3, 4, 5], 0)
    drained(counted(queue), store)
    assert landed(store) == [1, 2, 3, 4, 5, 6, 7]


async def test_a_stream_that_is_cancelled_says_so() -> None:
    queue, store = Queue(5, ends=False), StoreInMemory()
    running = asyncio.create_task(run_stream(counted(queue, batch_rows=5), store))
    async with asyncio.timeout(10):
        while queue.acknowledged < 5:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert (store.states, queue.open_now) == ([RunState.CANCELLED], 0)


def test_a_source_that_fails_fails_the_run_and_what_was_committed_stays() -> None:
    async def failing(after: int) -> AsyncIterator[Message]:
        for position in range(after + 1, 4):
            yield Message(position, str(position))
        raise OSError("the cable is cut")

    store = StoreInMemory()
    with pytest.raises(OSError, match="cable"):
        drained(counted(failing, batch_rows=2), store)
    assert (landed(store), store.states) == ([1, 2], [RunState.FAILED])


# What a source may be


class Countdown:
    """An async iterator by hand, which items it gives once."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __aiter__(self) -> Countdown:
        return self

    async def __anext__(self) -> str:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return str(10 - self.left)


async def generated() -> AsyncIterator[str]:
    """An async generator, from the beginning each time."""
    for number in range(1, 6):
        yield str(number)


async def resumed(after: int) -> AsyncIterator[Message]:
    """An async generator that starts where it is told to."""
    for number in range(after + 1, 6):
        yield Message(number, str(number), {"airport": "JFK"}, "landings")


def test_any_async_iterator_is_a_source() -> None:
    for source, expected in (
        (Countdown(3), [8, 9, 10]),
        (generated, [1, 2, 3, 4, 5]),
        (lambda: generated(), [1, 2, 3, 4, 5]),
        (generated(), [1, 2, 3, 4, 5]),
        (resumed, [1, 2, 3, 4, 5]),
        (Queue(2), [1, 2]),
    ):
        store = StoreInMemory()
        drained(counted(source, batch_rows=2), store)
        assert landed(store) == expected


def test_an_iterator_that_starts_from_its_beginning_goes_on_after_the_position() -> None:
    store = StoreInMemory()
    store.die_before = {2}
    with pytest.raises(Killed):
        drained(counted(generated, batch_rows=2), store)
    drained(counted(generated, batch_rows=2), store)
    assert landed(store) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("thing", [None, 3, [Message(1, "")], iter(()), "nats://localhost"])
def test_what_gives_no_messages_is_no_source(thing: Any) -> None:
    with pytest.raises(InvalidValue, match="source"):
        counted(thing)


def test_a_notebook_with_a_loop_of_its_own_can_run_a_stream() -> None:
    async def notebook() -> None:
        drained(counted(Queue(3)), store)

    store = StoreInMemory()
    asyncio.run(notebook())
    assert landed(store) == [1, 2, 3]


# Functions that fail


def poisoned(messages: list[Message]) -> list[dict[str, Any]]:
    """Fails on every seventh message."""
    if any(message.position % 7 == 0 for message in messages):
        raise ValueError("cannot be parsed")
    return minutes(messages)


def test_a_message_on_which_the_function_fails_fails_the_run_and_stays_where_it_is() -> None:
    queue, store = Queue(10), StoreInMemory()
    for _ in range(2):
        with pytest.raises(ValueError, match="parsed") as failed:
            drained(counted(queue, poisoned, batch_rows=4), store)
        assert "5 to 8" in failed.value.__notes__[0]
    assert (landed(store), store.positions) == ([1, 2, 3, 4], {"landings": "4"})
    assert store.states == [RunState.FAILED] * 2


def test_a_message_on_which_the_function_fails_may_be_skipped_and_is_counted() -> None:
    queue, store = Queue(20), StoreInMemory()
    run = drained(counted(queue, poisoned, batch_rows=16, on_error="skip"), store)
    assert landed(store) == [n for n in range(1, 21) if n % 7]
    assert (run.rows_in, run.rows_out, run.skipped, run.state) == (20, 18, 2, RunState.SUCCEEDED)
    assert run.error == "message 14 was skipped: ValueError: cannot be parsed"


def test_a_batch_of_nothing_but_skipped_messages_moves_the_position() -> None:
    def never(messages: list[Message]) -> None:
        raise KeyError("time")

    store = StoreInMemory()
    run = drained(counted(Queue(3), never, on_error="skip"), store)
    assert (store.rows, store.positions, run.skipped) == ([], {"landings": "3"}, 3)


def test_no_more_messages_are_skipped_than_allowed() -> None:
    queue, store = Queue(40), StoreInMemory()
    with pytest.raises(TooManySkipped, match="more than 2"):
        drained(counted(queue, poisoned, batch_rows=10, on_error="skip", skip_max=2), store)
    assert landed(store) == [n for n in range(1, 21) if n % 7], "the third one is in the third batch"
    [run] = store.runs.values()
    assert (run.state, run.skipped) == (RunState.FAILED, 2)


def test_rows_that_are_no_table_count_as_a_failure_of_the_function() -> None:
    store = StoreInMemory()
    run = drained(counted(Queue(2), lambda messages: "rows", on_error="skip"), store)
    assert run.skipped == 2


def test_a_function_of_messages_may_return_tables_of_any_kind() -> None:
    def frame(messages: list[Message]) -> pd.DataFrame:
        return pd.DataFrame(minutes(messages))

    def parts(messages: list[Message]) -> Iterator[Any]:
        for message in messages:
            yield minutes([message])

    def nothing(messages: list[Message]) -> None:
        return None

    for function, expected in ((frame, [1, 2, 3]), (parts, [1, 2, 3]), (nothing, [])):
        store = StoreInMemory()
        run = drained(counted(Queue(3), function), store)
        assert (landed(store), run.rows_in, store.positions) == (expected, 3, {"landings": "3"})


@pytest.mark.parametrize(
    "options",
    [
        {"batch_rows": 0},
        {"batch_rows": 100_001},
        {"batch_s": -1},
        {"batch_s": 601},
        {"batch_s": float("nan")},
        {"on_error": "ignore"},
        {"skip_max": -1},
    ],
)
def test_a_wrong_declaration_of_a_stream_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        counted(Queue(1), **options)


def test_a_stream_does_not_go_on_from_a_pipeline_s_windows() -> None:
    store = StoreInMemory()
    store.positions["landings"] = "2026-03-01T00:00:00Z"
    with pytest.raises(InvalidValue, match="windows"):
        drained(counted(Queue(1)), store)


def test_a_declared_stream_is_still_a_function_and_its_queue_is_a_source() -> None:
    assert counted(Queue(1))([Message(1, "1")]) == [row(T0 + timedelta(minutes=1))]
    assert isinstance(Queue(1), Source)
