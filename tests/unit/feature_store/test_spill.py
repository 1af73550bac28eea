"""Rows on disk: read back as they were written, bounded, and gone afterwards."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.feature_store.reads.histories import BatchStream
from services.feature_store.tables.key_hash import hash_keys
from services.feature_store.tables.ordered_rows import ROW, OrderedRows, side_by_side
from services.feature_store.tables.row_source import TableRows, read_all
from services.feature_store.tables.spill import SpillFolder, gathered
from services.runtime.errors import LimitExceeded

SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())])


def batch(*numbers: int) -> pa.RecordBatch:
    """Rows that say their number twice."""
    return pa.record_batch([pa.array(numbers, pa.int64()), pa.array([f"t{n}" for n in numbers])], schema=SCHEMA)


def files(folder: Path) -> list[Path]:
    """What lies in a folder, however deep."""
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def spills(tmp_path: Path) -> Iterator[SpillFolder]:
    """A folder."""
    made = SpillFolder(tmp_path, reserve_bytes=0)
    yield made
    made.close()


@pytest.mark.parametrize("buffer_bytes", [1, 200, 1 << 20])
async def test_a_partition_is_read_back_in_the_order_it_was_written(
    spills: SpillFolder, tmp_path: Path, buffer_bytes: int
) -> None:
    """However often it was written to the disk in between; and nothing is left."""
    async with spills.open() as spill:
        parts = spill.partitions(SCHEMA, buffer_bytes)
        for start in range(0, 100, 10):
            numbers = list(range(start, start + 10))
            parts.write(batch(*numbers), np.array([n % 3 for n in numbers]))
        parts.finish()
        assert parts.partitions() == [0, 1, 2]
        for part in parts.partitions():
            expected = list(range(part, 100, 3))
            assert parts.read(part)["n"].to_pylist() == expected
            assert parts.read(part)["text"].to_pylist() == [f"t{n}" for n in expected]
            assert parts.count(part) == len(expected)
        assert parts.read(7).num_rows == 0
        assert files(tmp_path)
    assert not files(tmp_path)


@pytest.mark.parametrize("range_rows", [1, 7, 1000])
async def test_rows_written_in_any_order_are_read_in_theirs(spills: SpillFolder, range_rows: int) -> None:
    """As often as wanted, and without the column of their numbers."""
    order = np.random.default_rng(3).permutation(100)
    async with spills.open() as spill:
        rows = OrderedRows(spill, SCHEMA, range_rows)
        for start in range(0, 100, 9):
            taken = order[start : start + 9]
            rows.write(batch(*taken.tolist()).append_column(ROW, pa.array(taken)))
        rows.finish()
        assert (rows.num_rows, rows.schema) == (100, SCHEMA)
        for _ in range(2):
            assert read_all(rows).equals(pa.Table.from_batches([batch(*range(100))]))
        assert all(b.num_rows <= range_rows for b in rows.batches())


@given(cuts=st.lists(st.lists(st.integers(0, 20), max_size=4), min_size=1, max_size=3))
def test_sources_side_by_side_have_the_same_rows(cuts: list[list[int]]) -> None:
    """However each of them is cut into batches."""
    whole = batch(*range(20))

    def source(at: list[int]) -> Iterator[pa.RecordBatch]:
        bounds = sorted({0, 20, *at})
        return (whole.slice(a, b - a) for a, b in itertools.pairwise(bounds))

    found = list(side_by_side([source(at) for at in cuts]))
    for position in range(len(cuts)):
        assert pa.Table.from_batches([batches[position] for batches in found]).equals(pa.Table.from_batches([whole]))


@pytest.mark.parametrize(("memory_bytes", "in_memory"), [(1, False), (1 << 20, True)])
async def test_a_result_is_kept_in_memory_or_in_a_file(
    spills: SpillFolder, tmp_path: Path, memory_bytes: int, in_memory: bool
) -> None:
    """With the same rows."""
    batches = iter([batch(1, 2), batch(3), batch(4, 5)])
    async with spills.open() as spill:
        rows = await gathered(BatchStream(SCHEMA, lambda: next(batches, None)), spill, memory_bytes)
        assert isinstance(rows, TableRows) == in_memory
        assert bool(files(tmp_path)) != in_memory
        assert rows.num_rows == 5
        assert read_all(rows)["n"].to_pylist() == [1, 2, 3, 4, 5]
    assert not files(tmp_path)


async def test_all_joins_together_have_a_bound(tmp_path: Path) -> None:
    """Whoever goes beyond it fails, leaves nothing behind, and gives the room back to others."""
    spills = SpillFolder(tmp_path, bytes_max=800, reserve_bytes=0)
    async with spills.open() as one, spills.open() as other:
        one.file(SCHEMA).write(batch(*range(20)))
        other.file(SCHEMA).write(batch(*range(20)))
        with pytest.raises(LimitExceeded, match="too much room"):
            other.file(SCHEMA).write(batch(*range(20)))
    async with spills.open() as spill:
        spill.file(SCHEMA).write(batch(*range(40)))
    assert not files(tmp_path)
    spills.close()


async def test_some_of_the_disk_is_left_to_others(tmp_path: Path) -> None:
    """A reserve that no disk has is never met."""
    spills = SpillFolder(tmp_path, reserve_bytes=1 << 62)
    with pytest.raises(LimitExceeded, match="no room"):
        async with spills.open() as spill:
            spill.file(SCHEMA).write(batch(1))
    assert not files(tmp_path)
    spills.close()


_FULL = """
import asyncio, resource, signal, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from services.feature_store.tables.spill import SpillFolder
from services.runtime.errors import LimitExceeded

folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
schema = pa.schema([("n", pa.int64())])

async def fill():
    spills = SpillFolder(folder, reserve_bytes=0)
    for write in (lambda s, b: s.file(schema).write(b), lambda s, b: partitioned(s, b)):
        try:
            async with spills.open() as spill:
                for _ in range(10):
                    write(spill, pa.record_batch([pa.array(np.arange(20_000))], schema=schema))
        except LimitExceeded as error:
            print(error.metadata["limit"], [path for path in folder.rglob("*") if path.is_file()])

def partitioned(spill, batch):
    parts = spill.partitions(schema, 1)
    parts.write(batch, np.zeros(batch.num_rows, np.int64))

asyncio.run(fill())
"""


def test_a_full_disk_ends_a_join_and_leaves_nothing(tmp_path: Path) -> None:
    """The system's own refusal to write more; here a limit on the size of files stands for the disk."""
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["disk []", "disk []"]


key_values = st.lists(
    st.tuples(st.text(max_size=5), st.integers(-(2**63), 2**63 - 1), st.booleans()), min_size=1, max_size=30
)


@given(rows=key_values, start=st.integers(0, 29))
def test_a_hash_depends_on_the_keys_alone(rows: list[tuple[str, int, bool]], start: int) -> None:
    """Not on the rows around them, nor on offsets and layouts."""
    types = (pa.string(), pa.int64(), pa.bool_())
    columns = [pa.array(values, type) for values, type in zip(zip(*rows, strict=True), types, strict=True)]
    whole = hash_keys(columns)
    start = min(start, len(rows) - 1)
    assert (hash_keys([column.slice(start) for column in columns]) == whole[start:]).all()
    assert (hash_keys([columns[0].cast(pa.large_string()), *columns[1:]]) == whole).all()
    by_key = dict(zip(rows, whole.tolist(), strict=True))
    assert [by_key[row] for row in rows] == whole.tolist()


def test_hashes_spread_and_tell_composite_keys_apart() -> None:
    """Neighbouring numbers and texts fall into all parts evenly; columns are not concatenated."""
    many = pa.array(np.arange(100_000))
    for column in (many, many.cast(pa.string())):
        counts = np.bincount((hash_keys([column]) % np.uint64(37)).astype(np.int64), minlength=37)
        assert counts.min() > 0.9 * counts.mean()
    first, second = pa.array(["1", "12", "", "123"]), pa.array(["23", "3", "123", ""])
    assert len(set(hash_keys([first, second]).tolist())) == 4


_KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
import pyarrow as pa
from services.feature_store.tables.spill import SpillFolder

schema = pa.schema([("n", pa.int64())])

async def die():
    async with SpillFolder(Path(sys.argv[1]), reserve_bytes=0).open() as spill:
        file = spill.file(schema)
        file.write(pa.record_batch([pa.array(range(50_000))], schema=schema))
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(die())
"""


def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    """But not what another process still works with."""
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == -9
    assert files(tmp_path)
    one = SpillFolder(tmp_path)
    assert not files(tmp_path)
    one.new_path().write_text("in use")
    other = SpillFolder(tmp_path)
    assert len(files(tmp_path)) == 1
    for spills in (one, other):
        spills.close()
    assert not files(tmp_path)
