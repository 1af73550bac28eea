"""A feature store as a process of its own, over a PostgreSQL of its own, as the local stack runs them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.postgres import STOP_SIGNAL, EmbeddedPostgres
from foresight.client import Client, Connection, Retry

READY_S = 60.0
DATABASE = "feature_store"


@dataclass(frozen=True)
class StoreProcess:
    """A running feature store; `pid` is that of the service, `database_url` has the password."""

    client: Client
    pid: int
    database_url: str

    def peak_bytes(self) -> int:
        """The most memory that the service had since `forget_peak`, file pages that it has mapped among it."""
        return _status_bytes(self.pid, "VmHWM")

    def peak_heap_bytes(self) -> int:
        """What of its memory now belongs to no file."""
        return _status_bytes(self.pid, "RssAnon")

    def forget_peak(self) -> None:
        """Starts measuring the peak anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def sql(self, statement: str) -> Any:
        """Runs a statement in the service's schema; answers the first value of the first row."""

        async def run() -> Any:
            connection = await asyncpg.connect(self.database_url, server_settings={"search_path": "feature_store"})
            try:
                return await connection.fetchval(statement)
            finally:
                await connection.close()

        return asyncio.run(run())


@contextlib.contextmanager
def running_store() -> Iterator[StoreProcess]:
    """Starts both, and removes everything afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fs-bench-"))
    sockets = folder / "run"
    sockets.mkdir(mode=0o700)
    embedded = EmbeddedPostgres(folder / "data", sockets, folder / "password")
    embedded.initialise()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        log = stack.enter_context((folder / "log").open("wb"))
        postgres = subprocess.Popen(embedded.command(), stdout=log, stderr=log, **embedded.identity())
        stack.callback(_stop, postgres, STOP_SIGNAL)
        asyncio.run(_create_database(embedded, (folder / "password").read_text()))
        address = f"unix:{folder}/s"
        prefix = "FORESIGHT_FEATURE_STORE_"
        settings = {
            f"{prefix}LISTEN": address,
            f"{prefix}DATABASE__URL": embedded.url(database=DATABASE),
            f"{prefix}DATABASE__PASSWORD_FILE": str(folder / "password"),
            f"{prefix}STATE_FOLDER": str(folder / "state"),
        }
        command = [sys.executable, "-m", "services.feature_store"]
        service = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
        stack.callback(_stop, service, 15)
        channel = grpc.insecure_channel(
            address,
            [
                ("grpc.default_authority", "localhost"),
                ("grpc.max_send_message_length", 16 << 20),
                ("grpc.max_receive_message_length", 16 << 20),
            ],
        )
        _wait_until_serving(channel, service, folder / "log")
        client = stack.enter_context(Client(connection=Connection(channel, address, Retry(0.0))))
        password = (folder / "password").read_text()
        url = embedded.url(database=DATABASE).replace("postgres@", f"postgres:{password}@")
        yield StoreProcess(client, service.pid, url)


async def _create_database(embedded: EmbeddedPostgres, password: str) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            connection = await asyncpg.connect(embedded.url(), password=password)
            break
        except (OSError, asyncpg.CannotConnectNowError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
    try:
        await connection.execute(f"CREATE DATABASE {DATABASE} STRATEGY wal_log")
    finally:
        await connection.close()


def _wait_until_serving(channel: grpc.Channel, service: subprocess.Popen[bytes], log: Path) -> None:
    health, deadline = health_pb2_grpc.HealthStub(channel), time.monotonic() + READY_S
    while service.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(grpc.RpcError):
            for answer in health.Watch(health_pb2.HealthCheckRequest(), timeout=2):
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
        time.sleep(0.05)
    raise RuntimeError(f"the feature store did not become ready: {log.read_text()[-2_000:]}")


def _stop(process: subprocess.Popen[bytes], signal: int) -> None:
    process.send_signal(signal)
    process.wait(60)


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
