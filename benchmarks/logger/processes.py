"""The logger as a process of its own, over a PostgreSQL of its own, as the local stack runs them."""

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

import asyncpg
import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.postgres import STOP_SIGNAL, EmbeddedPostgres

READY_S = 60.0
DATABASE = "logger"


@dataclass(frozen=True)
class LoggerProcess:
    """A running logger, where it listens, and its PostgreSQL."""

    address: str
    service: subprocess.Popen[bytes]
    postgres: subprocess.Popen[bytes]

    def channel(self) -> grpc.aio.Channel:
        """A new channel to the logger."""
        return grpc.aio.insecure_channel(self.address, [("grpc.default_authority", "localhost")])

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds that the logger and PostgreSQL have used so far."""
        return _cpu_s(self.service.pid), _cpu_s(self.postgres.pid)


@contextlib.contextmanager
def running_logger() -> Iterator[LoggerProcess]:
    """Starts both, and removes everything afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fs-bench-"))
    (folder / "run").mkdir(mode=0o700)
    embedded = EmbeddedPostgres(folder / "data", folder / "run", folder / "password")
    embedded.initialise()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        log = stack.enter_context((folder / "log").open("wb"))
        postgres = subprocess.Popen(embedded.command(), stdout=log, stderr=log, **embedded.identity())
        stack.callback(_stop, postgres, STOP_SIGNAL)
        asyncio.run(_create_database(embedded, (folder / "password").read_text()))
        settings = {
            "FORESIGHT_LOGGER_LISTEN": f"unix:{folder}/s",
            "FORESIGHT_LOGGER_LOG_LEVEL": "WARNING",
            "FORESIGHT_LOGGER_DATABASE__URL": embedded.url(database=DATABASE),
            "FORESIGHT_LOGGER_DATABASE__PASSWORD_FILE": str(folder / "password"),
        }
        command = [sys.executable, "-m", "services.logger"]
        service = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
        stack.callback(_stop, service, 15)
        running = LoggerProcess(f"unix:{folder}/s", service, postgres)
        if not asyncio.run(_serves(running)):
            raise RuntimeError(f"the logger did not become ready: {(folder / 'log').read_text()[-2_000:]}")
        yield running


def _cpu_s(pid: int) -> float:
    process, total = psutil.Process(pid), 0.0
    own = process.cpu_times()
    total += own.children_user + own.children_system
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total


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


async def _serves(running: LoggerProcess) -> bool:
    deadline = time.monotonic() + READY_S
    async with running.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while running.service.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(grpc.RpcError):
                answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=2)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return True
            await asyncio.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes], signal: int) -> None:
    process.send_signal(signal)
    process.wait(60)
