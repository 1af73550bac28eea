"""Answers to named requests on disk, so that a restarted replica still knows them.

    <folder>/<microseconds since the epoch, 20 digits>.answers      segments, named by when they were begun

A segment holds entries one after the other, each with its length and a CRC-32. Reading a segment stops at the first
entry that is not whole: what a write cut short by the death of the process leaves. A segment is removed as a whole when
its last entry is out of date, or when all segments together exceed their bound (the oldest goes first). One thread
writes. A disk that is full or failing costs the memory across a restart and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.predictor.artifacts import make_cache_folder

log = structlog.get_logger()

SEGMENT_BYTES_MAX = 4 << 20
# A segment goes when its last entry is out of date, so it must not stay open for long.
SEGMENT_AGE_MAX_US = 60_000_000
DIGEST_BYTES = 16
# CRC-32 of what follows, length of the answer, time of the answer, key, content.
_HEAD = struct.Struct(f"<IIq{DIGEST_BYTES}s{DIGEST_BYTES}s")
_CRC_BYTES = 4
_SUFFIX = ".answers"

Write = Callable[[int, bytes], int]


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer in bytes: which request it belongs to, what that asked, and when it was given (microseconds)."""

    key: bytes
    content: bytes
    answered_us: int
    answer: bytes

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return _HEAD.size + len(self.answer)


@dataclass(slots=True)
class _Segment:
    path: Path
    size: int
    last_us: int


class AnswerJournal:
    """The segments of one replica in `folder`, at most `bytes_max` bytes and one segment more; `write` is that of `os`,
    replaced in tests of disks."""

    def __init__(
        self,
        folder: Path,
        bytes_max: int,
        *,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        write: Write = os.write,
    ) -> None:
        self._folder = folder
        self._bytes_max = bytes_max
        self._segment_bytes_max = segment_bytes_max
        self._write = write
        self._segments: list[_Segment] = []
        self._begun_us = 0
        self._fd = -1
        self._failing = False

    def read(self, since_us: int) -> Iterator[Entry]:
        """The entries of all segments since a time, oldest segment first; to be read to the end before the first write.

        A segment with none of them is removed. Raises OSError when the folder cannot be made.
        """
        make_cache_folder(self._folder)
        for path in sorted(path for path in self._folder.glob(f"*{_SUFFIX}") if path.stem.isdecimal()):
            try:
                data = path.read_bytes()
            except OSError as error:
                log.warning("answers_not_readable", segment=path.name, error=error.strerror)
                continue
            last_us = 0
            for entry in _entries(data):
                last_us = max(last_us, entry.answered_us)
                if entry.answered_us >= since_us:
                    yield entry
            self._segments.append(_Segment(path, len(data), last_us))
        self._tidy(since_us)

    def write(self, entry: Entry, since_us: int) -> None:
        """Appends an entry, and removes segments whose entries are all from before `since_us`."""
        body = _HEAD.pack(0, len(entry.answer), entry.answered_us, entry.key, entry.content)[_CRC_BYTES:] + entry.answer
        data = struct.pack("<I", zlib.crc32(body)) + body
        try:
            self._open_segment(entry.answered_us, since_us)
            if self._write(self._fd, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            # What follows half an entry could not be read.
            self._give_segment_up()
            if not self._failing:
                log.warning("answers_not_kept", error=error.strerror)
            self._failing = True
            return
        self._failing = False
        segment = self._segments[-1]
        segment.size += len(data)
        segment.last_us = max(segment.last_us, entry.answered_us)

    def close(self) -> None:
        """Gives the files up."""
        self._close_segment()

    def _open_segment(self, now_us: int, since_us: int) -> None:
        if self._fd >= 0:
            full = self._segments[-1].size >= self._segment_bytes_max
            if not full and 0 <= now_us - self._begun_us < SEGMENT_AGE_MAX_US:
                return
            self._close_segment()
        self._tidy(since_us)
        # Later than every other name, also when the clock has gone back.
        last = int(self._segments[-1].path.stem) if self._segments else 0
        path = self._folder / f"{max(now_us, last + 1):020d}{_SUFFIX}"
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        self._begun_us = now_us
        self._segments.append(_Segment(path, 0, now_us))

    def _close_segment(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _give_segment_up(self) -> None:
        """Ends the segment after a failed write; one without a whole entry is removed, as the next write makes one."""
        if self._fd < 0:
            return
        self._close_segment()
        if not self._segments[-1].size:
            with contextlib.suppress(OSError):
                self._segments.pop().path.unlink(missing_ok=True)

    def _tidy(self, since_us: int) -> None:
        """Removes what is out of date or too much; no segment is open."""
        size = sum(segment.size for segment in self._segments)
        kept = []
        for segment in self._segments:
            if segment.last_us < since_us or size > self._bytes_max:
                size -= segment.size
                segment.path.unlink(missing_ok=True)
            else:
                kept.append(segment)
        self._segments = kept


def _entries(data: bytes) -> Iterator[Entry]:
    """The entries before the first one that is not whole."""
    position = 0
    while position + _HEAD.size <= len(data):
        crc, length, answered_us, key, content = _HEAD.unpack_from(data, position)
        end = position + _HEAD.size + length
        if end > len(data) or zlib.crc32(data[position + _CRC_BYTES : end]) != crc:
            break
        yield Entry(key, content, answered_us, data[position + _HEAD.size : end])
        position = end
    if position < len(data):
        log.warning("answers_cut_short", bytes=len(data) - position)
