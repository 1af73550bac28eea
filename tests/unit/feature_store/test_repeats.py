"""Values that come more than once: found exactly, in memory or on disk."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.feature_store.tables.key_hash import hash_keys
from services.feature_store.tables.repeats import RepeatedHashes, SharedValues, counted, row_hashes, shared_values
from services.feature_store.tables.workspace import Workspace
from services.runtime.errors import LimitExceeded


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("workspace"))


@given(
    pieces=st.lists(st.lists(st.integers(0, 30).map(lambda n: n * 2**58 + n % 3), max_size=20), max_size=8),
    run=st.integers(1, 40),
)
def test_hashes_that_come_again_are_found(pieces: list[list[int]], run: int, workspace: Workspace) -> None:
    """However many are held at once, and wherever they lie."""
    repeated = RepeatedHashes(workspace, run_hashes=run)
    for piece in pieces:
        repeated.add(np.array([n % 2**64 for n in piece], np.uint64))
    expected = sorted(n for n, count in Counter(n % 2**64 for piece in pieces for n in piece).items() if count > 1)
    assert repeated.found().tolist() == expected
    repeated.close()


def test_what_is_on_disk_is_removed_and_bounded(tmp_path: Path) -> None:
    """A disk that may not be filled ends it; nothing is left."""
    workspace = Workspace(tmp_path, disk_bytes_max=10_000)
    repeated = RepeatedHashes(workspace, run_hashes=100)
    for _ in range(12):
        repeated.add(np.arange(100, dtype=np.uint64))
    with pytest.raises(LimitExceeded):
        repeated.add(np.arange(100, dtype=np.uint64))
    repeated.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    again = RepeatedHashes(workspace, run_hashes=100)
    again.add(np.arange(1_200, dtype=np.uint64))
    again.close()


def test_values_with_the_hash_of_another_are_told_apart() -> None:
    """Only those that themselves come again are shared."""
    column = pa.array(["a", "b", None, "c"])
    hashes = np.sort(row_hashes([pa.array(["a", "b"])]))
    shared = SharedValues(hashes, frozenset(["b"]))
    assert shared.among(column).tolist() == [True, False, False, False]


def test_counts_are_of_values_and_come_some_at_a_time(workspace: Workspace) -> None:
    """A value that comes once is counted once, though its hash is asked for."""
    columns = [pa.array(["x", "y", "x", "z"]), pa.array([1, 1, 1, 2])]
    asked = np.sort(row_hashes([pa.array(["x", "z"]), pa.array([1, 2])]))
    assert list(counted(lambda: iter([columns, columns]), asked)) == [{("x", 1): 4, ("z", 2): 2}]
    assert list(counted(lambda: iter([columns]), asked[:0])) == []
    shared = shared_values(lambda: iter([columns[0], pa.array(["q", None])]), workspace)
    assert shared.among(pa.array(["x", "y", "q", None])).tolist() == [True, False, False, False]


def test_hashes_of_long_texts_take_little_memory() -> None:
    """A batch of a write may be all text; a byte of it must not take tens of bytes."""
    texts = pa.array([f"{i:04}" * 1_024 for i in range(2_048)])
    expected = [row_hashes([texts.slice(i, 1)])[0] for i in (0, 1, 1_023, 2_047)]
    tracemalloc.start()
    try:
        hashes = row_hashes([texts])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert hashes[[0, 1, 1_023, 2_047]].tolist() == expected
    assert peak < 2 * texts.nbytes


@given(st.lists(st.one_of(st.none(), st.text(max_size=9)), max_size=40), st.integers(1, 20))
def test_a_text_has_one_hash_wherever_it_is_cut(texts: list[str | None], size: int) -> None:
    """Whatever stands before it in the batch, and however many texts are hashed at once."""
    column = pa.array(texts, pa.string())
    alone = [hash_keys([column.slice(i, 1)])[0] for i in range(len(column))]
    assert hash_keys([column], size).tolist() == alone
    assert hash_keys([column.slice(len(column) // 2)], size).tolist() == alone[len(column) // 2 :]
