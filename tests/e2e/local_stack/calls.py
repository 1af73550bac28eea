"""Calls through a stack's gateway with the bare generated stubs, and what processes it left."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import psutil

from foresight.trainer.v1 import model_registry_pb2, model_registry_pb2_grpc

Json = dict[str, Any]


def list_models(connection: Json, identity: str, timeout_s: float = 10) -> model_registry_pb2.ListModelVersionsResponse:
    """One call to the trainer. Raises grpc.RpcError."""
    files = connection["identities"][identity]
    credentials = grpc.ssl_channel_credentials(
        Path(connection["ca"]).read_bytes(), Path(files["key"]).read_bytes(), Path(files["certificate"]).read_bytes()
    )
    with grpc.secure_channel(connection["gateway"], credentials) as channel:
        stub = model_registry_pb2_grpc.ModelRegistryServiceStub(channel)
        return stub.ListModelVersions(model_registry_pb2.ListModelVersionsRequest(), timeout=timeout_s)


def is_answering(connection: Json) -> bool:
    """Whether a call succeeds."""
    with contextlib.suppress(grpc.RpcError):
        list_models(connection, "operator", timeout_s=5)
        return True
    return False


def eventually(condition: Callable[[], Any], within_s: float = 30) -> Any:
    """The first true value of `condition`."""
    deadline, pause = time.monotonic() + within_s, threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.05)
    return value


def alive(pids: Iterable[int]) -> list[int]:
    """Those of the processes that go on running."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def family(pids: Iterable[int]) -> set[int]:
    """The processes and all that descend from them."""
    members = set(pids)
    for pid in list(members):
        with contextlib.suppress(psutil.NoSuchProcess):
            members |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
    return members
