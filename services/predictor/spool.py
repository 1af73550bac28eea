"""The durable spool: every answered prediction is in it before the answer leaves, until the logger has it.

    <folder>/<replica>/lock                         one process per replica
    <folder>/<replica>/<incarnation>/*.log          segments, see `incarnations`
    <folder>/<replica>/<incarnation>/position       last acknowledged sequence number
    <folder>/<replica>/quarantine/                  damaged and refused bytes, kept aside for people

Records are written at once, one or several, to a file opened for appending, so they survive the death of the process;
`sync` makes them survive a power loss. Sequence numbers count predictions from 1 per incarnation and are given in the
order of writing: a number exists if and only if its record was written whole, so a failed write uses none up. `append`
and `append_all` are called from one thread and do not wait for anything but the file's cache; `next_batch` and `find`
may run in another thread.

Bounds: all segments together hold at most `bytes_max` bytes, a segment about SEGMENT_BYTES_MAX, the quarantine
QUARANTINE_BYTES_MAX. At the first, and when the disk is full, `append` raises SpoolFull and everything stays as it was.
"""

from __future__ import annotations

import fcntl
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.predictor.incarnations import Incarnation, Lost, Segment, Spooled, segment_path
from services.predictor.spool_format import FRAME_BYTES, frame
from services.runtime.errors import SpoolFull

log = structlog.get_logger()

SEGMENT_BYTES_MAX = 8 << 20
# An acknowledged segment is given up once it is this large; smaller ones go on, to spare the file system.
SEGMENT_BYTES_KEPT = 1 << 20
QUARANTINE_BYTES_MAX = 64 << 20
_LOCK = "lock"
_QUARANTINE = "quarantine"

Write = Callable[[int, bytes], int]
Truncate = Callable[[int, int], None]
Sync = Callable[[int], None]


class SpoolInUse(Exception):
    """Another process has the spool of this replica."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive items of one incarnation, oldest first; never empty."""

    incarnation: Incarnation
    items: tuple[Spooled | Lost, ...]

    @property
    def records(self) -> list[Spooled]:
        """The readable records."""
        return [item for item in self.items if isinstance(item, Spooled)]

    @property
    def lost(self) -> list[Lost]:
        """The lost ranges."""
        return [item for item in self.items if isinstance(item, Lost)]

    def halves(self) -> tuple[Batch, Batch]:
        """Both halves; only for batches of two or more items."""
        middle = len(self.items) // 2
        return Batch(self.incarnation, self.items[:middle]), Batch(self.incarnation, self.items[middle:])


@dataclass(frozen=True, slots=True)
class SpooledIncarnation:
    """What the spool holds of one incarnation."""

    incarnation: str
    highest_sequence: int
    pending: int


class Spool:
    """The spool of one replica; `write`, `truncate` and `datasync` are those of `os`, replaced in tests of disks."""

    def __init__(
        self,
        folder: Path,
        replica: str,
        incarnation: str,
        *,
        bytes_max: int,
        fsync: bool = False,
        write: Write = os.write,
        truncate: Truncate = os.ftruncate,
        datasync: Sync = os.fdatasync,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
    ) -> None:
        """Opens the folder and reads what earlier incarnations left. Raises SpoolInUse, and OSError.

        `incarnation` sorts after every earlier one of the replica. `fsync` says that `sync` is used: segments are
        then brought to the disk before they are closed.
        """
        self.replica = replica
        self.on_append: Callable[[], None] = lambda: None
        self._folder = folder / replica
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_fd = _lock(self._folder)
        self._bytes_max = bytes_max
        self._segment_bytes_max = segment_bytes_max
        self._write = write
        self._truncate = truncate
        self._datasync = datasync
        self._fsync = fsync
        self._folder_changed = False
        self._fd = -1
        self._fd_lock = threading.Lock()
        self.accepting = True
        self._earlier = [Incarnation(path, live=False) for path in _incarnations(self._folder)]
        (self._folder / incarnation).mkdir(mode=0o700)
        self._live = Incarnation(self._folder / incarnation, live=True)
        if fsync:
            for path in (folder, self._folder):
                _sync_folder(path)

    @property
    def incarnation(self) -> str:
        """The running incarnation."""
        return self._live.name

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(i.size for i in (*self._earlier, self._live))

    @property
    def half_full(self) -> bool:
        """Whether half of the bytes that it may hold are used."""
        return self.size > self._bytes_max // 2

    @property
    def pending(self) -> int:
        """Predictions that are readable here and not acknowledged."""
        return sum(i.pending for i in (*self._earlier, self._live))

    def append(self, payload: bytes, count: int) -> int:
        """Writes a record of `count` predictions and answers its first sequence number.

        Raises SpoolFull, and then nothing was written.
        """
        return self.append_all([(payload, count)])

    def append_all(self, records: Sequence[tuple[bytes, int]]) -> int:
        """Writes records, each a payload and its count of predictions, at once; answers the first sequence number.

        Raises SpoolFull, and then none of them was written.
        """
        if not self.accepting:
            raise SpoolFull("the spool cannot be written", limit="spool")
        if not self._has_room(sum(len(payload) + FRAME_BYTES for payload, _ in records)):
            raise SpoolFull("the spool is full until records are shipped", limit="spool_bytes_max")
        live = self._live
        first = following = live.highest + 1
        segment = self._segment(first)
        frames = []
        for payload, count in records:
            frames.append(frame(payload, following, count, live.seed))
            following += count
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        try:
            self._write_whole(data)
        except OSError as error:
            self._undo(segment)
            raise SpoolFull("the disk of the spool is full or failing", limit="disk") from error
        # In this order, for readers in other threads.
        segment.size += len(data)
        live.highest = following - 1
        live.pending += following - first
        self.on_append()
        return first

    def sync(self) -> None:
        """Waits until everything appended is on the disk; for a thread. Raises SpoolFull when the disk fails."""
        with self._fd_lock:
            if not self.accepting:
                raise SpoolFull("the spool cannot be written", limit="spool")
            changed, self._folder_changed = self._folder_changed, False
            try:
                if self._fd >= 0:
                    self._datasync(self._fd)
                if changed:
                    _sync_folder(self._live.folder)
            except OSError as error:
                self._folder_changed |= changed
                raise SpoolFull("the disk of the spool is full or failing", limit="disk") from error

    def next_batch(self, records_max: int, bytes_max: int) -> Batch | None:
        """The oldest items that are not acknowledged, or None; one record at least, however large."""
        for incarnation in (*self._earlier, self._live):
            items: list[Spooled | Lost] = []
            size = 0
            for item in incarnation.items():
                size += len(item.payload) if isinstance(item, Spooled) else 0
                if items and (size > bytes_max or len(items) == records_max):
                    break
                items.append(item)
            if items:
                return Batch(incarnation, tuple(items))
        return None

    def acknowledge(self, batch: Batch) -> None:
        """The logger has the batch: it leaves the spool. Batches are acknowledged in the order of `next_batch`."""
        incarnation = batch.incarnation
        # What is lost of the running incarnation was pending until it was read; of earlier ones it never was.
        gone = batch.items if incarnation.live else batch.records
        incarnation.acknowledge(batch.items[-1].end, sum(item.count for item in gone))
        live = self._live
        if live.shipped and live.segments and live.segments[-1].size >= SEGMENT_BYTES_KEPT:
            self._close_segment()

    def tidy(self) -> None:
        """Removes the earlier incarnations; call it when `next_batch` had nothing of them any more."""
        while self._earlier:
            self._earlier.pop(0).remove()

    def set_aside(self, incarnation: Incarnation, item: Spooled | Lost) -> None:
        """Keeps damaged or refused bytes for people, as long as there is room."""
        data = item.payload if isinstance(item, Spooled) else item.data
        folder = self._folder / _QUARANTINE
        if not data:
            return
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            if sum(p.stat().st_size for p in folder.iterdir()) + len(data) > QUARANTINE_BYTES_MAX:
                log.error("quarantine_full", incarnation=incarnation.name, first_sequence=item.first_sequence)
                return
            path = folder / f"{incarnation.name}-{item.first_sequence}-{zlib.crc32(data):08x}.bin"
            path.write_bytes(data)
        except OSError as error:
            log.error("quarantine_not_written", error=error.strerror, first_sequence=item.first_sequence)

    def find(self, needle: bytes) -> Iterator[bytes]:
        """Payloads that contain `needle` and are not acknowledged, newest incarnation first; for a thread."""
        for incarnation in (self._live, *reversed(tuple(self._earlier))):
            for item in incarnation.items():
                if isinstance(item, Spooled) and needle in item.payload:
                    yield item.payload

    def incarnations(self) -> list[SpooledIncarnation]:
        """The earlier incarnations that hold records, oldest first, and the running one."""
        held = [i for i in self._earlier if i.pending] + [self._live]
        return [SpooledIncarnation(i.name, i.highest, i.pending) for i in held]

    def close(self) -> None:
        """Gives the folder up."""
        with self._fd_lock:
            self._close_fd()
        for incarnation in (*self._earlier, self._live):
            incarnation.close()
        os.close(self._lock_fd)

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes fit; a segment that is kept although it is acknowledged goes first."""
        if self.size + size > self._bytes_max and self._live.shipped:
            self._close_segment()
        return self.size + size <= self._bytes_max

    def _segment(self, first: int) -> Segment:
        """The segment to append to; a new one is named by the number that it begins with."""
        live = self._live
        if self._fd >= 0 and live.segments[-1].size >= self._segment_bytes_max:
            self._close_segment()
        if self._fd < 0:
            path = segment_path(live.folder, first)
            try:
                self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            except OSError as error:
                raise SpoolFull("the disk of the spool is full or failing", limit="disk") from error
            live.segments.append(Segment(first, path, 0))
            self._folder_changed = True
        return live.segments[-1]

    def _write_whole(self, data: bytes) -> None:
        """One write as a rule; what a short one left over is written after it."""
        written = self._write(self._fd, data)
        while written < len(data):
            written += self._write(self._fd, data[written:])

    def _undo(self, segment: Segment) -> None:
        """Cuts a record off that was written in part only; when that fails, nothing may be appended to it."""
        try:
            self._truncate(self._fd, segment.size)
        except OSError as error:
            self.accepting = False
            log.critical("spool_closed", error=error.strerror)

    def _close_segment(self) -> None:
        """Ends the current segment, and removes it when all of it is acknowledged."""
        with self._fd_lock:
            if self._fd >= 0 and self._fsync and not self._live.shipped:
                try:
                    self._datasync(self._fd)
                except OSError as error:
                    # Whoever still waits for these records must not be answered.
                    self.accepting = False
                    log.critical("spool_closed", error=error.strerror)
            self._close_fd()
        self._live.remove_last()

    def _close_fd(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _lock(folder: Path) -> int:
    fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise SpoolInUse(f"another process has the spool of the replica {folder.name}") from None
    return fd


def _sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _incarnations(folder: Path) -> list[Path]:
    """Folders of incarnations, oldest first: their names are time-ordered ids."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name != _QUARANTINE)
