"""A named request is answered once, whatever becomes of its callers, its process and its disk."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.values import Column, DataType, FeatureStatus, InvalidValue, MissingPolicy
from services.predictor.answer_codec import AnswerCodec
from services.predictor.answer_journal import AnswerJournal, Entry
from services.predictor.policies import Missing
from services.predictor.repeats import MEMORY, Repeats, content_of
from services.predictor.requests import Answer, Request
from services.predictor.versions import VersionRef
from services.runtime.errors import Unavailable

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class World:
    """A predictor that counts what it is asked, and fails or waits when it is told to."""

    folder: Path
    now: datetime = START
    asked: list[str] = field(default_factory=list)
    failures: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    repeats: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    async def predict(self, request: Request) -> Answer:
        self.asked.append(request.client_request_id)
        number = len(self.asked)
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise Unavailable("the feature store is away")
        values = next(iter(request.columns.values()))
        return Answer(
            prediction_ids=tuple(f"{number}-{row}" for row in range(len(values))),
            outputs=(Column("value", DataType.FLOAT64, np.arange(len(values), dtype=np.float64) + number),),
            model=VersionRef("delay", number),
            event_time=self.now,
            missing=[Missing(0, "wind", FeatureStatus.NOT_FOUND, MissingPolicy.NULL)],
        )

    def open(self, *, bytes_max: int = 1 << 20) -> Repeats:
        journal = AnswerJournal(self.folder / "answers", bytes_max)
        repeats = Repeats(
            self, AnswerCodec(), journal, lambda: self.now, bytes_max=bytes_max, on_repeat=self._count_repeat
        )
        repeats.restore()
        return repeats

    def _count_repeat(self) -> None:
        self.repeats += 1


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return World(tmp_path)


def question(name: str = "a", value: int = 1, **changes: object) -> Request:
    columns = {"flight": Column.build("flight", DataType.INT64, [value])}
    asked = Request("delays", columns, None, "spiffe://foresight/application/a", "x", None, client_request_id=name)
    return replace(asked, **changes)  # type: ignore[arg-type]


async def test_a_repeat_gets_the_first_answer(world: World) -> None:
    repeats = world.open()
    first = await repeats.predict(question())
    again = await repeats.predict(question(request_id="another call"))
    assert (first.repeated, again.repeated) == (False, True)
    assert AnswerCodec().pack(replace(again, repeated=False)) == AnswerCodec().pack(first)
    assert world.asked == ["a"]
    assert world.repeats == 1


async def test_a_name_is_its_callers_and_its_deployments(world: World) -> None:
    repeats = world.open()
    for asked in (question(), question(caller="spiffe://foresight/application/b"), question(deployment="others")):
        assert not (await repeats.predict(asked)).repeated
    assert world.asked == ["a"] * 3


async def test_without_a_name_nothing_is_remembered(world: World) -> None:
    repeats = world.open()
    for _ in range(2):
        assert not (await repeats.predict(question(""))).repeated
    assert repeats.remembered == 0


@pytest.mark.parametrize("running", [False, True])
async def test_a_name_with_other_content_is_refused(world: World, running: bool) -> None:
    repeats = world.open()
    if running:
        world.gate.clear()
    first = asyncio.ensure_future(repeats.predict(question()))
    await asyncio.sleep(0)
    if not running:
        await first
    with pytest.raises(InvalidValue) as refused:
        await repeats.predict(question(value=2))
    assert refused.value.violations[0].field == "request_id"
    world.gate.set()
    assert not (await first).repeated
    assert world.asked == ["a"]


async def test_a_name_that_the_log_cannot_keep_is_refused(world: World) -> None:
    repeats = world.open()
    await repeats.predict(question("é" * 64))
    for name in ("é" * 64 + "a", "a\0b"):
        with pytest.raises(InvalidValue):
            await repeats.predict(question(name))


async def test_those_who_ask_meanwhile_share_the_answer(world: World) -> None:
    repeats = world.open()
    world.gate.clear()
    asked = [asyncio.ensure_future(repeats.predict(question())) for _ in range(5)]
    await asyncio.sleep(0)
    world.gate.set()
    answers = await asyncio.gather(*asked)
    assert [answer.repeated for answer in answers] == [False, True, True, True, True]
    assert world.asked == ["a"]


async def test_a_caller_who_goes_finds_the_answer_when_it_comes_back(world: World) -> None:
    repeats = world.open()
    world.gate.clear()
    first = asyncio.ensure_future(repeats.predict(question()))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    waits = asyncio.ensure_future(repeats.predict(question()))
    await asyncio.sleep(0)
    world.gate.set()
    assert (await waits).repeated
    assert world.asked == ["a"]


async def test_what_failed_is_tried_anew_also_by_those_who_waited(world: World) -> None:
    repeats = world.open()
    world.gate.clear()
    world.failures = 1
    asked = [asyncio.ensure_future(repeats.predict(question())) for _ in range(3)]
    await asyncio.sleep(0)
    world.gate.set()
    failed, *answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(failed, Unavailable)
    assert [isinstance(answer, Answer) and answer.repeated for answer in answers] == [False, True]
    assert world.asked == ["a", "a"]


async def test_names_are_forgotten_in_time(world: World) -> None:
    repeats = world.open()
    await repeats.predict(question())
    world.now += MEMORY
    assert (await repeats.predict(question())).repeated
    world.now += timedelta(microseconds=1)
    assert not (await repeats.predict(question())).repeated
    assert repeats.remembered == 1


async def test_memory_is_bounded_and_the_oldest_go_first(world: World) -> None:
    bytes_max = 20_000
    repeats = world.open(bytes_max=bytes_max)
    for number in range(200):
        await repeats.predict(question(f"r{number}"))
    assert 10 < repeats.remembered < 200
    assert (await repeats.predict(question("r199"))).repeated
    assert not (await repeats.predict(question("r0"))).repeated


async def test_an_answer_that_is_too_large_to_remember_is_shared_and_displaces_nobody(world: World) -> None:
    """By those who ask while it is made; later it is unknown, and the small ones are not."""
    repeats = world.open(bytes_max=1_000)
    await repeats.predict(question("small"))
    world.gate.clear()
    large = Column.build("flight", DataType.INT64, list(range(500)))
    callers = [asyncio.ensure_future(repeats.predict(question("large", columns={"flight": large}))) for _ in range(3)]
    await asyncio.sleep(0)
    world.gate.set()
    answers = await asyncio.gather(*callers)
    assert len({answer.prediction_ids for answer in answers}) == 1
    assert [answer.repeated for answer in answers] == [False, True, True]
    assert world.asked == ["small", "large"]
    assert (await repeats.predict(question("small"))).repeated
    assert not (await repeats.predict(question("large", columns={"flight": large}))).repeated


async def test_a_restart_remembers(world: World) -> None:
    repeats = world.open()
    first = await repeats.predict(question())
    world.now += timedelta(minutes=9)
    await repeats.predict(question("b"))
    await repeats.close()
    world.now += timedelta(minutes=1, seconds=1)
    again = world.open()
    assert again.remembered == 1
    assert (await again.predict(question("b"))).repeated
    assert (await again.predict(question())).prediction_ids != first.prediction_ids


async def test_an_end_in_the_middle_of_a_write_costs_that_answer_only(world: World) -> None:
    repeats = world.open()
    for name in "abc":
        await repeats.predict(question(name))
    # No `close`: the process was killed.
    (segment,) = (world.folder / "answers").iterdir()
    os.truncate(segment, segment.stat().st_size - 5)
    again = world.open()
    assert [(await again.predict(question(name))).repeated for name in "abc"] == [True, True, False]


async def test_a_flipped_bit_is_never_an_answer(world: World) -> None:
    repeats = world.open()
    await repeats.predict(question())
    await repeats.close()
    (segment,) = (world.folder / "answers").iterdir()
    data = bytearray(segment.read_bytes())
    data[-3] ^= 1
    segment.write_bytes(data)
    assert world.open().remembered == 0


async def test_a_journal_that_cannot_be_written_costs_no_answer(world: World) -> None:
    repeats = world.open()
    (world.folder / "answers").rmdir()
    assert not (await repeats.predict(question())).repeated
    assert (await repeats.predict(question())).repeated


async def test_segments_are_bounded_and_removed(tmp_path: Path) -> None:
    journal = AnswerJournal(tmp_path / "answers", 10_000, segment_bytes_max=1_000)
    assert list(journal.read(0)) == []

    def sizes() -> list[int]:
        return [path.stat().st_size for path in (tmp_path / "answers").iterdir()]

    for number in range(500):
        journal.write(Entry(number.to_bytes(16, "big"), b"c" * 16, number, b"x" * 100), 0)
    assert sum(sizes()) <= 11_100
    for number in range(500, 520):
        journal.write(Entry(number.to_bytes(16, "big"), b"c" * 16, number, b"x" * 100), number)
    assert sum(sizes()) <= 2_200
    journal.close()
    again = AnswerJournal(tmp_path / "answers", 10_000)
    assert max(entry.answered_us for entry in again.read(0)) == 519


@pytest.mark.parametrize("written", [0, 60, None])
async def test_a_full_disk_leaves_no_heap_of_segments(tmp_path: Path, written: int | None) -> None:
    """However many answers it cannot take, and whether it takes a part of them; with room again they are kept."""
    full = False

    def write(fd: int, data: bytes) -> int:
        if not full:
            return os.write(fd, data)
        if written is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(fd, data[:written])

    folder = tmp_path / "answers"
    journal = AnswerJournal(folder, 1 << 20, write=write)
    assert list(journal.read(0)) == []

    def keep(number: int) -> None:
        journal.write(Entry(number.to_bytes(16, "big"), b"c" * 16, number, b"x" * 100), 0)

    keep(0)
    full = True
    for number in range(1, 100):
        keep(number)
    assert len(list(folder.iterdir())) == 1
    full = False
    keep(100)
    journal.close()
    assert [entry.answered_us for entry in AnswerJournal(folder, 1 << 20).read(0)] == [0, 100]


async def test_close_ends_what_runs(world: World) -> None:
    repeats = world.open()
    world.gate.clear()
    asked = asyncio.ensure_future(repeats.predict(question()))
    await asyncio.sleep(0)
    await repeats.close()
    assert isinstance((await asyncio.gather(asked, return_exceptions=True))[0], asyncio.CancelledError)


texts = st.lists(st.text("abé", max_size=4), min_size=2, max_size=2)


@given(texts, texts, st.booleans(), st.booleans())
def test_content_differs_where_requests_differ(first: list[str], second: list[str], null: bool, other: bool) -> None:
    """Texts that join to the same bytes, NULLs, names, types and order of columns."""

    def content(values: list[str], null: bool, kind: DataType = DataType.STRING) -> bytes:
        filled: list[object] = [*values[:1], None if null else values[1]]
        columns = [Column.build("x", DataType.STRING, filled), Column.build("y", DataType.INT64, [1, 2])]
        if kind is not DataType.STRING:
            columns[1] = Column.build("y", kind, [1.0, 2.0])
        return content_of(question(columns={c.name: c for c in (reversed(columns) if other else columns)}))

    same = first == second or (null and first[0] == second[0])
    assert (content(first, null) == content(second, null)) == same
    assert content(first, True) != content(first, False)
    assert content(first, null) != content(first, null, DataType.FLOAT64)
