"""A real Envoy in front of small servers that record every call that reaches them."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gateway.certificates import LEAF_LIFETIME, Authority, CertificateFolder, ensure_certificates
from gateway.envoy import Gateway
from gateway.policy import APPLICATION, OPERATOR, SERVICES

MESSAGE_BYTES_MAX = 16 << 20
OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # Channels of different certificates must not share a connection.
    ("grpc.use_local_subchannel_pool", 1),
]
PREDICT = "/foresight.predictor.v1.PredictionService/Predict"
TRAIN = "/foresight.trainer.v1.TrainingService/Train"


def eventually(condition: Callable[[], Any], within_s: float = 10) -> Any:
    """The first true value of `condition`; fails after `within_s`."""
    deadline = time.monotonic() + within_s
    pause = threading.Event()
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.02)


@dataclass
class Upstream(grpc.GenericRpcHandler):
    """Answers every method with the bytes it got; `sleep` methods wait for their caller to give up."""

    socket: Path
    calls: list[tuple[str, dict[str, str | bytes]]] = field(default_factory=list)
    server: grpc.Server | None = None
    health: health.HealthServicer = field(default_factory=health.HealthServicer)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if details.method.startswith("/grpc.health"):
            return None
        self.calls.append((details.method, dict(details.invocation_metadata or ())))
        if details.method.endswith("/Hang"):
            return grpc.unary_unary_rpc_method_handler(self._hang)
        if details.method.endswith("Stream"):
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: requests)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)

    @staticmethod
    def _hang(request: bytes, context: grpc.ServicerContext) -> bytes:
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait(20)
        return request

    def start(self) -> None:
        self.say(health_pb2.HealthCheckResponse.SERVING)
        self.server = grpc.server(ThreadPoolExecutor(8), options=OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        self.server.add_generic_rpc_handlers((self,))
        self.server.add_insecure_port(f"unix:{self.socket}")
        self.server.start()

    def say(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        """What its health says."""
        self.health.set("", status)

    def stop(self) -> None:
        assert self.server is not None
        self.server.stop(0).wait()


@dataclass
class Rig:
    """One gateway with its upstreams, and certificates to call it with."""

    folder: Path
    gateway: Gateway
    authority: Authority
    upstreams: dict[str, Upstream]

    @property
    def address(self) -> str:
        return f"localhost:{self.gateway.port}"

    def calls(self) -> list[tuple[str, dict[str, str | bytes]]]:
        """Everything that reached a service since the last `forget`."""
        return [call for upstream in self.upstreams.values() for call in upstream.calls]

    def forget(self) -> None:
        for upstream in self.upstreams.values():
            upstream.calls.clear()

    def client(self, name: str) -> bytes:
        return self.gateway.certificates.client(name).read_bytes()

    def issue(
        self,
        *uris: str,
        dns: Sequence[str] = (),
        common_name: str = "test",
        usage: ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
        issued: timedelta = timedelta(minutes=-5),
        lifetime: timedelta = LEAF_LIFETIME,
        authority: Authority | None = None,
    ) -> bytes:
        names = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns)]
        signer = authority or self.authority
        return signer.issue(common_name, names, usage, datetime.now(UTC) + issued, lifetime)

    @contextlib.contextmanager
    def channel(self, identity: bytes | None) -> Iterator[grpc.Channel]:
        """A channel with a certificate, or without one."""
        trusted = self.gateway.certificates.authority.read_bytes()
        credentials = grpc.ssl_channel_credentials(trusted, identity, identity)
        with grpc.secure_channel(self.address, credentials, options=OPTIONS) as channel:
            yield channel

    def call(
        self,
        identity: bytes | None,
        method: str = PREDICT,
        body: bytes = b"hello",
        metadata: Sequence[tuple[str, str]] = (),
        timeout_s: float = 10,
    ) -> tuple[bytes, Any]:
        """One call on a fresh connection: its answer and the call. Raises grpc.RpcError."""
        with self.channel(identity) as channel:
            calling: Any = channel.unary_unary(method)
            answer: tuple[bytes, Any] = calling.with_call(body, timeout=timeout_s, metadata=tuple(metadata))
            return answer

    def refused(self, identity: bytes | None, method: str = PREDICT, **options: Any) -> grpc.RpcError:
        """The error of a call that must fail without reaching any service."""
        self.forget()
        try:
            self.call(identity, method, **options)
        except grpc.RpcError as error:
            assert self.calls() == []
            return error
        raise AssertionError(f"{method} was answered")

    def metrics(self, method: str = "GET", path: str = "/stats/prometheus") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.metrics_port, timeout=5)
        with contextlib.closing(connection):
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()


def free_port() -> int:
    """A port below the range from which outgoing connections take theirs."""
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def running_rig(processes: Sequence[str] = tuple(SERVICES)) -> Iterator[Rig]:
    """A rig with the identities `operator` and `application`, ready for calls.

    `processes` are names of services, with `-<number>` for a service that runs in several processes.
    """
    folder = Path(tempfile.mkdtemp(prefix="fs-gw-", dir="/tmp"))
    certificates = CertificateFolder(folder / "certificates")
    clients = {"operator": OPERATOR.identity("test"), "application": APPLICATION.identity("test")}
    ensure_certificates(certificates, clients, datetime.now(UTC))
    authority = Authority.load(certificates)
    upstreams = {name: Upstream(folder / f"{name}.sock") for name in processes}
    sockets = {
        service: {name: u.socket for name, u in upstreams.items() if name.partition("-")[0] == service}
        for service in SERVICES
    }
    gateway = Gateway(
        port=free_port(),
        metrics_port=free_port(),
        certificates=certificates,
        sockets={name: each if len(each) > 1 else each[name] for name, each in sockets.items()},
        folder=folder / "gateway",
        access_log=folder / "access.log",
    )
    gateway.write()
    for upstream in upstreams.values():
        upstream.start()
    rig = Rig(folder, gateway, authority, upstreams)
    with open(folder / "envoy.log", "w") as log:
        process = subprocess.Popen(gateway.command(), stdout=log, stderr=log, env={"PATH": os.environ["PATH"]})
    try:
        eventually(lambda: process.poll() is None and _all_healthy(rig))
        rig.forget()
        yield rig
    finally:
        process.kill()
        process.wait()
        for upstream in upstreams.values():
            upstream.stop()
        shutil.rmtree(folder)


def _all_healthy(rig: Rig) -> bool:
    with contextlib.suppress(OSError):
        page = rig.metrics()[1]
        line = 'envoy_cluster_membership_healthy{{envoy_cluster_name="{}"}} {}'
        return all(line.format(name, len(sockets)) in page for name, sockets in rig.gateway.processes.items())
    return False
