"""The bytes of a spool segment: records one after the other, each able to prove what it is.

    head     28 bytes   magic "FSH1", payload length u32, first sequence u64, count u32, CRC-32 of the payload,
                        CRC-32 of the 24 bytes before
    payload  n bytes
    tail     28 bytes   the head once more, with the magic "FST1"

All numbers are little-endian. The CRCs start from a seed made of the incarnation, so neither a payload that imitates
a record nor a segment of another incarnation is taken for one. The head is there twice because it names the sequence
numbers: when one copy is damaged the other still says which numbers the record held, and a whole payload between
them is still readable. Damage of any one byte therefore loses at most one record and never the knowledge of which.

What a scan finds is stated precisely:
- `Record`: the payload's CRC holds, with a head or a tail that proves its numbers;
- `Damage`: bytes that are no record; with `first_sequence` and `count` when a head or tail still names them;
- `Torn`: the rest of the data is the beginning of one record (its head is whole and says that more should follow, or
  less than a head is left). That is what a write cut short by the death of the process leaves.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_FIELDS = struct.Struct("<4sIQII")
_SEAL = struct.Struct("<I")
MARK_BYTES = _FIELDS.size + _SEAL.size
FRAME_BYTES = 2 * MARK_BYTES
_HEAD = b"FSH1"
_TAIL = b"FST1"
_MAGIC = re.compile(b"FS[HT]1")


@dataclass(frozen=True, slots=True)
class Record:
    """A readable record; `end` is the position behind it."""

    first_sequence: int
    count: int
    payload: bytes
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are no record; `count` is 0 when nothing says which numbers they held."""

    start: int
    end: int
    first_sequence: int = 0
    count: int = 0


@dataclass(frozen=True, slots=True)
class Torn:
    """The beginning of a record, at the end of the data."""

    start: int


@dataclass(frozen=True, slots=True)
class _Mark:
    length: int
    first_sequence: int
    count: int
    payload_crc: int


def seed_of(incarnation: str) -> int:
    """Where the CRCs of an incarnation start."""
    return zlib.crc32(incarnation.encode())


def frame(payload: bytes, first_sequence: int, count: int, seed: int) -> bytes:
    """The bytes of a record."""
    payload_crc = zlib.crc32(payload, seed)
    head = _FIELDS.pack(_HEAD, len(payload), first_sequence, count, payload_crc)
    tail = _FIELDS.pack(_TAIL, len(payload), first_sequence, count, payload_crc)
    return b"".join(
        (head, _SEAL.pack(zlib.crc32(head, seed)), payload, tail, _SEAL.pack(zlib.crc32(tail, seed))),
    )


def scan(data: bytes, seed: int) -> Iterator[Record | Damage | Torn]:
    """Everything that `data`, which starts at the beginning of a record, holds; each byte is covered once."""
    position = 0
    while position < len(data):
        head = _mark(data, position, _HEAD, seed)
        if head is not None:
            end = position + FRAME_BYTES + head.length
            if end <= len(data):
                yield _record_or_damage(data, position, end, head, seed)
            elif (end := _resynchronise(data, position, seed)[0]) == len(data):
                yield Torn(position)
                return
            else:
                yield Damage(position, end, head.first_sequence, head.count)
        elif len(data) - position < MARK_BYTES and _HEAD.startswith(data[position : position + 4]):
            yield Torn(position)
            return
        else:
            start, end, mark = _resynchronise(data, position, seed)
            if start > position:
                yield Damage(position, start)
            if mark is not None:
                yield _record_or_damage(data, start, end, mark, seed)
        position = end


def _record_or_damage(data: bytes, start: int, end: int, mark: _Mark, seed: int) -> Record | Damage:
    payload = data[start + MARK_BYTES : start + MARK_BYTES + mark.length]
    if zlib.crc32(payload, seed) == mark.payload_crc:
        return Record(mark.first_sequence, mark.count, payload, end)
    return Damage(start, end, mark.first_sequence, mark.count)


def _resynchronise(data: bytes, position: int, seed: int) -> tuple[int, int, _Mark | None]:
    """The next place that can be trusted after a damaged head at `position`.

    Answers (start, end, mark): a record from start to end that its tail proves; or (head, head, None) where the next
    whole head begins; or (end of data, end of data, None).
    """
    for found in _MAGIC.finditer(data, position + 1):
        at = found.start()
        if found.group() == _HEAD:
            if _mark(data, at, _HEAD, seed) is not None:
                return at, at, None
        else:
            mark = _mark(data, at, _TAIL, seed)
            if mark is not None and (start := at - MARK_BYTES - mark.length) >= position:
                return start, at + MARK_BYTES, mark
    return len(data), len(data), None


def _mark(data: bytes, position: int, magic: bytes, seed: int) -> _Mark | None:
    """The head or tail at a position, when it is whole."""
    if len(data) - position < MARK_BYTES:
        return None
    found, length, first_sequence, count, payload_crc = _FIELDS.unpack_from(data, position)
    (seal,) = _SEAL.unpack_from(data, position + _FIELDS.size)
    if found != magic or zlib.crc32(data[position : position + _FIELDS.size], seed) != seal:
        return None
    if count < 1 or first_sequence < 1:
        return None
    return _Mark(length, first_sequence, count, payload_crc)
