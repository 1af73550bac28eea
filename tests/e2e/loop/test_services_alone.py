"""Each service starts by itself, from the command and the settings of docs/services.md, against any PostgreSQL URL."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.conftest import MakeDatabase
from tests.e2e.local_stack.calls import eventually

ROOT = Path(__file__).parents[3]
# Documented for every service at once, or short for the setting above them.
COMMON = {"LISTEN", "DATABASE__PASSWORD_FILE", "SINK__PASSWORD_FILE"}
DOCUMENTED = set(re.findall(r"FORESIGHT_[A-Z_]+", (ROOT / "docs" / "services.md").read_text()))
SERVICES = {
    "logger": {"foresight.logger.v1.PredictionLogService", "foresight.logger.v1.OutcomeService"},
    "feature_store": {
        "foresight.feature_store.v1.FeatureRegistryService",
        "foresight.feature_store.v1.LineageService",
        "foresight.feature_store.v1.OfflineFeatureService",
        "foresight.feature_store.v1.TrainingDatasetService",
        "foresight.feature_store.v1.StatisticsService",
        "foresight.feature_store.v1.OnlineFeatureService",
        "foresight.feature_store.v1.LogIngestionService",
        "foresight.feature_store.v1.ErasureService",
        "foresight.feature_store.v1.FeaturePipelineService",
    },
    "trainer": {
        "foresight.trainer.v1.TrainingService",
        "foresight.trainer.v1.ModelRegistryService",
        "foresight.trainer.v1.BatchPredictionService",
        "foresight.trainer.v1.FlywheelService",
    },
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short folder for sockets and state."""
    made = Path(tempfile.mkdtemp(prefix="fs-alone-"))
    yield made
    shutil.rmtree(made)


def _settings(name: str, folder: Path, url: str, password: Path) -> dict[str, str]:
    """What docs/services.md asks for, and no more."""
    prefix = f"FORESIGHT_{name.upper()}_"
    settings = {
        "LISTEN": f"unix:{folder}/{name}.sock",
        "DATABASE__URL": url,
        "DATABASE__PASSWORD_FILE": str(password),
        "SINK__URL": url,
        "SINK__PASSWORD_FILE": str(password),
        "STATE_FOLDER": str(folder / name),
        "FEATURE_STORE": f"unix:{folder}/feature_store.sock",
        "LOGGER": f"unix:{folder}/logger.sock",
        "TRANSFORM_MODULES": json.dumps([]),
    }
    return {prefix + key: value for key, value in settings.items() if prefix + key in DOCUMENTED or key in COMMON}


def _is_serving(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _reflected(address: str) -> set[str]:
    with grpc.insecure_channel(address) as channel:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=5)
    return {service.name for service in answer.list_services_response.service}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_starts_alone_and_stops_cleanly(name: str, folder: Path, postgres_url: MakeDatabase) -> None:
    database = postgres_url(name)
    assert database.password_file is not None
    settings = _settings(name, folder, database.url, database.password_file)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"services.{name}"],
            env={"PATH": os.environ["PATH"], **settings},
            cwd=ROOT,
            stderr=log,
        )
    try:
        address = settings[f"FORESIGHT_{name.upper()}_LISTEN"]
        eventually(lambda: _is_serving(address))
        assert _reflected(address) >= SERVICES[name]
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=20)
    assert code == 0, (folder / "log").read_text()


def test_a_predictor_alone_serves_when_its_trainer_answers(folder: Path, postgres_url: MakeDatabase) -> None:
    database = postgres_url("alone")
    assert database.password_file is not None
    processes = []
    try:
        for name in ("logger", "feature_store", "trainer", "predictor"):
            settings = _settings(name, folder, database.url, database.password_file)
            if name == "predictor":
                settings |= {
                    "FORESIGHT_PREDICTOR_SPOOL_FOLDER": str(folder / "spool"),
                    "FORESIGHT_PREDICTOR_CACHE_FOLDER": str(folder / "cache"),
                    "FORESIGHT_PREDICTOR_FEATURE_STORE": f"unix:{folder}/feature_store.sock",
                    "FORESIGHT_PREDICTOR_TRAINER": f"unix:{folder}/trainer.sock",
                    "FORESIGHT_PREDICTOR_LOGGER": f"unix:{folder}/logger.sock",
                }
            with (folder / f"{name}.log").open("wb") as log:
                command = [sys.executable, "-m", f"services.{name}"]
                environment = {"PATH": os.environ["PATH"], **settings}
                processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stderr=log))
        # The predictor does not wait for the feature store, but a process that is told to stop while it is still
        # importing dies of the signal: all four are up before any is stopped.
        for name in ("logger", "feature_store", "trainer", "predictor"):
            eventually(functools.partial(_is_serving, f"unix:{folder}/{name}.sock"))
        known = {"foresight.predictor.v1.PredictionService", "inference.GRPCInferenceService"}
        assert _reflected(f"unix:{folder}/predictor.sock") >= known
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(timeout=20) for process in processes]
    assert codes == [0, 0, 0, 0]


def test_wrong_settings_are_all_reported_together(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.predictor"],
        env={"PATH": os.environ["PATH"], "FORESIGHT_PREDICTOR_LISTEN": "0.0.0.0:50051"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    for setting in ("LISTEN", "SPOOL_FOLDER", "CACHE_FOLDER", "FEATURE_STORE", "TRAINER", "LOGGER"):
        assert f"setting FORESIGHT_PREDICTOR_{setting}: " in done.stderr
