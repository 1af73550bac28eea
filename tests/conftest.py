"""Fixtures that every test may use: a real PostgreSQL, and a fresh database for each test that asks."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from deploy.local.postgres import STOP_SIGNAL, EmbeddedPostgres
from services.runtime.settings import DatabaseSettings

# A loaded machine is slow without being wrong.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

MakeDatabase = Callable[[str], DatabaseSettings]


@dataclass(frozen=True)
class PostgresServer:
    """The server of a test session."""

    embedded: EmbeddedPostgres
    password_file: Path

    async def create_database(self, name: str) -> DatabaseSettings:
        """A new, empty database."""
        connection = await asyncpg.connect(self.embedded.url(), password=self.password_file.read_text())
        try:
            await connection.execute(f'CREATE DATABASE "{name}" STRATEGY wal_log')
        finally:
            await connection.close()
        return DatabaseSettings(url=self.embedded.url(database=name), password_file=self.password_file)

    async def copy(self, source: DatabaseSettings, target: DatabaseSettings) -> None:
        """Fills an empty database with what another one has, as a backup does: pg_dump, then pg_restore."""
        with tempfile.NamedTemporaryFile(suffix=".dump") as dump:
            await self._run("pg_dump", "--format=custom", f"--file={dump.name}", f"--dbname={source.url}")
            await self._run("pg_restore", "--exit-on-error", f"--dbname={target.url}", dump.name)

    async def _run(self, program: str, *arguments: str) -> None:
        environment = os.environ | {"PGPASSWORD": self.password_file.read_text()}
        process = await asyncio.create_subprocess_exec(self.embedded.program(program), *arguments, env=environment)
        assert await process.wait() == 0


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL of the session's own, on a Unix socket, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fs-pg-"))
    sockets = folder / "run"
    sockets.mkdir(mode=0o700)
    embedded = EmbeddedPostgres(folder / "data", sockets, folder / "password")
    embedded.initialise()
    with (folder / "log").open("wb") as log:
        # Nothing that a test keeps has to survive a power cut.
        command = embedded.command(fsync="off", shared_buffers="64MB")
        process = subprocess.Popen(command, stdout=log, stderr=log, **embedded.identity())
    try:
        server = PostgresServer(embedded, folder / "password")
        asyncio.run(_wait_until_ready(server, process))
        yield server
    finally:
        process.send_signal(STOP_SIGNAL)
        process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> MakeDatabase:
    """Makes fresh databases: `postgres_url("logger")` answers the settings of one, also inside a running loop."""
    return lambda schema: _run_apart(postgres_server, f"{schema}_{next(_NUMBERS)}")


_NUMBERS = itertools.count()


def _run_apart(server: PostgresServer, name: str) -> DatabaseSettings:
    # The test may have a running event loop already; a thread has none.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, server.create_database(name)).result()


async def _wait_until_ready(server: PostgresServer, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                connection = await asyncpg.connect(server.embedded.url(), password=server.password_file.read_text())
            except (OSError, asyncpg.CannotConnectNowError):
                assert process.poll() is None, "PostgreSQL ended while it was starting"
                await asyncio.sleep(0.02)
                continue
            await connection.close()
            return
