"""The systems that are measured beside one another, each with all of its processes, and how each is asked and checked.

All look the same features up, of the same places, and answer from the same scikit-learn model: Foresight; MLServer and
the KServe SDK with a model of their own that asks Feast on Redis; MLServer alone, which is given the features and
gathers requests in batches; and a gRPC server that does nothing. Model servers run as they come and with one thread
for the model (`OMP_NUM_THREADS=1`). None writes a line of log per call, but every gateway does.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import joblib  # type: ignore[import-untyped]
import numpy as np
import psutil

from benchmarks.gateway.envoys import await_port, free_port, running
from benchmarks.peers import environments
from benchmarks.peers.debian import REDIS, libraries, unpacked
from benchmarks.peers.environments import python_of, run_peer
from benchmarks.predictor.services import (
    ENTITIES,
    GROUP_FEATURES,
    KEY,
    PREDICT,
    REQUEST_FEATURES,
    Services,
    places,
    question,
    request_features,
    untrained,
)
from foresight.predictor.v1 import prediction_pb2
from foresight.wire import decode_column
from gateway.envoy import LOOPBACK
from inference import grpc_service_pb2 as inference

MODEL = "late"
INFER = "/inference.GRPCInferenceService/ModelInfer"
FILL_S = 120.0
# MLServer alone gathers so many, or for so long.
BATCH_MAX, BATCH_S = 64, 0.005
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
FORESIGHT, ECHO = "foresight", "empty_call"
PARTS = ("predictor", "feature_store", "logger", "postgres")
TITLES = {
    FORESIGHT: "Foresight",
    ECHO: "empty grpc.aio call",
    "mlserver_feast": "MLServer + Feast",
    "mlserver_feast_1": "MLServer + Feast, one thread",
    "kserve_feast": "KServe + Feast",
    "kserve_feast_1": "KServe + Feast, one thread",
    "mlserver": "MLServer alone",
    "mlserver_1": "MLServer alone, one thread",
}


@dataclass(frozen=True)
class System:
    """A running system: what it is asked for an entity, and the probability in its answer (None: there is none)."""

    name: str
    address: str
    method: str
    question: Callable[[int], bytes]
    probability: Callable[[bytes], float | None]
    pids: Sequence[int]

    @property
    def title(self) -> str:
        """As people read it."""
        return TITLES[self.name]

    def cpu_s(self) -> float:
        """CPU seconds that its processes and their children have used so far."""
        return sum(process_cpu_s(pid) for pid in self.pids)


def process_cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children so far, those that have ended among them."""
    process = psutil.Process(pid)
    ended = process.cpu_times()
    total = float(ended.children_user + ended.children_system)
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total


@dataclass(frozen=True)
class Truth:
    """What every system should know: features and request features per entity, and the model's probabilities."""

    features: np.ndarray
    probabilities: np.ndarray


def learn(folder: Path) -> Truth:
    """Trains the model on the places, and writes it and them where the systems of others read them."""
    rows, spine = places()
    features = rows[list(GROUP_FEATURES)].to_numpy()
    trained_on = np.hstack([features, spine[list(REQUEST_FEATURES)].to_numpy()])
    model = untrained().fit(trained_on, spine["late"].to_numpy())
    joblib.dump(model, folder / "model.joblib")
    rows.rename(columns={"event_time": "event_timestamp"}).to_parquet(folder / "places.parquet", index=False)
    asked = np.hstack([features, [request_features(i) for i in range(ENTITIES)]])
    return Truth(asked, model.predict_proba(asked)[:, 1])


@contextlib.contextmanager
def running_systems(folder: Path, services: Services, truth: Truth) -> Iterator[dict[str, System]]:
    """Starts all but Foresight's services, which run already. They are not yet warm, nor surely ready."""
    systems = [_foresight(services)]
    with contextlib.ExitStack() as stack:
        systems.append(stack.enter_context(_echo(folder)))
        redis_pid, redis = stack.enter_context(_redis(folder / "redis.out"))
        run_peer("mlserver", "feast_places", str(folder), redis, timeout_s=FILL_S)
        for suffix, threads in (("", {}), ("_1", ONE_THREAD)):
            for name, prepare in (("mlserver_feast", _mlserver_with_feast), ("kserve_feast", _kserve_with_feast)):
                started = _with_feast(f"{name}{suffix}", folder, threads, redis_pid, prepare)
                systems.append(stack.enter_context(started))
            systems.append(stack.enter_context(_mlserver_alone(f"mlserver{suffix}", folder, threads, truth)))
        yield {system.name: system for system in systems}


def _foresight(services: Services) -> System:
    pids = [services.processes[name].pid for name in PARTS]
    return System(FORESIGHT, services.address("predictor"), PREDICT, lambda i: question([i]), _predicted, pids)


@contextlib.contextmanager
def _echo(folder: Path) -> Iterator[System]:
    address = f"unix:{folder}/echo.s"
    # By a path that the gateway lets through.
    command = [sys.executable, "-m", "benchmarks.predictor.echo", address, PREDICT]
    with running(command, folder / "echo.out") as process:
        yield System(ECHO, address, PREDICT, lambda i: b"", lambda answer: None, [process.pid])


Command = tuple[list[str], int]


@contextlib.contextmanager
def _with_feast(
    name: str, root: Path, threads: dict[str, str], redis_pid: int, prepare: Callable[[Path], Command]
) -> Iterator[System]:
    """A model server; the Redis is that of all of them, and belongs to the one whose turn it is."""
    folder = _folder(root, name)
    command, port = prepare(folder)
    with running(command, folder / "out", environment=_environment(threads), folder=folder) as process:
        yield System(name, f"{LOOPBACK}:{port}", INFER, _keyed, _inferred, [process.pid, redis_pid])


@contextlib.contextmanager
def _mlserver_alone(name: str, root: Path, threads: dict[str, str], truth: Truth) -> Iterator[System]:
    folder = _folder(root, name)
    settings = {
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": str(folder / "model.joblib")},
        "max_batch_size": BATCH_MAX,
        "max_batch_time": BATCH_S,
    }
    command, port = _mlserver(folder, settings)
    with running(command, folder / "out", environment=_environment(threads), folder=folder) as process:
        asked = partial(_given, truth)
        yield System(name, f"{LOOPBACK}:{port}", INFER, asked, _inferred, [process.pid])


def _folder(root: Path, name: str) -> Path:
    folder = root / f"{name}.files"
    folder.mkdir()
    for shared in ("model.joblib", "places.parquet", "feature_store.yaml"):
        (folder / shared).symlink_to(root / shared)
    return folder


def _environment(threads: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "PYTHON"))}
    return {**inherited, "PYTHONPATH": str(environments.HERE), **threads}


def _mlserver_with_feast(folder: Path) -> Command:
    return _mlserver(folder, {"implementation": "mlserver_feast.LateModel", "parameters": {"uri": str(folder)}})


def _mlserver(folder: Path, model: dict[str, object]) -> Command:
    port = free_port()
    ports = {"http_port": free_port(), "grpc_port": port, "metrics_port": free_port()}
    (folder / "settings.json").write_text(json.dumps({"host": LOOPBACK, "debug": False, **ports}))
    (folder / "model-settings.json").write_text(json.dumps({"name": MODEL, **model}))
    return [str(python_of("mlserver").with_name("mlserver")), "start", str(folder)], port


def _kserve_with_feast(folder: Path) -> Command:
    port, program = free_port(), environments.HERE / "kserve_feast.py"
    return [str(python_of("kserve_server")), str(program), str(folder), str(port), str(free_port())], port


@contextlib.contextmanager
def _redis(log: Path) -> Iterator[tuple[int, str]]:
    """A Redis server of Debian without persistence: its process and address."""
    folder, port = unpacked("redis", *REDIS), free_port()
    # The server's program is that of the checking tool under another name.
    program = folder / "usr" / "bin" / "redis-check-rdb"
    command = ["redis-server", "--bind", LOOPBACK, "--port", str(port), "--save", "", "--appendonly", "no"]
    with running(command, log, executable=program, environment=libraries(folder)) as process:
        await_port(port)
        yield process.pid, f"{LOOPBACK}:{port}"


def _keyed(entity: int) -> bytes:
    """By key and request features."""
    place = inference.ModelInferRequest.InferInputTensor(name=KEY, datatype="BYTES", shape=[1])
    place.contents.bytes_contents.append(f"place {entity}".encode())
    return _infer(place, _numbers("request", request_features(entity)))


def _given(truth: Truth, entity: int) -> bytes:
    """By all features."""
    return _infer(_numbers("features", truth.features[entity].tolist()), outputs=["predict_proba"])


def _numbers(name: str, values: Sequence[float]) -> inference.ModelInferRequest.InferInputTensor:
    tensor = inference.ModelInferRequest.InferInputTensor(name=name, datatype="FP64", shape=[1, len(values)])
    tensor.contents.fp64_contents.extend(values)
    return tensor


def _infer(*inputs: inference.ModelInferRequest.InferInputTensor, outputs: Sequence[str] = ()) -> bytes:
    wanted = [inference.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs]
    return inference.ModelInferRequest(model_name=MODEL, inputs=inputs, outputs=wanted).SerializeToString()


def _inferred(answer: bytes) -> float | None:
    """The last number: `probability` has one, `predict_proba` ends with that of the positive class."""
    (output,) = (response := inference.ModelInferResponse.FromString(answer)).outputs
    values: Sequence[float] = output.contents.fp64_contents
    if response.raw_output_contents:
        values = np.frombuffer(response.raw_output_contents[0], np.float64).tolist()
    return values[-1]


def _predicted(answer: bytes) -> float | None:
    outputs = {column.name: column for column in prediction_pb2.PredictResponse.FromString(answer).outputs}
    values: list[float] = decode_column(outputs["probability"], "outputs").to_list()
    return values[0]
