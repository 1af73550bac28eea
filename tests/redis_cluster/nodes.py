"""A real cluster of three nodes on the loopback, without replicas and without files that outlive it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

NODES = 3
SLOTS = 16_384
START_TIMEOUT_S = 30.0


class ClusterNodes:
    """The processes of a cluster; `stop` and `start` one of them by its position: it forgets its rows."""

    def __init__(self, server: str, folder: Path, password: str) -> None:
        self._server = server
        self._folder = folder
        self._password = password
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        ports = _free_ports(2 * NODES)
        self.ports, self._bus_ports = ports[:NODES], ports[NODES:]

    @property
    def urls(self) -> tuple[str, ...]:
        """Addresses of all nodes."""
        return tuple(f"redis://127.0.0.1:{port}" for port in self.ports)

    def start(self, node: int) -> None:
        """Starts a node; it is back in the cluster when it was there before."""
        folder = self._folder / str(node)
        folder.mkdir(exist_ok=True)
        options = {
            "port": self.ports[node],
            "bind": "127.0.0.1",
            "cluster-enabled": "yes",
            "cluster-port": self._bus_ports[node],
            "cluster-node-timeout": 2_000,
            "cluster-config-file": "nodes.conf",
            "dir": folder,
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "requirepass": self._password,
            "masterauth": self._password,
        }
        arguments = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        with (folder / "log").open("ab") as log:
            self._processes[node] = subprocess.Popen(
                [self._server, *arguments], env=_environment(self._server), stdout=log, stderr=log
            )
        until(lambda: self.client(node).ping(), START_TIMEOUT_S)

    def stop(self, node: int) -> None:
        """Kills a node."""
        process = self._processes.pop(node)
        process.kill()
        process.wait(timeout=10)

    def join(self) -> None:
        """Makes one cluster of the nodes, with all slots."""
        share = -(-SLOTS // NODES)
        for node in range(NODES):
            client = self.client(node)
            ask(client, "CLUSTER ADDSLOTSRANGE", node * share, min(SLOTS, (node + 1) * share) - 1)
            ask(client, "CLUSTER SET-CONFIG-EPOCH", node + 1)
            for other in range(node):
                ask(client, "CLUSTER MEET", "127.0.0.1", self.ports[other], self._bus_ports[other])
        self.until_whole()

    def until_whole(self) -> None:
        """Returns when every node says that the cluster is whole."""
        until(lambda: all(self._is_whole(node) for node in range(NODES)), START_TIMEOUT_S)

    def client(self, node: int) -> redis.Redis:
        """A connection to one node."""
        return redis.Redis(port=self.ports[node], password=self._password, socket_timeout=5)

    def owns(self, node: int, key: str) -> bool:
        """Whether a node has the slot of a key."""
        share = -(-SLOTS // NODES)
        return key_slot(key.encode()) // share == node

    def close(self) -> None:
        """Kills all nodes."""
        for node in list(self._processes):
            self.stop(node)

    def _is_whole(self, node: int) -> bool:
        info = ask(self.client(node), "CLUSTER INFO")
        return bool(info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == NODES)


@contextlib.contextmanager
def running_cluster(server: str, password: str) -> Iterator[ClusterNodes]:
    """A cluster, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fs-redis-"))
    nodes = ClusterNodes(server, folder, password)
    try:
        for node in range(NODES):
            nodes.start(node)
        nodes.join()
        yield nodes
    finally:
        nodes.close()
        shutil.rmtree(folder, ignore_errors=True)


def ask(client: redis.Redis, *command: Any) -> Any:
    """The answer to a command."""
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


def _environment(server: str) -> dict[str, str]:
    """A server that was unpacked, not installed, has its libraries beside it."""
    libraries = {str(path.parent) for path in (Path(server).parents[1] / "lib").glob("*-linux-gnu/*.so*")}
    return dict(os.environ) | ({"LD_LIBRARY_PATH": ":".join(sorted(libraries))} if libraries else {})


def until(holds: Callable[[], Any], timeout_s: float) -> None:
    """Returns when `holds()` is true; connection errors count as false."""
    end = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(redis.RedisError):
            if holds():
                return
        if time.monotonic() > end:
            raise TimeoutError("the cluster does not come up")
        time.sleep(0.05)


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for made in sockets:
            made.bind(("127.0.0.1", 0))
        return [made.getsockname()[1] for made in sockets]
