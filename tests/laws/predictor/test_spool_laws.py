"""Laws of the spool: whatever is written, acknowledged, killed, cut or damaged, every sequence number of every
incarnation is exactly one of acknowledged, pending and lost, and readable records come back unchanged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from services.predictor.incarnations import Spooled
from services.predictor.spool import Spool
from services.predictor.spool_format import frame, seed_of

SEGMENT_BYTES = 600
payloads = st.binary(max_size=200) | st.sampled_from([b"FSH1", b"FST1" * 20, b"", b"FSH1" * 9 + b"FST1"])
writes = st.tuples(st.just("write"), payloads, st.integers(1, 5))
acknowledgements = st.tuples(st.just("acknowledge"), st.integers(1, 8), st.just(0))
kills = st.tuples(st.just("kill"), st.integers(0, 400), st.just(0))
steps = st.lists(st.one_of(writes, writes, writes, acknowledgements, kills), max_size=40)


@dataclass
class Book:
    """What should be true of one incarnation."""

    written: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    highest: int = 0
    acknowledged: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)

    def numbers(self) -> set[int]:
        return set(range(1, self.highest + 1))


class Replica:
    """A spool that is killed and opened again, and the book that says what it must hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.books: dict[str, Book] = {}
        self._lives = 0
        self.open()

    def open(self) -> None:
        self._lives += 1
        name = f"life-{self._lives:04d}"
        self.spool = Spool(self.folder, "replica", name, bytes_max=1 << 20, segment_bytes_max=SEGMENT_BYTES)
        self.book = self.books[name] = Book()

    def write(self, payload: bytes, count: int) -> None:
        first = self.spool.append(payload, count)
        assert first == self.book.highest + 1
        self.book.written[first] = (count, payload)
        self.book.highest += count

    def acknowledge(self, records: int) -> bool:
        """Takes a batch as the logger would; False when there was none."""
        batch = self.spool.next_batch(records, 300)
        if batch is None:
            self.spool.tidy()
            return False
        book = self.books[batch.incarnation.name]
        for item in batch.items:
            numbers = set(range(item.first_sequence, item.first_sequence + item.count))
            assert not numbers & (book.acknowledged | book.lost), "a number was given out twice"
            if isinstance(item, Spooled):
                assert book.written[item.first_sequence] == (item.count, item.payload)
                book.acknowledged |= numbers
            else:
                book.lost |= numbers
        self.spool.acknowledge(batch)
        return True

    def kill(self, torn_bytes: int = 0) -> None:
        """The process dies, perhaps in the middle of a write whose number was never answered."""
        self.spool.close()
        if torn_bytes:
            segments = self.segments()
            current = [s for s in segments if s.parent.name == max(self.books)]
            if current:
                with current[-1].open("ab") as file:
                    file.write(_next_record(self.book, max(self.books), 400)[:torn_bytes])
        self.open()

    def segments(self) -> list[Path]:
        return sorted(self.folder.glob("replica/life-*/*.log"))

    def drain(self) -> None:
        while self.acknowledge(500):
            pass


def _next_record(book: Book, incarnation: str, size: int) -> bytes:
    return frame(b"x" * size, book.highest + 1, 1, seed_of(incarnation))


@contextmanager
def replica() -> Iterator[Replica]:
    with tempfile.TemporaryDirectory(prefix="fs-spool-") as folder:
        held = Replica(Path(folder))
        try:
            yield held
        finally:
            held.spool.close()


def run(held: Replica, script: list[tuple[str, object, int]]) -> None:
    for kind, argument, count in script:
        match kind, argument:
            case "write", bytes(payload):
                held.write(payload, count)
            case "acknowledge", int(records):
                held.acknowledge(records)
            case "kill", int(torn):
                held.kill(torn)


@settings(max_examples=80, deadline=None)
@given(steps)
def test_every_number_is_acknowledged_or_pending_across_kills(script: list[tuple[str, object, int]]) -> None:
    """Kills, torn writes included, lose no number that was given out, and give none out twice."""
    with replica() as held:
        run(held, script)
        for state in held.spool.incarnations():
            book = held.books[state.incarnation]
            assert state.highest_sequence == book.highest
            assert state.pending == book.highest - len(book.acknowledged)
        held.drain()
        assert held.spool.pending == 0
        for book in held.books.values():
            assert book.acknowledged == book.numbers()
            assert not book.lost


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(payloads, st.integers(1, 4)), min_size=1, max_size=12),
    st.integers(0, 5),
    st.data(),
)
def test_a_flipped_bit_loses_at_most_its_record_and_its_numbers_are_known(
    records: list[tuple[bytes, int]], acknowledged: int, data: st.DataObject
) -> None:
    """One damaged byte anywhere: every number is acknowledged or reported lost, and at most one record is lost."""
    with replica() as held:
        for payload, count in records:
            held.write(payload, count)
        if acknowledged:
            held.acknowledge(acknowledged)
        held.kill()
        segments = [s for s in held.segments() if s.stat().st_size]
        before = len(held.books["life-0001"].acknowledged)
        if not segments:
            return
        path = data.draw(st.sampled_from(segments))
        content = bytearray(path.read_bytes())
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        held.kill()
        held.drain()
        book = held.books["life-0001"]
        assert book.acknowledged | book.lost == book.numbers()
        lost_records = [n for n in book.written if n in book.lost]
        assert len(lost_records) <= 1
        assert len(book.acknowledged) >= before


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(payloads, st.integers(1, 4)), min_size=1, max_size=15),
    st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=120)), min_size=1, max_size=4),
    st.booleans(),
)
def test_heavy_damage_never_gives_a_number_out_twice_and_leaves_no_gap(
    records: list[tuple[bytes, int]], overwrites: list[tuple[int, bytes]], while_running: bool
) -> None:
    """Overwritten stretches: numbers up to the last one seen are each acknowledged or lost, never both.

    While the process lives it knows its highest number, so nothing at all may be missing.
    """
    with replica() as held:
        for payload, count in records:
            held.write(payload, count)
        for where, garbage in overwrites:
            segments = held.segments()
            path = segments[where % len(segments)]
            with path.open("r+b") as file:
                size = path.stat().st_size
                at = where % size
                file.seek(at)
                file.write(garbage[: size - at])
        if not while_running:
            held.kill()
        held.drain()
        book = held.books["life-0001"]
        accounted = book.acknowledged | book.lost
        assert accounted == set(range(1, len(accounted) + 1))
        if while_running:
            assert accounted == book.numbers()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(payloads, st.integers(1, 4)), min_size=1, max_size=6), st.data())
def test_a_file_cut_anywhere_keeps_every_whole_record(records: list[tuple[bytes, int]], data: st.DataObject) -> None:
    """The last segment cut at any byte: whole records before the cut are shipped and no number is invented."""
    with replica() as held:
        for payload, count in records:
            held.write(payload, count)
        held.kill()
        path = held.segments()[-1]
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        held.kill()
        held.drain()
        book = held.books["life-0001"]
        assert not book.lost
        assert book.acknowledged == set(range(1, len(book.acknowledged) + 1))
        missing = book.numbers() - book.acknowledged
        if cut == len(content):
            assert not missing
