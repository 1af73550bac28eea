"""A trainer as its own process, started as its documentation says, against a plain database and no feature store."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.settings import DatabaseSettings

READY_TIMEOUT_S = 60.0


@dataclass
class TrainerProcess:
    """The process and a channel to it."""

    process: subprocess.Popen[bytes]
    channel: grpc.Channel

    def worker(self) -> psutil.Process:
        """The process that fits."""
        (child,) = psutil.Process(self.process.pid).children()
        return child


@contextlib.contextmanager
def trainer_process(database: DatabaseSettings) -> Iterator[TrainerProcess]:
    """Starts a trainer and waits until it is ready."""
    folder = Path(tempfile.mkdtemp(prefix="fs-tr-"))
    address = f"unix:{folder}/trainer.sock"
    password_file = str(database.password_file)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FORESIGHT_")},
        "FORESIGHT_TRAINER_LISTEN": address,
        "FORESIGHT_TRAINER_STOP_GRACE_S": "2",
        "FORESIGHT_TRAINER_DATABASE__URL": database.url,
        "FORESIGHT_TRAINER_DATABASE__PASSWORD_FILE": password_file,
        "FORESIGHT_TRAINER_SINK__URL": database.url,
        "FORESIGHT_TRAINER_SINK__PASSWORD_FILE": password_file,
        "FORESIGHT_TRAINER_STATE_FOLDER": str(folder / "state"),
        "FORESIGHT_TRAINER_FEATURE_STORE": f"unix:{folder}/nobody.sock",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "services.trainer"], env=environment, stderr=log)
    channel = grpc.insecure_channel(address, [("grpc.default_authority", "localhost")])
    try:
        grpc.channel_ready_future(channel).result(READY_TIMEOUT_S)
        health = health_pb2_grpc.HealthStub(channel)
        for answer in health.Watch(health_pb2.HealthCheckRequest(), timeout=READY_TIMEOUT_S):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                break
        yield TrainerProcess(process, channel)
    finally:
        channel.close()
        process.kill()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
