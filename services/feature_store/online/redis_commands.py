"""Commands to a cluster of the Redis protocol: many at once, by scripts where they belong together, with bounds.

Commands of one call go to their nodes side by side, in one round trip. Everything that is sent may be sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisClusterException, RedisError, ResponseError

from services.feature_store.config import RedisSettings
from services.runtime.errors import LimitExceeded, Unavailable

# Calls that are under way at once, each with at most one connection per node.
CALLS_MAX = 32
CALL_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0
RETRIES = 2
Command = tuple[Any, ...]


class NotWhole(Exception):
    """A bucket is not there any more."""


class Script:
    """A Lua script that the servers keep by its digest."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.digest = hashlib.sha1(source.encode()).hexdigest()  # noqa: S324  # that is how the protocol names scripts

    def command(self, keys: Sequence[str], *arguments: Any) -> Command:
        """Runs it on keys of one slot."""
        return ("EVALSHA", self.digest, len(keys), *keys, *arguments)


class RedisCommands:
    """A cluster. Raises Unavailable when it does not answer, LimitExceeded when it has no room, NotWhole."""

    def __init__(self, cluster: RedisCluster, scripts: Sequence[Script]) -> None:
        self._cluster = cluster
        self._scripts = scripts
        self._permits = asyncio.Semaphore(CALLS_MAX)

    async def one(self, command: Command) -> Any:
        """The answer to one command."""
        return (await self.many([command]))[0]

    async def many(self, commands: Sequence[Command]) -> list[Any]:
        """The answers, in order."""
        with _translated():
            async with asyncio.timeout(CALL_TIMEOUT_S), self._permits:
                try:
                    return await self._send(commands)
                except NoScriptError:
                    # A node that is new, or was restarted.
                    for script in self._scripts:
                        await self._cluster.script_load(script.source)
                    return await self._send(commands)

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        if len(commands) == 1:
            return [await self._cluster.execute_command(*commands[0])]
        pipeline = self._cluster.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute())


@contextlib.asynccontextmanager
async def open_cluster(settings: RedisSettings, scripts: Sequence[Script]) -> AsyncIterator[RedisCommands]:
    """Connects to a cluster. Raises Unavailable when it does not answer."""
    options: dict[str, Any] = {}
    if settings.tls:
        ca = settings.certificates_file
        options = {"ssl": True, "ssl_ca_certs": None if ca is None else str(ca)}
    if settings.password_file is not None:
        options["password"] = settings.password_file.read_text().strip()
    cluster = RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in settings.addresses],
        username=settings.username,
        # Every call goes to each node at most once, and one that is sent again at most once more at a time.
        max_connections=2 * CALLS_MAX,
        socket_timeout=CALL_TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES),
        **options,
    )
    try:
        yield RedisCommands(cluster, scripts)
    finally:
        await cluster.aclose()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OutOfMemoryError as error:
        raise LimitExceeded("the online store has no room left", limit="online_store_bytes") from error
    except ResponseError as error:
        if "NOTWHOLE" in str(error):
            raise NotWhole from error
        raise Unavailable("the online store does not answer") from error
    except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
        raise Unavailable("the online store does not answer") from error
