"""How the gateway reaches a service: HTTP/2 over its Unix socket, watched by gRPC health checks.

A service that does not answer is out within two seconds and calls to it fail at once with UNAVAILABLE; it is back
within a quarter of a second once its health says SERVING. Only a call that never reached the service is tried again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds per connection and per service; what exceeds the latter is answered UNAVAILABLE."""

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

# Both mean that the service has not seen the call.
RETRY_POLICY: Json = {
    "retry_on": "connect-failure,refused-stream",
    "num_retries": 2,
    "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.25s"},
}


def service_cluster(name: str, socket: Path, limits: Limits) -> Json:
    """The cluster of the one process that serves `name`."""
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
                "interval": "1s",
                "no_traffic_interval": "1s",
                "no_traffic_healthy_interval": "1s",
                "unhealthy_interval": "0.25s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
        # Without this, the only endpoint would get calls although it is known to be down.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(socket)}}}}]}],
        },
    }
