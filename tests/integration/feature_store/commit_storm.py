"""Many writers and readers of one commit log, with connections that are cut and processes that are killed.

`storm` checks while it rages, and afterwards against what the database has: no watermark gained a row, every reader by
cursor saw every row once, times rise with numbers, and every write that was answered is there, whole and once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from foresight.values import DataType, Field, micros_from_instant
from services.feature_store.commits import PublishedCommit
from services.feature_store.groups import StoredGroup
from services.feature_store.postgres.published_rows import PublishedRowReader
from services.feature_store.tables.row_source import read_all
from services.feature_store.tables.scratch import ScratchFolder
from services.runtime.settings import DatabaseSettings
from tests.integration.feature_store.publishing_process import GROUPS
from tests.integration.feature_store.rig import Store, running_store

WRITER_ROLE = "storm_writer"
PAGE = 7


@dataclass(frozen=True)
class Weather:
    """How it rages: `processes` with `writers` each, of `writes` commits; so many processes are killed, and replaced by
    new ones if `replaced`; `cuts` connections of writers are cut, one every `cut_every_s` seconds on average."""

    processes: int
    writers: int
    writes: int
    kills: int
    cuts: int
    cut_every_s: float
    readers: int
    seed: int
    replaced: bool = False


@dataclass
class Seen:
    """What was seen meanwhile."""

    # Per reader the commits in the order in which they came, and the ids of their rows.
    read: list[list[tuple[PublishedCommit, list[int]]]] = field(default_factory=list)
    # Watermarks with the number and the sum of all ids up to them.
    watermarks: dict[int, tuple[int, int]] = field(default_factory=dict)
    # Instants with the last commit by then.
    instants: dict[datetime, int] = field(default_factory=dict)
    # Answers of writers: write id to commit, its time and its rows.
    answers: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    cuts: int = 0
    kills: int = 0


async def storm(settings: DatabaseSettings, folder: Path, weather: Weather) -> Seen:
    """Lets it rage, and checks everything."""
    seen, over = Seen(read=[[] for _ in range(weather.readers)]), asyncio.Event()
    async with running_store(settings, folder, applying=False) as store, _connected(settings) as outside:
        groups = await _groups(store)
        theirs = await _writer_role(outside, settings)
        rows = PublishedRowReader(store.database, ScratchFolder(folder / "storm"))
        readers = [asyncio.create_task(_read(store, rows, groups, mine, over)) for mine in seen.read]
        watching = asyncio.create_task(_watch(store, groups, seen, over))
        cutting = asyncio.create_task(_cut(outside, weather, seen, over))
        await _write(theirs, weather, seen)
        over.set()
        await asyncio.gather(*readers, watching, cutting)
        await _check(store, groups, seen)
    return seen


async def _groups(store: Store) -> list[StoredGroup]:
    for name in GROUPS:
        await store.group(name, [Field("id", DataType.INT64)], [Field("value", DataType.FLOAT64)])
    return [await store.registry.group_by_id(number) for number in range(1, len(GROUPS) + 1)]


async def _write(theirs: DatabaseSettings, weather: Weather, seen: Seen) -> None:
    """Runs the writing processes; some are killed at some time in their lives."""
    chance = random.Random(weather.seed)
    doomed = set(chance.sample(range(weather.processes), weather.kills))
    lives = iter(range(weather.processes, 10_000))

    async def follow(process: asyncio.subprocess.Process, dies_after: int) -> None:
        """Takes the answers, also those that were printed before the process was killed."""
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"publishing\n"
        answered = 0
        async for line in process.stdout:
            if not line.endswith(b"\n"):
                return
            write_id, *numbers = line.decode().strip().split("|")
            seen.answers[write_id] = (int(numbers[0]), int(numbers[1]), int(numbers[2]))
            answered += 1
            if answered == dies_after:
                # Not by `process.kill`, which looks whether it lives and so may take its end from who waits for it.
                os.kill(process.pid, signal.SIGKILL)

    async def live(number: int, dies: bool) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.feature_store.publishing_process"),
            *(theirs.url, str(theirs.password_file), str(number), str(weather.writers), str(weather.writes)),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            await follow(process, chance.randrange(1, weather.writers * weather.writes // 2) if dies else 0)
        except BaseException:
            os.kill(process.pid, signal.SIGKILL)
            raise
        assert await process.wait() == (-signal.SIGKILL if dies else 0)
        if dies:
            seen.kills += 1
            if weather.replaced:
                await live(next(lives), False)

    async with asyncio.TaskGroup() as tasks:
        for number in range(weather.processes):
            tasks.create_task(live(number, number in doomed))


async def _read(
    store: Store,
    rows: PublishedRowReader,
    groups: list[StoredGroup],
    mine: list[tuple[PublishedCommit, list[int]]],
    over: asyncio.Event,
) -> None:
    """Follows the log by cursor, as the applier does; goes on to the end once nobody writes any more."""
    cursor = 0
    while True:
        last_look = over.is_set()
        found = await store.commits.after(cursor, PAGE)
        for commit in found:
            async with rows.of_writes(groups[commit.group_id - 1], [commit.write], commit.rows) as source:
                mine.append((commit, read_all(source)["id"].to_pylist()))
            cursor = commit.number
        if not found and last_look:
            return
        await asyncio.sleep(0 if found else 0.005)


async def _watch(store: Store, groups: list[StoredGroup], seen: Seen, over: asyncio.Event) -> None:
    """Takes watermarks, by number and by time, and what is there up to them."""
    while not over.is_set():
        last = await store.commits.last()
        if last not in seen.watermarks:
            seen.watermarks[last] = await _up_to(store, last, groups)
        instant = datetime.now(UTC) - timedelta(milliseconds=1)
        seen.instants[instant] = await store.commits.last_by(instant)
        await asyncio.sleep(0.01)


async def _up_to(store: Store, commit: int, groups: list[StoredGroup]) -> tuple[int, int]:
    parts = " UNION ALL ".join(
        f"SELECT r.k0 FROM rows_{group.id} r JOIN commits c ON c.write = r.write WHERE c.commit <= {commit}"
        for group in groups
    )
    async with store.database.statements() as connection:
        statement = f"SELECT count(*) AS rows, coalesce(sum(k0), 0) AS total FROM ({parts}) AS found"
        found = (await connection.exec_driver_sql(statement)).mappings().one()
    return int(found["rows"]), int(found["total"])


async def _cut(outside: asyncpg.Connection, weather: Weather, seen: Seen, over: asyncio.Event) -> None:
    """Ends connections of writers that are in a transaction."""
    chance = random.Random(weather.seed + 1)
    statement = (
        "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity WHERE usename = $1 "
        "AND datname = current_database() AND state <> 'idle' ORDER BY random() LIMIT 1) AS victims"
    )
    while not over.is_set() and seen.cuts < weather.cuts:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(weather.cut_every_s * 2 * chance.random()):
                await over.wait()
        seen.cuts += await outside.fetchval(statement, WRITER_ROLE)


async def _check(store: Store, groups: list[StoredGroup], seen: Seen) -> None:
    commits = await store.commits.after(0, 1_000_000)
    assert [commit.number for commit in commits] == list(range(1, len(commits) + 1))
    async with store.database.statements() as connection:
        found = await connection.exec_driver_sql("SELECT write_id, commit, committed_at, rows FROM commits ORDER BY 2")
        kept = {row.write_id: (row.commit, micros_from_instant(row.committed_at), row.rows) for row in found}
    times = [time for _, time, _ in kept.values()]
    assert all(earlier < later for earlier, later in itertools.pairwise(times))
    # Every write that was answered is there as it was answered, and each that is there is whole.
    assert len(kept) == len(commits)
    assert seen.answers.items() <= kept.items()
    ids = {commit.number: found for commit, found in seen.read[0]}
    for write_id, (number, _, rows) in kept.items():
        *_, first, wanted = (int(part) for part in write_id.split(" ")[2:])
        assert rows == wanted
        assert sorted(ids[number]) == list(range(first, first + wanted))
    # Every reader saw all commits in order, and every row once.
    for mine in seen.read:
        assert [commit for commit, _ in mine] == commits
        assert max(Counter(i for _, found in mine for i in found).values(), default=1) == 1
        assert {commit.number: sorted(found) for commit, found in mine} == {n: sorted(i) for n, i in ids.items()}
    # No watermark gained a row, and no instant a commit.
    for watermark, then in seen.watermarks.items():
        assert await _up_to(store, watermark, groups) == then, watermark
    for instant, last in seen.instants.items():
        by_then = [number for number, time, _ in kept.values() if time <= micros_from_instant(instant)]
        assert last == max(by_then, default=0), instant
    # Nothing of a write that was never published is visible, however far it came.
    async with store.database.statements() as connection:
        for group in groups:
            orphans = (
                f"SELECT count(*) FROM rows_{group.id} r "
                "WHERE NOT EXISTS (SELECT FROM commits c WHERE c.write = r.write)"
            )
            assert (await connection.exec_driver_sql(orphans)).scalar_one() == 0


@contextlib.asynccontextmanager
async def _connected(settings: DatabaseSettings) -> AsyncIterator[asyncpg.Connection]:
    assert settings.password_file is not None
    connection = await asyncpg.connect(settings.url, password=settings.password_file.read_text())
    try:
        yield connection
    finally:
        await connection.close()


async def _writer_role(outside: asyncpg.Connection, settings: DatabaseSettings) -> DatabaseSettings:
    """Settings of a role of the writers' own, so that only their connections are cut."""
    assert settings.password_file is not None
    password = settings.password_file.read_text()
    if not await outside.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = $1", WRITER_ROLE):
        await outside.execute(f"CREATE ROLE {WRITER_ROLE} LOGIN SUPERUSER PASSWORD '{password.strip()}'")
    _, _, place = settings.url.partition("@")
    return settings.model_copy(update={"url": f"postgresql://{WRITER_ROLE}@{place}"})
