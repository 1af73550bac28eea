"""Point-in-time joins with DuckDB over Arrow tables in memory.

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
from services.runtime.threads import in_thread

THREADS = 2
MEMORY_MAX = "4GB"
# Joins at once: each may use all threads and a part of the memory.
JOINS_MAX = 2

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
        # Position i of `order` is the row of rank i: the greater rank is the later row.
        order = np.lexsort((history.commits, history.times))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        since = history.times + 1 if strict else history.times
        if known_by:
            since = np.maximum(since, history.known_at)
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

                self._folder.mkdir(parents=True, exist_ok=True)
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
