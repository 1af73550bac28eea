"""How the gateway reaches a service: HTTP/2 over the Unix sockets of its processes, watched by gRPC health checks.

A process that says NOT_SERVING gets no new calls within half a second, one that ended within one, one that hangs within
three; it is back within a second once its health says SERVING. While there is none, calls are UNAVAILABLE at once.

Calls go to the process with fewer of them under way. Where a call names its request, all with the same name go to the
same process, as long as that is there: it knows the answer to a repeated one. Only a call that no process has seen is
tried again, at another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds per connection and per service; what exceeds the latter is answered UNAVAILABLE.

    For a service of several processes, calls that name their request are bounded by themselves, by as much again.
    """

    connection_buffer_bytes: int = 1 << 20
    stream_window_bytes: int = 1 << 20
    connection_window_bytes: int = 4 << 20
    concurrent_streams_per_connection: int = 256
    requests_per_service: int = 1024
    pending_requests_per_service: int = 1024
    connections_per_service: int = 16
    retries_per_service: int = 32
    # A stream may be silent that long; dead peers are found by pings far earlier.
    stream_idle_s: int = 3600
    connection_idle_s: int = 3600

    def http2(self) -> Json:
        """Options of an HTTP/2 connection, the same on both sides."""
        return {
            "max_concurrent_streams": self.concurrent_streams_per_connection,
            "initial_stream_window_size": self.stream_window_bytes,
            "initial_connection_window_size": self.connection_window_bytes,
        }


DEFAULT_LIMITS = Limits()

# All mean that no process has seen the call.
RETRY_POLICY: Json = {
    "retry_on": "connect-failure,refused-stream,reset-before-request",
    "num_retries": 3,
    "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.25s"},
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            },
        }
    ],
    "host_selection_retry_max_attempts": 5,
}
# The label of an endpoint: the name of its process.
REPLICA = "replica"


def by_request(service: str) -> str:
    """The name of the cluster of a service's processes where the name of a request says which one is meant."""
    return f"{service}-by-request"


def service_clusters(name: str, sockets: Mapping[str, Path], limits: Limits) -> list[Json]:
    """The clusters of the processes that serve `name`, whose sockets are given by their names."""
    cluster = _cluster(name, sockets, limits)
    if len(sockets) == 1:
        return [cluster]
    spread = {
        "lb_policy": "LEAST_REQUEST",
        # For calls that are about one process; whether it is there or not, no other one is meant.
        "lb_subset_config": {"fallback_policy": "ANY_ENDPOINT", "subset_selectors": [{"keys": [REPLICA]}]},
    }
    # One service, whichever way calls reach it.
    steady = {"name": by_request(name), "alt_stat_name": name, "lb_policy": "MAGLEV"}
    return [{**cluster, **spread}, {**cluster, **steady}]


def _cluster(name: str, sockets: Mapping[str, Path], limits: Limits) -> Json:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": limits.connection_buffer_bytes,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": limits.http2()},
                "common_http_protocol_options": {"idle_timeout": f"{limits.connection_idle_s}s"},
            }
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": limits.connections_per_service,
                    "max_pending_requests": limits.pending_requests_per_service,
                    "max_requests": limits.requests_per_service,
                    "max_retries": limits.retries_per_service,
                }
            ]
        },
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "0.5s",
                "no_traffic_interval": "0.5s",
                "no_traffic_healthy_interval": "0.5s",
                "unhealthy_interval": "0.25s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
        # Without this, endpoints would get calls although they are known to be down.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [_endpoint(*process) for process in sockets.items()]}],
        },
    }


def _endpoint(replica: str, socket: Path) -> Json:
    return {
        "endpoint": {"address": {"pipe": {"path": str(socket)}}},
        "metadata": {"filter_metadata": {"envoy.lb": {REPLICA: replica}}},
    }
