"""Which values come more than once among any number of rows, in bounded memory.

Hashes of 64 bits are gathered first, sorted in runs, beyond RUN_HASHES on disk; only values whose hash came more than
once are then looked at themselves, some at a time, in another pass over the rows. So the answer is exact, and a pass
is needed only where something repeats.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.feature_store.tables.key_hash import hash_keys
from services.feature_store.tables.workspace import Workspace

# Hashes in memory, 8 bytes each.
RUN_HASHES = 1 << 22
# Runs on disk are merged in so many parts, by the first bits of the hashes.
_PARTS = 256
# Values that are looked at in one pass.
COUNTED_MAX = 250_000
Hashes: TypeAlias = NDArray[np.uint64]
Columns: TypeAlias = Sequence[pa.Array]


class RepeatedHashes:
    """Finds the hashes that come more than once. Close it at the end; its methods block."""

    def __init__(self, workspace: Workspace, run_hashes: int = RUN_HASHES) -> None:
        self._workspace = workspace
        self._run_hashes = run_hashes
        self._run: list[Hashes] = []
        self._in_run = 0
        self._path: Path | None = None
        self._written = 0
        # Where the parts of each run on disk begin, in hashes, and where its last one ends.
        self._bounds: list[NDArray[np.int64]] = []

    @property
    def in_file(self) -> bool:
        """Whether some are on disk."""
        return self._path is not None

    def add(self, hashes: Hashes) -> None:
        """Takes hashes. Raises LimitExceeded."""
        self._run.append(hashes)
        self._in_run += len(hashes)
        if self._in_run >= self._run_hashes:
            self._write()

    def found(self) -> Hashes:
        """Those that came more than once, sorted, each once. Raises LimitExceeded."""
        if self._path is None:
            return _repeated(np.sort(_joined(self._run)))
        self._write()
        with self._path.open("rb") as file:
            return _joined([_repeated(np.sort(_joined(self._part(file, part)))) for part in range(_PARTS)])

    def close(self) -> None:
        """Removes what is on disk."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._workspace.removed(self._written * 8)
            self._path = None

    def _write(self) -> None:
        run = np.sort(_joined(self._run))
        with self._workspace.writing(run.nbytes):
            self._path = self._path or self._workspace.new_path()
            with self._path.open("ab") as file:
                file.write(run.data)
        firsts = np.arange(_PARTS, dtype=np.uint64) << np.uint64(56)
        self._bounds.append(self._written + np.append(np.searchsorted(run, firsts), len(run)))
        self._written += len(run)
        self._run, self._in_run = [], 0

    def _part(self, file: Any, part: int) -> list[Hashes]:
        pieces = []
        for bounds in self._bounds:
            start, end = int(bounds[part]), int(bounds[part + 1])
            file.seek(start * 8)
            pieces.append(np.frombuffer(file.read((end - start) * 8), np.uint64))
        return pieces


class SharedValues:
    """The values of a column that several rows share."""

    def __init__(self, hashes: Hashes, apart: frozenset[Any]) -> None:
        self._hashes = hashes
        # Values that have the hash of others and come once all the same.
        self._apart = apart

    def among(self, column: pa.Array) -> NDArray[np.bool_]:
        """Which rows have one; NULL is none."""
        shared = np.asarray(column.is_valid()) & contained(row_hashes([column]), self._hashes)
        if self._apart:
            for row in np.flatnonzero(shared):
                shared[row] = column[int(row)].as_py() not in self._apart
        return shared


def shared_values(columns: Callable[[], Iterator[pa.Array]], workspace: Workspace) -> SharedValues:
    """The values that come more than once in a column that comes in pieces, as often as it is asked for."""
    with contextlib.closing(RepeatedHashes(workspace)) as repeated:
        for column in columns():
            present = column.drop_null()
            repeated.add(row_hashes([present]))
        hashes = repeated.found()
    apart: set[Any] = set()
    for counts in counted(lambda: ([column.drop_null()] for column in columns()), hashes):
        apart.update(value for (value,), count in counts.items() if count == 1)
    return SharedValues(hashes, frozenset(apart))


def counted(rows: Callable[[], Iterator[Columns]], hashes: Hashes) -> Iterator[dict[tuple[Any, ...], int]]:
    """How often each value comes whose hash is one of `hashes`: COUNTED_MAX hashes at a time, a pass for each."""
    for start in range(0, len(hashes), COUNTED_MAX):
        some = hashes[start : start + COUNTED_MAX]
        counts: dict[tuple[Any, ...], int] = {}
        for columns in rows():
            _count(columns, some, counts)
        yield counts


def row_hashes(columns: Columns) -> Hashes:
    """The hash of each row, (n,) uint64; numbers, bools, texts and instants. Rows with a NULL have any."""
    return hash_keys([_hashable(column) for column in columns])


def contained(values: Hashes, among: Hashes) -> NDArray[np.bool_]:
    """Which values are among sorted ones."""
    if not len(among):
        return np.zeros(len(values), np.bool_)
    found: NDArray[np.bool_] = among[np.minimum(np.searchsorted(among, values), len(among) - 1)] == values
    return found


def _count(columns: Columns, hashes: Hashes, counts: dict[tuple[Any, ...], int]) -> None:
    chosen = contained(row_hashes(columns), hashes)
    if not chosen.any():
        return
    names = [str(i) for i in range(len(columns))]
    rows = pa.table(list(columns), names=names).filter(pa.array(chosen))
    groups = rows.group_by(names, use_threads=False).aggregate([([], "count_all")])
    values = zip(*(groups[name].to_pylist() for name in names), strict=True)
    for value, count in zip(values, groups["count_all"].to_pylist(), strict=True):
        counts[value] = counts.get(value, 0) + count


def _hashable(column: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.int64())
    if pa.types.is_floating(column.type):
        # Zeros of both signs are equal.
        return pa.array((np.asarray(column.fill_null(0.0)) + 0.0).view(np.int64))
    return column


def _repeated(ordered: Hashes) -> Hashes:
    """Those that stand beside an equal one, each once."""
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    each: Hashes = again[np.concatenate([np.ones(min(len(again), 1), np.bool_), again[1:] != again[:-1]])]
    return each


def _joined(pieces: Sequence[Hashes]) -> Hashes:
    return np.concatenate(pieces) if pieces else np.empty(0, np.uint64)
