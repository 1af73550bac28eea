"""Point-in-time joins over Arrow arrays in memory: NumPy where they are small, DuckDB where they are large.

For a spine row at time t the engine chooses, among the rows with the same key, the one with the greatest (event time,
commit) whose event time is not after t (before t when strict) and, with `known_by`, whose known_at is not after t
either. It answers positions only: values never pass through SQL, so their types and bits stay as they are.

With `known_by` a join on event time alone is wrong when rows arrive late. A row counts from `effective = max(event
time, known_at)` on (strict: event time + 1 µs); along effective time the running maximum of (event time, commit) is
the row that is valid, and an ASOF join on effective time finds it.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.runtime.errors import LimitExceeded
from services.runtime.threads import in_thread, in_thread_unless

THREADS = 2
MEMORY_MAX = "2GB"
# Joins at once: each may use all threads and a part of the memory.
JOINS_MAX = 2
# Rows of spine and history together up to which one sort in NumPy costs less than a query.
SMALL_ROWS_MAX = 100_000
INLINE_ROWS_MAX = 4_096

_BY_TIME = "SELECT {keys}, since, max(rank) AS rank FROM history GROUP BY {keys}, since"
# RANGE takes rows with an equal `since` together, whatever their order.
_RUNNING = """
SELECT DISTINCT {keys}, since, max(rank) OVER (PARTITION BY {keys} ORDER BY since RANGE UNBOUNDED PRECEDING) AS rank
FROM history"""
_JOIN = """
SELECT spine.row AS row, chosen.rank AS rank
FROM spine ASOF JOIN ({chosen}) AS chosen ON {equal} AND spine.t >= chosen.since"""


@dataclass(frozen=True, slots=True, eq=False)
class AsOfSide:
    """Keys of n rows, each an Arrow array, and their times, (n,) int64 microseconds."""

    keys: tuple[pa.Array, ...]
    times: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class AsOfHistory(AsOfSide):
    """Rows to choose from; `times` are event times. `commits` and `known_at` are (n,) int64."""

    commits: NDArray[np.int64]
    known_at: NDArray[np.int64]


class AsOfEngine(Protocol):
    """Chooses rows as of times."""

    async def choose(self, spine: AsOfSide, history: AsOfHistory, *, strict: bool, known_by: bool) -> NDArray[np.int64]:
        """The position in `history` of the row that each spine row sees, (n,) int64; -1 for none."""
        ...


class NumpyAsOf:
    """The engine in NumPy: one sort of spine and history together, then one pass that carries the greatest rank on."""

    async def choose(self, spine: AsOfSide, history: AsOfHistory, *, strict: bool, known_by: bool) -> NDArray[np.int64]:
        """See `AsOfEngine.choose`."""
        small = len(spine.times) + len(history.times) <= INLINE_ROWS_MAX
        return await in_thread_unless(small, _choose_sorted, spine, history, strict, known_by)


class SizedAsOf:
    """One engine for small joins, another one for large ones."""

    def __init__(self, small: AsOfEngine, large: AsOfEngine, small_rows_max: int = SMALL_ROWS_MAX) -> None:
        self._small = small
        self._large = large
        self._small_rows_max = small_rows_max

    async def choose(self, spine: AsOfSide, history: AsOfHistory, *, strict: bool, known_by: bool) -> NDArray[np.int64]:
        """See `AsOfEngine.choose`."""
        small = len(spine.times) + len(history.times) <= self._small_rows_max
        return await (self._small if small else self._large).choose(spine, history, strict=strict, known_by=known_by)


class DuckDbAsOf:
    """The engine in DuckDB. `folder` takes what does not fit into memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opening = threading.Lock()
        self._permits = asyncio.Semaphore(JOINS_MAX)
        self._database: Any = None

    async def choose(self, spine: AsOfSide, history: AsOfHistory, *, strict: bool, known_by: bool) -> NDArray[np.int64]:
        """See `AsOfEngine.choose`. Waits while JOINS_MAX others run."""
        async with self._permits:
            return await in_thread(self._choose, spine, history, strict, known_by)

    def close(self) -> None:
        """Frees the engine's memory."""
        with self._opening:
            if self._database is not None:
                self._database.close()
                self._database = None

    def _choose(self, spine: AsOfSide, history: AsOfHistory, strict: bool, known_by: bool) -> NDArray[np.int64]:
        chosen = np.full(len(spine.times), -1, np.int64)
        if not len(spine.times) or not len(history.times):
            return chosen
        order, rank, since = _ranked(history, strict, known_by)
        names = [f"k{i}" for i in range(len(spine.keys))]
        left = pa.table([*spine.keys, spine.times, np.arange(len(spine.times))], names=[*names, "t", "row"])
        right = pa.table([*history.keys, since, rank], names=[*names, "since", "rank"])
        keys = ", ".join(names)
        equal = " AND ".join(f"spine.{name} = chosen.{name}" for name in names)
        statement = _JOIN.format(chosen=(_RUNNING if known_by else _BY_TIME).format(keys=keys), equal=equal)
        found = self._run(statement, left, right)
        chosen[found["row"]] = order[found["rank"]]
        return chosen

    def _run(self, statement: str, spine: pa.Table, history: pa.Table) -> dict[str, NDArray[Any]]:
        # Takes a tenth of a second that a start-up should not wait for.
        import duckdb

        with self._connection() as connection:
            connection.register("spine", spine)
            connection.register("history", history)
            try:
                result: dict[str, NDArray[Any]] = connection.execute(statement).fetchnumpy()
            except (MemoryError, duckdb.OutOfMemoryException) as error:
                raise LimitExceeded("the join needs more memory than it may take", limit="join_memory") from error
        return result

    def _connection(self) -> Any:
        with self._opening:
            if self._database is None:
                import duckdb

                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._database = duckdb.connect(
                    ":memory:",
                    config={
                        "threads": THREADS,
                        "memory_limit": MEMORY_MAX,
                        "temp_directory": str(self._folder),
                        "autoinstall_known_extensions": False,
                        "autoload_known_extensions": False,
                    },
                )
            return self._database.cursor()


def _choose_sorted(spine: AsOfSide, history: AsOfHistory, strict: bool, known_by: bool) -> NDArray[np.int64]:
    """See `AsOfEngine.choose`: along (key, time) a spine row sees the greatest rank that came before it."""
    asked, candidates = len(spine.times), len(history.times)
    chosen = np.full(asked, -1, np.int64)
    if not asked or not candidates:
        return chosen
    order, rank, since = _ranked(history, strict, known_by)
    key = _key_numbers(history.keys, spine.keys)
    # At one time the history comes before the spine.
    is_spine = np.arange(candidates + asked) >= candidates
    along = np.lexsort((is_spine, np.concatenate([since, spine.times]), key))
    # Each key's numbers lie above those of the key before it, so that the maximum starts anew.
    floor = key * (candidates + 1)
    carried = np.empty(candidates + asked, np.int64)
    carried[along] = np.maximum.accumulate((floor + np.concatenate([rank + 1, np.zeros(asked, np.int64)]))[along])
    seen = (carried - floor)[candidates:] - 1
    seen[_null_keys(spine.keys)] = -1
    found = seen >= 0
    chosen[found] = order[seen[found]]
    return chosen


def counts_since(history: AsOfHistory, *, strict: bool, known_by: bool) -> NDArray[np.int64]:
    """The time from which on each row counts, (n,) int64."""
    since = history.times + 1 if strict else history.times
    return np.maximum(since, history.known_at) if known_by else since


def last_per_key(history: AsOfHistory) -> NDArray[np.int64]:
    """The position of each key's row with the greatest (event time, commit)."""
    if not len(history.times):
        return np.empty(0, np.int64)
    key = _key_numbers(history.keys, tuple(k.slice(0, 0) for k in history.keys))
    order = np.lexsort((history.commits, history.times, key))
    ends: NDArray[np.int64] = np.append(np.flatnonzero(np.diff(key[order])), len(order) - 1)
    return np.asarray(order[ends])


def _ranked(
    history: AsOfHistory, strict: bool, known_by: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The rows by (event time, commit), each row's position in that order, and the time from which on it counts."""
    # Position i of `order` is the row of rank i: the greater rank is the later row.
    order = np.lexsort((history.commits, history.times))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return order, rank, counts_since(history, strict=strict, known_by=known_by)


def _key_numbers(first: tuple[pa.Array, ...], second: tuple[pa.Array, ...]) -> NDArray[np.int64]:
    """A number per row of `first` and then `second`, equal where all keys are; small: below the number of rows."""
    numbers: NDArray[np.int64] | None = None
    for one, other in zip(first, second, strict=True):
        indices = pa.concat_arrays([one, other]).dictionary_encode(null_encoding="encode").indices
        codes = np.asarray(indices).astype(np.int64)
        if numbers is None:
            numbers = codes
        else:
            numbers = np.unique(numbers * (int(codes.max()) + 1) + codes, return_inverse=True)[1]
    assert numbers is not None
    return numbers


def _null_keys(keys: tuple[pa.Array, ...]) -> NDArray[np.bool_]:
    missing = np.zeros(len(keys[0]), np.bool_)
    for key in keys:
        missing |= np.asarray(key.is_null())
    return missing
