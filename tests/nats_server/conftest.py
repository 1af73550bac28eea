"""A real nats-server and a real feature store, each in a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StreamConfig

from tests.conftest import PostgresServer
from tests.nats_server.landings import GROUP, SUBJECT, body, client_of
from tests.wire.feature_store.conftest import environment, wait_until_serving

_NUMBERS = itertools.count()


class NatsServer:
    """A server on a port of the loopback interface, with a folder for its streams."""

    def __init__(self, program: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._command = [program, "-js", "-sd", str(folder / "store"), "-a", "127.0.0.1", "-p", str(self._port)]
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Starts it, and returns once it takes connections."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, "nats-server did not start"

    def kill(self) -> None:
        """As a power cut."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


class Landings:
    """A JetStream stream of the test's own and what the feature store has of it."""

    def __init__(self, server: NatsServer, address: str) -> None:
        self.server = server
        self.address = address
        self.client = client_of(address)
        self.name = f"flights_{next(_NUMBERS)}"
        self._running: list[subprocess.Popen[bytes]] = []

    async def made(self, retention: RetentionPolicy = RetentionPolicy.LIMITS) -> None:
        """Makes the stream."""
        async with Connected(self.server) as context:
            await context.add_stream(StreamConfig(self.name, subjects=[f"{self.name}.>"], retention=retention))

    async def publish(self, flights: Sequence[int]) -> None:
        """Publishes landings; returns once the server has them, whatever happens to it meanwhile."""
        for start in range(0, len(flights), 50):
            await self._until_taken(flights[start : start + 50])

    async def _until_taken(self, flights: Sequence[int]) -> None:
        while True:
            try:
                async with Connected(self.server) as context:
                    for flight in flights:
                        # The id makes it harmless to publish what the server took before it was killed.
                        headers = {"Nats-Msg-Id": f"{self.name}-{flight}"}
                        await context.publish(f"{self.name}.{SUBJECT}", body(flight), timeout=2, headers=headers)
                return
            except (nats.errors.Error, OSError):
                await asyncio.sleep(0.05)

    def start(self, batch_rows: int = 20) -> subprocess.Popen[bytes]:
        """Starts the pipeline's process."""
        arguments = [self.address, self.server.url, self.name, str(batch_rows)]
        process = subprocess.Popen([sys.executable, "-m", "tests.nats_server.landings", *arguments])
        self._running.append(process)
        return process

    def stop(self) -> None:
        """Kills the pipeline's processes."""
        for process in self._running:
            process.kill()
            process.wait(10)

    def landed(self) -> list[int]:
        """The flights whose rows the pipeline has committed, in the order of the commits."""
        return [int(flight) for flight in self.client.read(GROUP.name, output="arrow")["flight"].to_pylist()]

    async def until_position(self, position: int, timeout_s: float = 60) -> None:
        """Waits until the pipeline has come as far as that."""
        async with asyncio.timeout(timeout_s):
            while int(self.client.pipeline(self.name).position or 0) < position:
                await asyncio.sleep(0.02)


class Connected:
    """A connection of the test's own."""

    def __init__(self, server: NatsServer) -> None:
        self._url = server.url

    async def __aenter__(self) -> JetStreamContext:
        async def unheard(error: Exception) -> None:
            return

        self._connection = await nats.connect(self._url, allow_reconnect=False, connect_timeout=2, error_cb=unheard)
        return self._connection.jetstream()

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()


@pytest.fixture
def nats_server() -> Iterator[NatsServer]:
    """A running nats-server."""
    folder = Path(tempfile.mkdtemp(prefix="fs-nats-"))
    server = NatsServer(os.environ["FORESIGHT_NATS_SERVER"], folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def feature_store(postgres_server: PostgresServer) -> Iterator[str]:
    """Address of a running feature store with the group."""
    with ThreadPoolExecutor(1) as pool:
        name = f"feature_store_nats_{next(_NUMBERS)}"
        database = pool.submit(asyncio.run, postgres_server.create_database(name)).result()
    folder = Path(tempfile.mkdtemp(prefix="fs-nats-store-"))
    address = f"unix:{folder}/s"
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "services.feature_store"]
        process = subprocess.Popen(command, env=environment(address, database, folder), stdout=log, stderr=log)
    try:
        wait_until_serving(address, process)
        with client_of(address) as client:
            client.apply(GROUP)
        yield address
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0, (folder / "log").read_text()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def landings(nats_server: NatsServer, feature_store: str) -> Iterator[Landings]:
    """A stream's name of the test's own, with an empty group behind it."""
    made = Landings(nats_server, feature_store)
    yield made
    made.stop()
    made.client.close()
