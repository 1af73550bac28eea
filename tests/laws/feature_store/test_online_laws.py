"""The laws of online stores over LMDB, and LMDB's own edges."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import lmdb
import pytest
from hypothesis import settings

from services.feature_store.online.lmdb_store import LmdbOnlineStore
from services.feature_store.online.store import FoundRow, OnlineStore
from services.runtime.errors import LimitExceeded
from tests.laws.feature_store.online_suite import GROUPS, OnlineLaws, OnlineStoreMachine, Row, committed, query

VALUES = (1.0, 1, True, "w" * 300, 0, [1.0, 2.0], None)


@contextlib.asynccontextmanager
async def opened(folder: Path, map_bytes: int = 1 << 20) -> AsyncIterator[LmdbOnlineStore]:
    """A store, closed at the end."""
    store = LmdbOnlineStore(folder, map_bytes)
    try:
        yield store
    finally:
        store.close()


class LmdbMachine(OnlineStoreMachine):
    """The machine over a store in a folder of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()

    def open(self) -> AbstractAsyncContextManager[OnlineStore]:
        """See OnlineStoreMachine."""
        return opened(Path(self._folder.name) / "online")

    def teardown(self) -> None:
        """See OnlineStoreMachine."""
        super().teardown()
        self._folder.cleanup()


LmdbMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestLmdbMachine = LmdbMachine.TestCase


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a store."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made) / "online"


class TestLmdbLaws(OnlineLaws):
    """The laws over LMDB."""

    @pytest.fixture
    async def store(self, folder: Path) -> AsyncIterator[OnlineStore]:
        """An empty store."""
        async with opened(folder) as made:
            yield made

    @pytest.fixture
    def again(self, store: OnlineStore) -> Callable[[], AsyncIterator[OnlineStore]]:
        """An environment of LMDB is opened once per process."""

        async def same() -> AsyncIterator[OnlineStore]:
            yield store

        return same


async def test_the_store_grows_when_it_is_full(folder: Path) -> None:
    """More rows than the first map holds are all there; a large look-up leaves the event loop."""
    n = 3_000
    async with opened(folder, 64 << 10) as store:
        rows = [Row((str(i), i, False), 1, 1, False, VALUES) for i in range(n)]
        await store.apply(1, [committed(GROUPS[0], rows)])
        lookup = await store.lookup([query(GROUPS[0], [row.key for row in rows])])
        assert all(row == FoundRow(1, 1, False, VALUES) for row in lookup.found[0])


async def test_a_disk_without_room_costs_nothing_that_was_applied(folder: Path) -> None:
    """The rows come whole once there is room again, without a restart."""
    first = [Row(("old", 1, False), 1, 1, False, VALUES)]
    second = [Row((str(i), i, False), 1, 2, False, VALUES) for i in range(1_000)]
    everything = query(GROUPS[0], [row.key for row in first + second])
    async with opened(folder) as store:
        await store.apply(1, [committed(GROUPS[0], first)])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
        try:
            with pytest.raises((LimitExceeded, lmdb.Error)):
                await store.apply(2, [committed(GROUPS[0], second)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        lookup = await store.lookup([everything])
        assert (lookup.applied_commit, lookup.found[0][1:]) == (1, [None] * len(second))
        assert lookup.found[0][0] == FoundRow(1, 1, False, VALUES)
        await store.apply(2, [committed(GROUPS[0], second)])
        lookup = await store.lookup([everything])
        assert lookup.applied_commit == 2
        assert None not in lookup.found[0]


# What another process does with the store of the folder that it is given.
_WRITE = """
await store.apply(7, [committed(GROUPS[0], [Row((str(i), i, False), 1, 7, False, VALUES) for i in range(2000)])])
"""
_REBUILD = """
async with store.replacement() as made:
    async def catch_up():
        await made.apply(9, [committed(GROUPS[0], [Row(("new", 1, True), 1, 9, False, VALUES)])])
    assert await made.take_over(catch_up) == 1
"""
_REBUILD_AND_DIE = """
async with store.replacement() as made:
    await made.apply(9, [committed(GROUPS[0], [Row(("new", 1, True), 1, 9, False, VALUES)])])
    os._exit(3)
"""


async def in_another_process(folder: Path, work: str, status: int = 0) -> None:
    """Runs `work` with the store of a folder."""
    body = "\n".join(f"    {line}" for line in work.splitlines())
    script = (
        "import asyncio, os, pathlib, sys\n"
        "from tests.laws.feature_store.online_suite import GROUPS, Row, committed\n"
        "from tests.laws.feature_store.test_online_laws import VALUES, LmdbOnlineStore\n"
        "async def main():\n"
        "    store = LmdbOnlineStore(pathlib.Path(sys.argv[1]), 65536)\n"
        f"{body}\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script, str(folder)])
    assert done.returncode == status


async def test_a_second_process_sees_rows_of_a_store_that_grew(folder: Path) -> None:
    """Its map follows the one of the writer."""
    async with opened(folder, 64 << 10) as reader:
        await in_another_process(folder, _WRITE)
        lookup = await reader.lookup([query(GROUPS[0], [("1999", 1_999, False)])])
        assert lookup.applied_commit == 7
        assert lookup.found[0][0] is not None


async def test_a_second_process_follows_to_the_store_that_took_over(folder: Path) -> None:
    """With its next look-up, or the next thing it applies; the former store's folder is gone."""
    new, old = query(GROUPS[0], [("new", 1, True)]), [Row(("old", 1, True), 1, 8, False, VALUES)]
    async with opened(folder) as store:
        await store.apply(8, [committed(GROUPS[0], old)])
        await in_another_process(folder, _REBUILD)
        lookup = await store.lookup([new])
        assert (lookup.applied_commit, lookup.found[0][0]) == (9, FoundRow(1, 9, False, VALUES))
        await in_another_process(folder, _REBUILD)
        await store.apply(10, [committed(GROUPS[0], old)])
        assert await store.applied_commit() == 10
        assert [path.name for path in folder.iterdir() if path.is_dir()] == ["3"]


async def test_a_rebuild_that_dies_leaves_the_store_as_it_was(folder: Path) -> None:
    """What is left of it goes with the next start."""
    async with opened(folder) as store:
        await store.apply(8, [committed(GROUPS[0], [Row(("old", 1, True), 1, 8, False, VALUES)])])
        await in_another_process(folder, _REBUILD_AND_DIE, status=3)
        assert {path.name for path in folder.iterdir() if path.is_dir()} == {"1", "2"}
        assert await store.applied_commit() == 8
    async with opened(folder) as store:
        lookup = await store.lookup([query(GROUPS[0], [("old", 1, True), ("new", 1, True)])])
        assert (lookup.applied_commit, [row is not None for row in lookup.found[0]]) == (8, [True, False])
        assert [path.name for path in folder.iterdir() if path.is_dir()] == ["1"]
