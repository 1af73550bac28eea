"""The feature store as a process of its own, started by its documented command."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.settings import DatabaseSettings
from tests.conftest import PostgresServer

Run = Callable[[str], "subprocess.Popen[bytes]"]
_NUMBERS = itertools.count()


@pytest.fixture(scope="package")
def feature_store(postgres_server: PostgresServer) -> Iterator[str]:
    """Address of a running feature store."""
    with ThreadPoolExecutor(1) as pool:
        # In a random order of modules the package may be come to more than once.
        name = f"feature_store_wire_{next(_NUMBERS)}"
        database = pool.submit(asyncio.run, postgres_server.create_database(name)).result()
    folder = Path(tempfile.mkdtemp(prefix="fs-wire-"))
    address = f"unix:{folder}/s"
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "services.feature_store"]
        process = subprocess.Popen(command, env=environment(address, database, folder), stdout=log, stderr=log)
    try:
        wait_until_serving(address, process)
        yield address
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0, (folder / "log").read_text()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="package")
def channel(feature_store: str) -> Iterator[grpc.Channel]:
    """A channel as any client opens one."""
    with grpc.insecure_channel(feature_store, [("grpc.default_authority", "localhost")]) as opened:
        yield opened


def environment(address: str, database: DatabaseSettings, folder: Path) -> dict[str, str]:
    """The settings of the process."""
    prefix = "FORESIGHT_FEATURE_STORE_"
    return os.environ | {
        f"{prefix}LISTEN": address,
        f"{prefix}DATABASE__URL": database.url,
        f"{prefix}DATABASE__PASSWORD_FILE": str(database.password_file),
        f"{prefix}STATE_FOLDER": str(folder / "state"),
    }


def wait_until_serving(address: str, process: subprocess.Popen[bytes]) -> None:
    """Returns once health says so."""
    with grpc.insecure_channel(address, [("grpc.default_authority", "localhost")]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for status in _statuses(health, process):
            if status == health_pb2.HealthCheckResponse.SERVING:
                return
    raise AssertionError("the feature store did not become ready")


def _statuses(health: health_pb2_grpc.HealthStub, process: subprocess.Popen[bytes]) -> Iterator[int]:
    for _ in range(300):
        assert process.poll() is None, "the feature store ended while it was starting"
        try:
            for answer in health.Watch(health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=True):
                yield answer.status
        except grpc.RpcError:
            continue
