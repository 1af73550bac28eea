"""Feast's online features: KEYS entities over three feature views in one call.

python feast_online.py sqlite|redis [HOST:PORT]

Fills the store with ENTITIES entities, then asks CALLS times for random ones: in this process, which is where Feast's
SDK does its work, and then over HTTP from its feature server. Prints for both the milliseconds of each call and the CPU
milliseconds per call of the process that does the work (a Redis server's come on top).
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float64

ENTITIES, KEYS, VIEWS, FEATURES = 10_000, 64, 3, 5
WARM_CALLS, CALLS = 20, 300


def online_store(kind: str, work: Path, address: list[str]) -> dict[str, Any]:
    """Feast's configuration of the store."""
    if kind == "sqlite":
        return {"type": "sqlite", "path": str(work / "online.db")}
    return {"type": "redis", "connection_string": address[0]}


def main(arguments: list[str]) -> None:
    """Fills, asks, prints."""
    work = Path(tempfile.mkdtemp(prefix="feast-"))
    config = {
        "project": "online",
        "provider": "local",
        "registry": str(work / "registry.db"),
        "offline_store": {"type": "duckdb"},
        "online_store": online_store(arguments[0], work, arguments[1:]),
        "entity_key_serialization_version": 3,
    }
    store = FeatureStore(config=RepoConfig(**config))
    entity = Entity(name="place", join_keys=["place"], value_type=ValueType.INT64)
    names = [f"f{i}" for i in range(FEATURES)]
    now = datetime.now(tz=timezone.utc)  # noqa: UP017 - Feast runs on older Pythons too
    numbers = np.random.default_rng(1)
    views = []
    for v in range(VIEWS):
        rows = pd.DataFrame({"place": range(ENTITIES), "event_timestamp": now, "created": now})
        for name in names:
            rows[name] = numbers.random(ENTITIES)
        rows.to_parquet(work / f"view{v}.parquet")
        source = FileSource(
            name=f"source{v}",
            path=str(work / f"view{v}.parquet"),
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        )
        views.append(
            FeatureView(
                name=f"view{v}",
                entities=[entity],
                ttl=timedelta(days=1),
                source=source,
                schema=[Field(name=name, dtype=Float64) for name in names],
            )
        )
    store.apply([entity, *views])
    for v, view in enumerate(views):
        store.write_to_online_store(view.name, pd.read_parquet(work / f"view{v}.parquet"))
    features = [f"{view.name}:{name}" for view in views for name in names]
    in_process = ask(lambda keys: _from_sdk(store, features, keys), psutil.Process())
    (work / "feature_store.yaml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # One worker, as the figures are per call; by default it is started anew every 1,000 requests.
    command = ["feast", "-c", str(work), "serve", "--port", str(port), "--no-access-log", "--max-requests", "0"]
    server = subprocess.Popen([str(Path(sys.executable).with_name(command[0])), *command[1:]], stdout=sys.stderr)
    try:
        connection = _connected(port)
        served = ask(lambda keys: _from_server(connection, features, keys), psutil.Process(server.pid))
    finally:
        server.terminate()
        server.wait(30)
    print(json.dumps({"in_process": in_process, "server": served}))


def ask(call: Callable[[list[int]], object], worker: psutil.Process) -> dict[str, Any]:
    """Times the calls; `worker` and its children do the work."""
    chance = random.Random(1)
    milliseconds: list[float] = []
    before = 0.0
    for number in range(WARM_CALLS + CALLS):
        if number == WARM_CALLS:
            before = _cpu_s(worker)
        keys = [chance.randrange(ENTITIES) for _ in range(KEYS)]
        started = time.perf_counter()
        answer = call(keys)
        if number >= WARM_CALLS:
            milliseconds.append(1e3 * (time.perf_counter() - started))
        elif answer is None:
            raise RuntimeError("an entity that was written is not found")
    return {"milliseconds": milliseconds, "cpu_ms": 1e3 * (_cpu_s(worker) - before) / CALLS}


def _from_sdk(store: FeatureStore, features: list[str], keys: list[int]) -> object:
    rows = [{"place": key} for key in keys]
    answer = store.get_online_features(features=features, entity_rows=rows, full_feature_names=True)
    values = answer.to_dict()["view0__f0"]
    return None if None in values else values


def _from_server(connection: http.client.HTTPConnection, features: list[str], keys: list[int]) -> object:
    question = {"features": features, "entities": {"place": keys}, "full_feature_names": True}
    connection.request("POST", "/get-online-features", json.dumps(question), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    values = answer["results"][1]["values"]
    return None if None in values else values


def _connected(port: int) -> http.client.HTTPConnection:
    """A connection that is kept, once the server answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(600):
        try:
            connection.request("GET", "/health")
            if connection.getresponse().read() is not None:
                return connection
        except OSError:
            connection.close()
        time.sleep(0.1)
    raise RuntimeError("Feast's feature server does not answer")


def _cpu_s(process: psutil.Process) -> float:
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


if __name__ == "__main__":
    main(sys.argv[1:])
