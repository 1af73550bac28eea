"""Several writers of the commit log in one process: `python -m ... URL PASSWORD_FILE LIFE WRITERS WRITES`.

Each writer repeats a write under its id until it is answered, however often its connection is cut. A line is printed
per answer: write id, commit, microseconds of its time, rows. The first writer is slow: others publish while it copies.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ParamSpec, TypeVar

import pyarrow as pa

from foresight.values import micros_from_instant
from services.feature_store.commits import AcceptedRows, WriteOrigin
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.postgres.catalogue import Catalogue
from services.feature_store.postgres.commit_log import CommitLog
from services.runtime.database import Database
from services.runtime.errors import Unavailable
from services.runtime.settings import DatabaseSettings

P = ParamSpec("P")
R = TypeVar("R")
GROUPS = ("first", "second")
T0 = datetime(2026, 2, 1, tzinfo=UTC)
UTC_MICROS = pa.timestamp("us", "UTC")
BATCHES = 3
ROWS_MAX = 300
PAUSE_S = 0.05
ATTEMPTS = 1_000
SCHEMA = pa.schema([("id", pa.int64()), ("event_time", UTC_MICROS), ("value", pa.float64())])


class Rows:
    """`RowsToWrite`: the ids from `first` on, in batches, with a pause after each when it is slow."""

    ready = False
    schema = SCHEMA

    def __init__(self, first: int, rows: int, *, slow: bool) -> None:
        self._first = first
        self._rows = rows
        self._slow = slow

    def accepted(self) -> Iterator[pa.RecordBatch]:
        """See `RowsToWrite.accepted`."""
        size = -(-self._rows // BATCHES)
        for start in range(0, self._rows, size):
            ids = range(self._first + start, self._first + min(start + size, self._rows))
            times = [T0 + timedelta(seconds=i % 1_000) for i in ids]
            yield pa.record_batch([pa.array(ids, pa.int64()), pa.array(times, UTC_MICROS), [0.0] * len(ids)], SCHEMA)
            if self._slow:
                threading.Event().wait(PAUSE_S)

    def finish(self) -> AcceptedRows:
        """See `RowsToWrite.finish`."""
        return AcceptedRows(self._rows, T0 + timedelta(seconds=1_000), self.content())

    def content(self) -> str:
        """See `RowsToWrite.content`."""
        return f"{self._first} {self._rows}"


async def publish(commits: CommitLog, groups: list[StoredGroup], name: str, first: int, writes: int) -> None:
    """One writer; its ids begin at `first`."""
    chance = random.Random(name)
    for turn in range(writes):
        rows = chance.choice((1, 2, 30, ROWS_MAX))
        group = chance.randrange(len(groups))
        write_id = f"{name} {turn} {group} {first} {rows}"
        made = Rows(first, rows, slow=name.endswith("/0"))
        first += rows
        commit = await patiently(commits.write, groups[group], made, WriteOrigin(write_id))
        print(write_id, commit.number, micros_from_instant(commit.committed_at), commit.rows, sep="|", flush=True)


async def patiently(call: Callable[P, Awaitable[R]], *given: P.args, **named: P.kwargs) -> R:
    """The answer of a call that is repeated while its connection is cut, but not once the database is gone."""
    for _ in range(ATTEMPTS):
        try:
            return await call(*given, **named)
        except Unavailable:
            await asyncio.sleep(0.01)
    raise TimeoutError("the database does not come back")


async def main(url: str, password_file: str, life: str, writers: str, writes: str) -> None:
    """Writes from several tasks until all is written."""
    settings = DatabaseSettings(url=url, password_file=Path(password_file))
    database = Database(settings, "feature_store")
    commits, catalogue = CommitLog(database), Catalogue(database)
    async with asyncio.TaskGroup() as tasks:
        groups = [await patiently(catalogue.group, Reference(name)) for name in GROUPS]
        print("publishing", flush=True)
        for writer in range(int(writers)):
            first = (int(life) * int(writers) + writer) * 10_000_000
            tasks.create_task(publish(commits, groups, f"{life}/{writer}", first, int(writes)))
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
