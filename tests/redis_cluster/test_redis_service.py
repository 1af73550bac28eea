"""Two feature stores of two machines over one cluster, by their documented settings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from foresight.feature_store.v1 import online_pb2
from services.feature_store.config import RedisSettings
from services.runtime.settings import DatabaseSettings
from tests.conftest import PostgresServer
from tests.wire.feature_store.conftest import environment, wait_until_serving
from tests.wire.feature_store.test_feature_store_calls import Calls, Code, rows


class Machine:
    """A process with a state folder of its own."""

    def __init__(self, database: DatabaseSettings, cluster: RedisSettings) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fs-mach-"))
        address = f"unix:{self.folder}/s"
        prefix = "FORESIGHT_FEATURE_STORE_ONLINE__REDIS__"
        online = {
            f"{prefix}URLS": json.dumps(cluster.urls),
            f"{prefix}PASSWORD_FILE": str(cluster.password_file),
            f"{prefix}PREFIX": cluster.prefix,
        }
        self._exits = contextlib.ExitStack()
        log = self._exits.enter_context((self.folder / "log").open("wb"))
        command = [sys.executable, "-m", "services.feature_store"]
        env = environment(address, database, self.folder) | online
        self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        wait_until_serving(address, self.process)
        options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = self._exits.enter_context(grpc.insecure_channel(address, options))

    def close(self) -> None:
        """Ends it."""
        self._exits.close()
        self.process.kill()
        self.process.wait(timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def machines(postgres_server: PostgresServer, settings: RedisSettings) -> Iterator[list[Machine]]:
    """Two of them."""
    database = asyncio.run(postgres_server.create_database("feature_store_machines"))
    made: list[Machine] = []
    try:
        made.extend(Machine(database, settings) for _ in range(2))
        yield made
    finally:
        for machine in made:
            machine.close()


def test_what_one_machine_wrote_the_other_serves_at_once(machines: list[Machine]) -> None:
    """Also after the one that applies was killed, and after a rebuild."""
    first, second = Calls(machines[0].channel), Calls(machines[1].channel)
    second.group, second.view = first.group, first.view
    for number in range(1, 21):
        writer, reader = (first, second) if number % 2 else (second, first)
        commit = writer.write(rows(float(number))).commit
        vectors = reader.vectors(["a", "absent"])
        assert vectors.applied_commit == commit
        assert list(vectors.features[0].column.float64_values.values) == [number, 0.0]
    machines[0].process.kill()
    machines[0].process.wait(timeout=10)
    commit = second.write(rows(99.0)).commit
    rebuilt = second.online.RebuildOnlineStore(online_pb2.RebuildOnlineStoreRequest())
    assert (rebuilt.applied_commit, rebuilt.keys) == (commit, 1)
    assert list(second.vectors(["a"]).features[0].column.float64_values.values) == [99.0]
    metadata = (("x-forwarded-client-cert", "URI=spiffe://foresight/application/demo"),)
    with pytest.raises(grpc.RpcError) as refused:
        second.online.RebuildOnlineStore(online_pb2.RebuildOnlineStoreRequest(), metadata=metadata)
    assert refused.value.code() is Code.PERMISSION_DENIED
