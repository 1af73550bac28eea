"""The listener for callers: mutual TLS, HTTP/2 only, access by identity before a body is read, routes by prefix.

What a caller could use to pretend is removed or made anew: forwarded certificates, request ids, Envoy's own headers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.policy import PREFIXES, ROLES, SERVICES, Role, is_prefix
from gateway.refusals import REFUSALS, Refusal
from gateway.routes import service_routes
from gateway.upstreams import Limits

Json = dict[str, Any]

HEADERS_TIMEOUT = "10s"
HEADER_COUNT_MAX = 100
HEADERS_KIBIBYTES_MAX = 60

# A caller can write anything into the first; services need none of them.
REMOVED_HEADERS = ["x-forwarded-for", "x-forwarded-proto", "x-envoy-external-address"]

_EXTENSIONS = "type.googleapis.com/envoy.extensions"

ACCESS_LOG_FIELDS = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%6fZ)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "caller": "%DOWNSTREAM_PEER_URI_SAN%",
    "method": "%REQ(:PATH)%",
    "code": "%GRPC_STATUS(SNAKE_STRING)%",
    "http_status": "%RESPONSE_CODE%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "flags": "%RESPONSE_FLAGS%",
    "duration_ms": "%DURATION%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "service": "%UPSTREAM_CLUSTER%",
    "address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "tls": "%DOWNSTREAM_TLS_VERSION%",
}


def callers_listener(
    address: Json,
    server_secret: Path,
    authority_secret: Path,
    access_log: Path,
    limits: Limits,
    processes: Mapping[str, Sequence[str]],
) -> Json:
    """The listener; the two secrets are files of the secret discovery service, `processes` those of each service."""
    return {
        "name": "callers",
        "address": address,
        "per_connection_buffer_limit_bytes": limits.connection_buffer_bytes,
        "filter_chains": [
            {
                "transport_socket": _mutual_tls(server_secret, authority_secret),
                "transport_socket_connect_timeout": "5s",
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": _connection_manager(access_log, limits, processes),
                    }
                ],
            }
        ],
    }


def _mutual_tls(server_secret: Path, authority_secret: Path) -> Json:
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": True,
            # A resumed session would skip the check of the certificate.
            "disable_stateless_session_resumption": True,
            "disable_stateful_session_resumption": True,
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
                "tls_certificate_sds_secret_configs": [_secret("server", server_secret)],
                "validation_context_sds_secret_config": _secret("authority", authority_secret),
            },
        },
    }


def _secret(name: str, file: Path) -> Json:
    source = {"path_config_source": {"path": str(file)}, "resource_api_version": "V3"}
    return {"name": name, "sds_config": source}


def _connection_manager(access_log: Path, limits: Limits, processes: Mapping[str, Sequence[str]]) -> Json:
    return {
        "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "callers",
        "codec_type": "HTTP2",
        "use_remote_address": True,
        # Nobody is internal: internal callers could keep request ids and steer Envoy by headers.
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
        "generate_request_id": True,
        "preserve_external_request_id": False,
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"uri": True},
        "server_header_transformation": "PASS_THROUGH",
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "max_request_headers_kb": HEADERS_KIBIBYTES_MAX,
        "request_headers_timeout": HEADERS_TIMEOUT,
        "stream_idle_timeout": f"{limits.stream_idle_s}s",
        "common_http_protocol_options": {
            "idle_timeout": f"{limits.connection_idle_s}s",
            "max_headers_count": HEADER_COUNT_MAX,
            # Some frameworks take `a_b` for `a-b`. Refusing would reset the stream, which gRPC calls an internal error.
            "headers_with_underscores_action": "DROP_HEADER",
        },
        "http2_protocol_options": {
            **limits.http2(),
            # A faulty header ends its call, not the connection with everybody else's.
            "override_stream_error_on_invalid_http_message": True,
            "connection_keepalive": {"interval": "30s", "timeout": "10s"},
        },
        "access_log": [
            {
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": f"{_EXTENSIONS}.access_loggers.file.v3.FileAccessLog",
                    "path": str(access_log),
                    "log_format": {"json_format": ACCESS_LOG_FIELDS},
                },
            }
        ],
        "local_reply_config": {"mappers": [_refusal(refusal) for refusal in REFUSALS]},
        "route_config": {
            "request_headers_to_remove": REMOVED_HEADERS,
            "virtual_hosts": [
                {
                    "name": "services",
                    "domains": ["*"],
                    "routes": [
                        route
                        for name, prefixes in SERVICES.items()
                        for route in service_routes(name, prefixes, processes[name])
                    ],
                }
            ],
        },
        "http_filters": [
            _access(),
            {
                "name": "envoy.filters.http.grpc_stats",
                "typed_config": {
                    "@type": f"{_EXTENSIONS}.filters.http.grpc_stats.v3.FilterConfig",
                    # Per service; a label per method would let callers make labels.
                    "stats_for_all_methods": False,
                },
            },
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": f"{_EXTENSIONS}.filters.http.router.v3.Router",
                    "suppress_envoy_headers": True,
                },
            },
        ],
    }


def _access() -> Json:
    return {
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": f"{_EXTENSIONS}.filters.http.rbac.v3.RBAC",
            "rules": {
                "action": "ALLOW",
                "policies": {
                    **{role.name: _policy(role) for role in ROLES},
                    # A path without a route is answered UNIMPLEMENTED, to whoever may call anything at all.
                    "unrouted": {
                        "permissions": [{"not_rule": {"or_rules": {"rules": _paths(PREFIXES)}}}],
                        "principals": [_principal(role) for role in ROLES],
                    },
                },
            },
        },
    }


def _policy(role: Role) -> Json:
    return {"permissions": _paths(role.paths), "principals": [_principal(role)]}


def _paths(paths: Sequence[str]) -> list[Json]:
    return [{"url_path": {"path": {"prefix" if is_prefix(path) else "exact": path}}} for path in paths]


def _principal(role: Role) -> Json:
    """Matches URI names of a verified certificate only, never its DNS names or its subject."""
    config = {
        "@type": f"{_EXTENSIONS}.rbac.principals.mtls_authenticated.v3.Config",
        "san_matcher": {"san_type": "URI", "matcher": {"safe_regex": {"regex": role.identities}}},
    }
    return {"custom": {"name": "envoy.rbac.principals.mtls_authenticated", "typed_config": config}}


def _refusal(refusal: Refusal) -> Json:
    details = {"key": "grpc-status-details-bin", "value": refusal.details}
    return {
        "filter": {
            "status_code_filter": {
                "comparison": {
                    "op": "EQ",
                    "value": {"default_value": refusal.http_status, "runtime_key": f"refusal_{refusal.http_status}"},
                }
            }
        },
        "body": {"inline_string": refusal.message},
        "headers_to_add": [{"header": details, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
    }
