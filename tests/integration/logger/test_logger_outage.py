"""What the logger answers while PostgreSQL is away, and afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import grpc
import pytest

from services.runtime.settings import DatabaseSettings
from tests.conftest import MakeDatabase
from tests.integration.logger.rig import Logger, by_id, new_incarnation, record, running_logger


class Proxy:
    """Forwards a folder's PostgreSQL socket to another folder's; can be cut and put back."""

    def __init__(self, real: Path, folder: Path) -> None:
        self._real = real
        self._front = folder / real.name
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """Lets connections through."""
        self._server = await asyncio.start_unix_server(self._serve, self._front)

    async def cut(self) -> None:
        """Ends all connections and refuses new ones."""
        assert self._server is not None
        self._server.close()
        self._front.unlink(missing_ok=True)
        for pipe in self._pipes:
            pipe.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        back_reader, back_writer = await asyncio.open_unix_connection(self._real)
        pipes = {writer, back_writer}
        self._pipes |= pipes
        await asyncio.gather(_copy(reader, back_writer), _copy(back_reader, writer))
        self._pipes -= pipes
        for pipe in pipes:
            with contextlib.suppress(OSError):
                await pipe.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def proxied(settings: DatabaseSettings) -> AsyncIterator[tuple[Proxy, DatabaseSettings]]:
    """A proxy in front of a database, and the settings that lead through it."""
    parts = urlsplit(settings.url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    folder = Path(tempfile.mkdtemp(prefix="fs-px-"))
    proxy = Proxy(next(Path(query["host"]).glob(".s.PGSQL.*[0-9]")), folder)
    await proxy.connect()
    url = urlunsplit(parts._replace(query=urlencode(query | {"host": str(folder)})))
    try:
        yield proxy, DatabaseSettings(url=url, password_file=settings.password_file)
    finally:
        await proxy.cut()
        shutil.rmtree(folder, ignore_errors=True)


async def test_a_database_that_is_away_is_unavailable_and_nothing_is_lost_when_it_is_back(
    postgres_url: MakeDatabase,
) -> None:
    life = new_incarnation()
    sent = [record(life, n) for n in range(1, 4)]
    async with (
        proxied(postgres_url("logger")) as (proxy, settings),
        running_logger(settings) as logger,
    ):
        await logger.append(sent[0])
        await proxy.cut()
        for call in (logger.append(sent[1]), logger.read(), logger.outcomes.RecordOutcomes(by_id([life], [True]))):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "/" not in (refused.value.details() or "")
        await proxy.connect()
        await until_it_answers(logger)
        answer = await logger.append(*sent)
        assert (answer.appended, answer.duplicates) == (2, 1)
        assert [entry.record for entry in await logger.read_all()] == sent
        assert await logger.ledger() == {life: (3, 3, 0, 1)}


async def test_a_database_that_dies_under_appends_loses_none_that_were_acknowledged(postgres_url: MakeDatabase) -> None:
    life = new_incarnation()
    sent = [record(life, n) for n in range(1, 61)]
    unavailable = 0
    async with (
        proxied(postgres_url("logger")) as (proxy, settings),
        running_logger(settings) as logger,
    ):

        async def ship() -> None:
            nonlocal unavailable
            for message in sent:
                while not await was_answered(logger.append(message)):
                    unavailable += 1
                    await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            shipping = group.create_task(ship())
            for _ in range(3):
                await asyncio.sleep(0.05)
                await proxy.cut()
                await asyncio.sleep(0.02)
                await proxy.connect()
            await shipping
        assert unavailable > 0
        assert [entry.record for entry in await logger.read_all()] == sent
        assert (await logger.ledger())[life][:3] == (60, 60, 0)


async def test_a_caller_that_gives_up_leaves_the_log_usable(logger: Logger) -> None:
    life = new_incarnation()
    sent = [record(life, n) for n in range(1, 21)]
    calls = [asyncio.create_task(logger.append(message)) for message in sent]
    await asyncio.sleep(0.01)
    for call in calls[::2]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await logger.append(*sent)
    records = [entry.record for entry in await logger.read_all()]
    assert sorted(r.first_sequence for r in records) == list(range(1, 21))
    assert (await logger.ledger())[life][:3] == (20, 20, 0)


async def until_it_answers(logger: Logger) -> None:
    """Waits until the logger has found its database again."""
    async with asyncio.timeout(10):
        while not await was_answered(logger.read()):
            await asyncio.sleep(0.02)


async def was_answered(call: Awaitable[object]) -> bool:
    """Whether the call succeeded; every failure but UNAVAILABLE is a fault."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True
