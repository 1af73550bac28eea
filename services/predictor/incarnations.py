"""The spool of one incarnation: a folder of segments, and the position up to which the logger has acknowledged.

Segments are named by the first sequence number that they hold, so the numbers of a segment whose beginning is damaged
are known. A number is lost when its record is damaged, or when the numbers jump: between two records, between a
record and the next segment's name, or below the highest number that a running incarnation has written. The beginning
of a record at the very end of the last segment of an earlier incarnation was never answered (the write had not
returned) and is ignored. Damage at that end which no longer says what it was counts as one lost number, because at
least one may have been answered.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.predictor.spool_format import FRAME_BYTES, Damage, Record, Torn, scan, seed_of

_POSITION = struct.Struct("<Q")
_SEAL = struct.Struct("<I")
_POSITION_FILE = "position"
_SUFFIX = ".log"


@dataclass(slots=True)
class Segment:
    """A file of records; `size` counts the bytes that hold whole, accepted writes."""

    first_sequence: int
    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """Everything before `offset` of the segment, and every number below `expected`, is dealt with."""

    segment: int
    offset: int
    expected: int


@dataclass(frozen=True, slots=True)
class Spooled:
    """A readable record that the logger has not acknowledged."""

    first_sequence: int
    count: int
    payload: bytes
    end: Cursor


@dataclass(frozen=True, slots=True)
class Lost:
    """Numbers whose record cannot be read; `data` are the damaged bytes, as far as there are any."""

    first_sequence: int
    last_sequence: int
    reason: str
    data: bytes
    end: Cursor

    @property
    def count(self) -> int:
        """How many numbers."""
        return self.last_sequence - self.first_sequence + 1


class Incarnation:
    """One life of the replica. Only the running one has `live` set and grows."""

    def __init__(self, folder: Path, *, live: bool) -> None:
        self.name = folder.name
        self.folder = folder
        self.live = live
        self.seed = seed_of(folder.name)
        self.segments: list[Segment] = _find_segments(folder)
        self._position_fd = os.open(folder / _POSITION_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        first = self.segments[0].first_sequence if self.segments else 1
        acknowledged = self._read_position()
        self._position_written = acknowledged is not None
        # Without a readable position: segments go only when they are acknowledged, so all before the first one is.
        self.cursor = Cursor(first, 0, first if acknowledged is None else acknowledged + 1)
        self.highest = self.cursor.expected - 1
        self.pending = 0
        if not live:
            for item in self.items():
                self.pending += item.count if isinstance(item, Spooled) else 0
                self.highest = max(self.highest, item.end.expected - 1)

    @property
    def size(self) -> int:
        """Bytes of its segments."""
        return sum(segment.size for segment in self.segments)

    @property
    def shipped(self) -> bool:
        """Whether everything that was written is acknowledged."""
        return self.cursor.expected > self.highest

    def items(self) -> Iterator[Spooled | Lost]:
        """What is not acknowledged, in order of numbers, read from the files as they are now.

        May run in a thread beside writes: it sees at least what was written before it began.
        """
        # The order matters: a number is written to its file before it becomes the highest.
        highest = self.highest if self.live else None
        segments = [(s.first_sequence, s.path, s.size) for s in tuple(self.segments)]
        reader = _Reader(self.cursor, self.seed)
        for index, (first, path, size) in enumerate(segments):
            following = segments[index + 1][0] if index + 1 < len(segments) else None
            if first < self.cursor.segment or (following is not None and following <= self.cursor.expected):
                continue
            yield from reader.read(first, path, size)
        yield from reader.finish(highest)

    def acknowledge(self, end: Cursor, count: int) -> None:
        """Moves the position to the end of an item of `items`; `count` predictions are not pending any more."""
        self.cursor = end
        self.pending -= count
        position = _POSITION.pack(end.expected - 1)
        # One small write in place needs no space on a full disk. Until one succeeds no segment may go: a position that
        # is behind only repeats records, but a segment missing behind it would count as lost.
        try:
            os.pwrite(self._position_fd, position + _SEAL.pack(zlib.crc32(position, self.seed)), 0)
            self._position_written = True
        except OSError:
            self._position_written = False
        while self._position_written and len(self.segments) > 1 and self.segments[1].first_sequence <= end.expected:
            self.remove_first()

    def remove_last(self) -> None:
        """Removes the last segment, closed for writing, when everything is acknowledged."""
        if self._position_written and len(self.segments) == 1 and self.shipped:
            self.remove_first()

    def remove_first(self) -> None:
        """Removes the first segment."""
        segment = self.segments[0]
        segment.path.unlink(missing_ok=True)
        del self.segments[0]

    def remove(self) -> None:
        """Removes the folder; nothing in it is needed any more."""
        self.close()
        while self.segments:
            self.remove_first()
        (self.folder / _POSITION_FILE).unlink(missing_ok=True)
        # Something foreign in the folder keeps it there, and harms nobody.
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def close(self) -> None:
        """Closes the position's file."""
        if self._position_fd >= 0:
            os.close(self._position_fd)
            self._position_fd = -1

    def _read_position(self) -> int | None:
        data = os.pread(self._position_fd, _POSITION.size + _SEAL.size, 0)
        if len(data) != _POSITION.size + _SEAL.size:
            return None
        position, seal = data[: _POSITION.size], data[_POSITION.size :]
        if _SEAL.unpack(seal)[0] != zlib.crc32(position, self.seed):
            return None
        acknowledged: int = _POSITION.unpack(position)[0]
        return acknowledged


class _Reader:
    """Turns what scans find into items, by following the numbers."""

    def __init__(self, cursor: Cursor, seed: int) -> None:
        self._cursor = cursor
        self._seed = seed
        self._damaged: list[bytes] = []
        self._untold = False
        # The number after the last one that the data itself names, acknowledged or not, and where the data ends.
        self._named = 0
        self._end = cursor.offset

    def read(self, first: int, path: Path, size: int) -> Iterator[Spooled | Lost]:
        """The items of one segment."""
        if first != self._cursor.segment:
            self._cursor = Cursor(first, 0, self._cursor.expected)
        base = self._cursor.offset
        yield from self._reach(first, Cursor(first, base, first), "a segment is missing or ends too early")
        try:
            data = _read(path, base, size)
        except FileNotFoundError:
            # Acknowledged and removed since the list was made, or taken away: then the numbers will say so.
            return
        self._named = max(self._named, first if base == 0 else self._cursor.expected)
        self._end = base + len(data)
        for found in scan(data, self._seed):
            match found:
                case Record():
                    self._named = max(self._named, found.first_sequence + found.count)
                    yield from self._record(found, Cursor(first, base + found.end, found.first_sequence + found.count))
                case Damage():
                    self._named = max(self._named, found.first_sequence + found.count)
                    self._damaged.append(data[found.start : found.end])
                    end = Cursor(first, base + found.end, found.first_sequence + found.count)
                    yield from self._reach(end.expected, end, "a record fails its checksum")
                    self._untold = found.count == 0
                case Torn():
                    self._damaged.append(data[found.start :])

    def finish(self, highest: int | None) -> Iterator[Lost]:
        """What is lost at the end; `highest` is known for the running incarnation only."""
        expected = self._cursor.expected
        if highest is None and self._untold and self._named >= expected:
            # Otherwise an earlier reading has counted it already.
            highest = expected
        if highest is not None:
            end = Cursor(self._cursor.segment, self._end, highest + 1)
            yield from self._reach(end.expected, end, "the end of the last segment is damaged")

    def _record(self, found: Record, end: Cursor) -> Iterator[Spooled | Lost]:
        if end.expected <= self._cursor.expected:
            # Acknowledged before.
            return
        begin = Cursor(end.segment, end.offset - FRAME_BYTES - len(found.payload), found.first_sequence)
        yield from self._reach(found.first_sequence, begin, "records are missing or damaged")
        self._cursor = end
        self._untold = False
        yield Spooled(found.first_sequence, found.count, found.payload, end)

    def _reach(self, expected: int, end: Cursor, reason: str) -> Iterator[Lost]:
        """Everything from the expected number up to `expected` - 1 is lost; nothing when there is no gap."""
        first = self._cursor.expected
        if expected > first:
            data, self._damaged = b"".join(self._damaged), []
            self._cursor = end
            self._untold = False
            yield Lost(first, expected - 1, reason, data, end)


def _find_segments(folder: Path) -> list[Segment]:
    names: Sequence[Path] = [p for p in folder.glob(f"*{_SUFFIX}") if p.stem.isascii() and p.stem.isdigit()]
    return sorted((Segment(int(p.stem), p, p.stat().st_size) for p in names), key=lambda s: s.first_sequence)


def segment_path(folder: Path, first_sequence: int) -> Path:
    """Where the segment that begins with a number is; names sort as numbers do."""
    return folder / f"{first_sequence:020d}{_SUFFIX}"


def _read(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        parts = []
        left = size - offset
        while left > 0 and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
