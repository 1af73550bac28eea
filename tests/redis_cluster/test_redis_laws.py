"""The laws of online stores over a cluster, and what only a cluster has."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as profile

from services.feature_store.config import RedisSettings
from services.feature_store.online.redis_commands import Command, RedisCommands, open_cluster
from services.feature_store.online.redis_generations import SCRIPTS
from services.feature_store.online.redis_store import RedisOnlineStore, open_redis_store
from services.feature_store.online.store import FoundRow, OnlineStore
from services.runtime.errors import Unavailable
from tests.laws.feature_store.online_suite import (
    EMPTY,
    GROUPS,
    OnlineLaws,
    OnlineStoreMachine,
    Row,
    committed,
    query,
)
from tests.redis_cluster.nodes import ClusterNodes

_NUMBERS = itertools.count()


class RedisMachine(OnlineStoreMachine):
    """The machine over a store with a prefix of its own."""

    cluster: ClassVar[RedisSettings]

    def __init__(self) -> None:
        super().__init__()
        self._mine = self.cluster.model_copy(update={"prefix": f"machine-{next(_NUMBERS)}", "buckets": 3})

    def open(self) -> AbstractAsyncContextManager[OnlineStore]:
        """See OnlineStoreMachine."""
        return open_redis_store(self._mine)


RedisMachine.TestCase.settings = profile(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.usefixtures("_settings_of_the_machine")
class TestRedisMachine(RedisMachine.TestCase):  # type: ignore[misc, valid-type]
    """The machine."""

    @pytest.fixture
    def _settings_of_the_machine(self, settings: RedisSettings) -> None:
        RedisMachine.cluster = settings


class TestRedisLaws(OnlineLaws):
    """The laws over a cluster."""

    @pytest.fixture
    async def store(self, settings: RedisSettings) -> AsyncIterator[OnlineStore]:
        """An empty store."""
        async with open_redis_store(settings) as made:
            yield made

    @pytest.fixture
    async def again(self, settings: RedisSettings) -> AsyncIterator[Callable[[], AsyncIterator[OnlineStore]]]:
        """Another process would open it like this."""
        async with AsyncExitStack() as stack:

            async def another() -> AsyncIterator[OnlineStore]:
                yield await stack.enter_async_context(open_redis_store(settings))

            yield another


KEY = (1,)


def row(commit: int, time: int = 0) -> Row:
    """A row of the third group."""
    return Row(KEY, time or commit, commit, False, (float(commit), commit))


async def test_what_was_answered_elsewhere_is_seen_here(settings: RedisSettings) -> None:
    """A look-up never answers as of a commit before one that another process announced before the look-up began."""
    group = GROUPS[2]
    async with open_redis_store(settings) as writer, open_redis_store(settings) as reader:
        for commit in range(1, 60):
            await writer.apply(commit, [committed(group, [row(commit)])])
            lookup = await reader.lookup([query(group, [KEY])])
            assert (lookup.applied_commit, lookup.found[0][0]) == (
                commit,
                FoundRow(commit, commit, False, (float(commit), commit)),
            )


async def test_rows_survive_many_appliers_at_once(settings: RedisSettings) -> None:
    """In any order, each more than once: what stays is the greatest (event time, commit)."""
    group = GROUPS[2]
    rows = [row(commit, time=1_000 - commit % 7) for commit in range(1, 120)]
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_redis_store(settings)) for _ in range(4)]

        async def apply(store: OnlineStore, start: int) -> None:
            for i in range(start, len(rows) + start, 3):
                some = [rows[j % len(rows)] for j in range(i, i + 5)]
                await store.apply(0, [committed(group, [one]) for one in some])
            await store.apply(len(rows), [])

        await asyncio.gather(*(apply(store, 31 * i) for i, store in enumerate(stores)))
        lookup = await stores[0].lookup([query(group, [KEY])])
        latest = max(rows, key=lambda r: (r.event_time_us, r.commit))
        assert lookup.found[0][0] == FoundRow(latest.event_time_us, latest.commit, False, latest.values)


async def test_a_node_that_forgot_its_rows_is_noticed_and_a_rebuild_heals(
    nodes: ClusterNodes, settings: RedisSettings
) -> None:
    """While a node is away the store is unavailable; when it is back without its rows nobody is told NOT_FOUND."""
    group, n = GROUPS[2], 300
    keys = [(i,) for i in range(n)]
    rows = [Row(key, 1, 1, False, (1.0, 1)) for key in keys]
    async with open_redis_store(settings) as store:
        await store.apply(1, [committed(group, rows)])
        assert None not in (await store.lookup([query(group, keys)])).found[0]
        nodes.stop(1)
        with pytest.raises(Unavailable):
            await store.lookup([query(group, keys)])
        with pytest.raises(Unavailable):
            await store.apply(2, [committed(group, rows)])
        nodes.start(1)
        await asyncio.to_thread(nodes.until_whole)
        with pytest.raises(Unavailable):
            await store.lookup([query(group, keys)])

        async def caught_up() -> None:
            return None

        async with store.replacement() as made:
            await made.apply(1, [committed(group, rows)])
            assert await made.take_over(caught_up) == n
        lookup = await store.lookup([query(group, keys)])
        assert (lookup.applied_commit, None in lookup.found[0]) == (1, False)


async def test_a_node_that_does_not_know_the_scripts_is_told(nodes: ClusterNodes, settings: RedisSettings) -> None:
    """As one is after its restart."""
    async with open_redis_store(settings) as store:
        await store.apply(1, [committed(GROUPS[2], [row(1)])])
        for node in range(3):
            nodes.client(node).script_flush()
        await store.apply(2, [committed(GROUPS[2], [row(2), Row((2,), 1, 2, False, EMPTY[:2])])])
        assert await store.applied_commit() == 2


async def test_a_rebuild_that_dies_leaves_nothing_behind(nodes: ClusterNodes, settings: RedisSettings) -> None:
    """The next one removes what it had built."""
    names = f"{settings.prefix}:*"

    def stored() -> int:
        return sum(len(list(nodes.client(node).scan_iter(names, count=1_000))) for node in range(3))

    async def caught_up() -> None:
        return None

    async with open_redis_store(settings) as store:
        await store.apply(1, [committed(GROUPS[2], [row(1)])])
        before = stored()
        async with open_redis_store(settings) as dying:
            context = dying.replacement()
            made = await context.__aenter__()
            await made.apply(1, [committed(GROUPS[2], [row(1)])])
            assert stored() == before + settings.buckets + 1
            building = f"{settings.prefix}:{{{settings.prefix}}}:building"
            # Its claim runs out; here it is taken away.
            for node in range(3):
                nodes.client(node).delete(building) if nodes.owns(node, building) else None
            async with store.replacement() as another:
                await another.apply(1, [committed(GROUPS[2], [row(1)])])
                assert await another.take_over(caught_up) == 1
            with pytest.raises(Unavailable):
                await made.apply(2, [committed(GROUPS[2], [row(2)])])
            await context.__aexit__(None, None, None)
        assert stored() == before
        assert (await store.lookup([query(GROUPS[2], [KEY])])).found[0][0] is not None


async def test_a_wrong_password_is_no_crash(settings: RedisSettings) -> None:
    """The store does not answer, and no message names an address."""
    async with open_redis_store(settings.model_copy(update={"password_file": None})) as store:
        with pytest.raises(Unavailable, match=r"^the online store does not answer$"):
            await store.applied_commit()


class CountedCommands(RedisCommands):
    """Counts round trips."""

    def __init__(self, commands: RedisCommands) -> None:
        self._counted = commands
        self.round_trips = 0

    async def many(self, commands: Sequence[Command]) -> list[Any]:
        """See RedisCommands."""
        self.round_trips += 1
        return await self._counted.many(commands)


async def test_a_view_over_several_groups_takes_one_round_trip(settings: RedisSettings) -> None:
    """With many entities; and one more when something was applied since the last look-up."""
    entities = [(str(i), i, True) for i in range(64)]
    rows = [Row(entity, 1, 1, False, EMPTY) for entity in entities]
    queries = [query(group, entities) for group in GROUPS[:2]] + [query(GROUPS[2], [(i,) for i in range(64)])]
    async with open_redis_store(settings) as writer, open_cluster(settings, SCRIPTS) as cluster:
        await writer.apply(1, [committed(group, rows) for group in GROUPS[:2]])
        commands = CountedCommands(cluster)
        reader = RedisOnlineStore(commands, settings.prefix, settings.buckets)
        await reader.lookup(queries)
        before = commands.round_trips
        lookup = await reader.lookup(queries)
        assert commands.round_trips == before + 1
        assert [None in found for found in lookup.found] == [False, False, True]
        await writer.apply(2, [])
        assert (await reader.lookup(queries)).applied_commit == 2
        assert commands.round_trips == before + 3
