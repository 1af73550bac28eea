"""The spool when the disk is full or failing, when two want it, and when damage is found."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.predictor.incarnations import Lost, Spooled
from services.predictor.spool import Spool, SpoolInUse
from services.predictor.spool_format import FRAME_BYTES
from services.runtime.errors import SpoolFull

ROOM = 1 << 20


@dataclass
class Disk:
    """A disk with so much room left, that may also refuse to cut files."""

    room: int = ROOM
    cuts: bool = True
    largest_write: int = ROOM
    error: int = errno.ENOSPC

    def write(self, fd: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(self.error, os.strerror(self.error))
        written = os.write(fd, data[: min(self.room, self.largest_write)])
        self.room -= written
        return written

    def truncate(self, fd: int, size: int) -> None:
        if not self.cuts:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.ftruncate(fd, size)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def spool(tmp_path: Path, disk: Disk) -> Iterator[Spool]:
    opened = open_spool(tmp_path, "life-1", disk)
    yield opened
    opened.close()


def open_spool(folder: Path, incarnation: str, disk: Disk | None = None, bytes_max: int = ROOM) -> Spool:
    disk = disk or Disk()
    return Spool(folder, "replica", incarnation, bytes_max=bytes_max, write=disk.write, truncate=disk.truncate)


def shipped(spool: Spool) -> list[tuple[int, bytes]]:
    """Everything, taken as the logger would."""
    taken = []
    while (batch := spool.next_batch(500, ROOM)) is not None:
        taken += [(r.first_sequence, r.payload) for r in batch.records]
        assert not batch.lost
        spool.acknowledge(batch)
    return taken


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT])
@pytest.mark.parametrize("room", [0, 1, 27, 28, 40, FRAME_BYTES + 99])
def test_a_full_disk_uses_no_number_up_and_leaves_no_trace(spool: Spool, disk: Disk, room: int, error: int) -> None:
    """The disk fills after any number of bytes of the record; later there is room again."""
    assert spool.append(b"a" * 100, 2) == 1
    disk.room, disk.error = room, error
    with pytest.raises(SpoolFull) as caught:
        spool.append(b"b" * 100, 5)
    assert "/" not in caught.value.message
    disk.room = ROOM
    assert spool.append(b"c" * 100, 1) == 3
    assert shipped(spool) == [(1, b"a" * 100), (3, b"c" * 100)]


@pytest.mark.parametrize("room", [0, FRAME_BYTES + 50, 2 * FRAME_BYTES + 150])
def test_records_written_together_are_all_there_or_none(spool: Spool, disk: Disk, room: int) -> None:
    """The disk fills before, within and behind the first of them."""
    records = [(b"a" * 100, 2), (b"b" * 100, 1), (b"c" * 100, 3)]
    assert spool.append_all(records) == 1
    disk.room = room
    with pytest.raises(SpoolFull):
        spool.append_all(records)
    disk.room = ROOM
    assert spool.append(b"d" * 100, 1) == 7
    assert shipped(spool) == [(1, b"a" * 100), (3, b"b" * 100), (4, b"c" * 100), (7, b"d" * 100)]


def test_records_written_together_need_room_for_all(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, "life-1", bytes_max=3 * (100 + FRAME_BYTES))
    with pytest.raises(SpoolFull):
        spool.append_all([(b"a" * 100, 1)] * 4)
    assert spool.append_all([(b"a" * 100, 1)] * 3) == 1
    assert len(shipped(spool)) == 3
    spool.close()


def test_short_writes_are_completed(spool: Spool, disk: Disk) -> None:
    """A record is whole however many writes it takes."""
    disk.largest_write = 7
    spool.append(b"a" * 100, 1)
    spool.append(b"b" * 100, 1)
    assert shipped(spool) == [(1, b"a" * 100), (2, b"b" * 100)]


def test_a_spool_that_cannot_cut_a_partial_record_off_takes_no_more(tmp_path: Path, disk: Disk) -> None:
    """Anything behind the partial record would be in danger; the next life ignores it."""
    spool = open_spool(tmp_path, "life-1", disk)
    spool.append(b"a" * 100, 1)
    disk.room, disk.cuts = 50, False
    with pytest.raises(SpoolFull):
        spool.append(b"b" * 100, 1)
    disk.room = ROOM
    with pytest.raises(SpoolFull):
        spool.append(b"c" * 100, 1)
    assert not spool.accepting
    spool.close()
    again = open_spool(tmp_path, "life-2")
    assert shipped(again) == [(1, b"a" * 100)]
    again.close()


def test_a_file_size_limit_of_the_system_is_a_full_disk(tmp_path: Path) -> None:
    """With the real system calls, in a process of its own: EFBIG after a part of the record."""
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from services.predictor.spool import Spool; from services.runtime.errors import SpoolFull\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))\n"
        "spool = Spool(Path(sys.argv[1]), 'replica', 'life-1', bytes_max=1 << 20)\n"
        "answered = 0\n"
        "try:\n"
        "    while True: answered = spool.append(b'x' * 500, 1)\n"
        "except SpoolFull: print(answered, spool.size, spool.accepting)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["5", str(5 * (500 + FRAME_BYTES)), "True"]
    again = open_spool(tmp_path, "life-2")
    assert [first for first, _ in shipped(again)] == [1, 2, 3, 4, 5]
    again.close()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 3000


def test_the_bound_counts_what_earlier_lives_left(tmp_path: Path) -> None:
    """And room comes back when it is shipped."""
    first = open_spool(tmp_path, "life-1", bytes_max=1_000)
    first.append(b"a" * 600, 1)
    first.close()
    second = open_spool(tmp_path, "life-2", bytes_max=1_000)
    with pytest.raises(SpoolFull):
        second.append(b"b" * 600, 1)
    assert shipped(second) == [(1, b"a" * 600)]
    second.tidy()
    assert second.append(b"b" * 600, 1) == 1
    second.close()


def test_a_small_spool_takes_records_again_when_they_are_shipped(tmp_path: Path) -> None:
    """Also when its bound is below the size up to which a shipped segment is kept."""
    spool = open_spool(tmp_path, "life-1", bytes_max=1 << 16)
    for _ in range(3):
        first = spool.append(b"a" * 40_000, 1)
        with pytest.raises(SpoolFull):
            spool.append(b"b" * 40_000, 1)
        assert shipped(spool) == [(first, b"a" * 40_000)]
    assert first == 3
    spool.close()


def test_two_processes_of_one_replica_are_refused(spool: Spool, tmp_path: Path) -> None:
    """With a clear message; another replica is welcome."""
    with pytest.raises(SpoolInUse, match="replica"):
        open_spool(tmp_path, "life-2")
    Spool(tmp_path, "other", "life-2", bytes_max=ROOM).close()


def test_a_killed_process_loses_no_record(tmp_path: Path) -> None:
    """kill -9 right after the answer; the lock goes with the process."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from services.predictor.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]), 'replica', 'life-1', bytes_max=1 << 20)\n"
        "for i in range(100): spool.append(b'%d' % i, 1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    again = open_spool(tmp_path, "life-2")
    assert shipped(again) == [(i + 1, b"%d" % i) for i in range(100)]
    again.close()


def test_a_damaged_record_is_lost_alone_and_kept_aside(tmp_path: Path) -> None:
    """Its numbers are known, its bytes are kept for people, its neighbours are shipped."""
    spool = open_spool(tmp_path, "life-1")
    for payload in (b"first", b"second", b"third"):
        spool.append(payload, 10)
    spool.close()
    (segment,) = tmp_path.glob("replica/life-1/*.log")
    segment.write_bytes(segment.read_bytes().replace(b"second", b"sEcond"))
    again = open_spool(tmp_path, "life-2")
    (state, _) = again.incarnations()
    assert (state.highest_sequence, state.pending) == (30, 20)
    batch = again.next_batch(500, ROOM)
    assert batch is not None
    lost = batch.lost[0]
    assert [(type(i), i.first_sequence, i.count) for i in batch.items] == [
        (Spooled, 1, 10),
        (Lost, 11, 10),
        (Spooled, 21, 10),
    ]
    again.set_aside(batch.incarnation, lost)
    (kept,) = tmp_path.glob("replica/quarantine/*.bin")
    assert b"sEcond" in kept.read_bytes()
    again.acknowledge(batch)
    assert again.pending == 0
    again.close()


def test_a_payload_that_imitates_a_record_is_not_taken_for_one(tmp_path: Path) -> None:
    """A record of another incarnation inside of a payload, whose own head and tail are damaged."""
    other = open_spool(tmp_path / "other", "life-0")
    other.append(b"forged", 3)
    other.close()
    (forged,) = (tmp_path / "other").glob("replica/life-0/*.log")
    spool = open_spool(tmp_path, "life-1")
    spool.append(forged.read_bytes(), 1)
    spool.append(b"honest", 1)
    spool.close()
    (segment,) = tmp_path.glob("replica/life-1/*.log")
    content = bytearray(segment.read_bytes())
    content[8] ^= 1
    end = FRAME_BYTES + len(forged.read_bytes())
    content[end - 8] ^= 1
    segment.write_bytes(content)
    again = open_spool(tmp_path, "life-2")
    batch = again.next_batch(500, ROOM)
    assert batch is not None
    assert [(i.first_sequence, i.count) for i in batch.items] == [(1, 1), (2, 1)]
    assert [r.payload for r in batch.records] == [b"honest"]
    again.close()


def test_a_missing_segment_is_lost_and_a_missing_position_is_not(tmp_path: Path) -> None:
    """Numbers jump over the segment; without a position everything there is repeated."""
    spool = Spool(tmp_path, "replica", "life-1", bytes_max=ROOM, segment_bytes_max=300)
    for _ in range(8):
        spool.append(b"x" * 200, 1)
    batch = spool.next_batch(2, ROOM)
    assert batch is not None
    spool.acknowledge(batch)
    spool.close()
    segments = sorted(tmp_path.glob("replica/life-1/*.log"))
    assert [int(s.stem) for s in segments] == [3, 5, 7]
    segments[1].unlink()
    (tmp_path / "replica/life-1/position").write_bytes(b"")
    again = open_spool(tmp_path, "life-2")
    batch = again.next_batch(500, ROOM)
    assert batch is not None
    assert [(type(i).__name__, i.first_sequence, i.count) for i in batch.items] == [
        ("Spooled", 3, 1),
        ("Spooled", 4, 1),
        ("Lost", 5, 2),
        ("Spooled", 7, 1),
        ("Spooled", 8, 1),
    ]
    again.close()


def test_acknowledged_segments_leave_the_disk(tmp_path: Path) -> None:
    """What the logger has takes no room, also in the running life."""
    spool = Spool(tmp_path, "replica", "life-1", bytes_max=8 << 20, segment_bytes_max=2 << 20)
    for _ in range(12):
        spool.append(b"x" * (300 << 10), 1)
    assert spool.size > 3 << 20
    while (batch := spool.next_batch(3, 2 << 20)) is not None:
        spool.acknowledge(batch)
    assert spool.size <= 1 << 20
    assert spool.append(b"y", 1) == 13
    assert shipped(spool) == [(13, b"y")]
    spool.sync()
    spool.close()


def test_nobody_is_answered_whose_segment_did_not_reach_the_disk(tmp_path: Path) -> None:
    """The disk fails when a segment is closed, by a later record, before the earlier one was waited for."""

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    spool = Spool(tmp_path, "replica", "life-1", bytes_max=ROOM, fsync=True, segment_bytes_max=300, datasync=failing)
    spool.append(b"a" * 300, 1)
    spool.append(b"b", 1)
    assert not spool.accepting
    with pytest.raises(SpoolFull):
        spool.sync()
    spool.close()
