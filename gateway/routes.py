"""Where calls go: to a service by the prefix of their path, and among its processes.

Two headers concern services that run in several processes. `x-foresight-request-id` names a request: calls with the
same one meet the same process. A few calls are about the process that answers; their answers name all processes in
`x-foresight-replicas`, and `x-foresight-replica` with one of these names chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.upstreams import REPLICA, RETRY_POLICY, by_request

Json = dict[str, Any]

REQUEST_ID_HEADER = "x-foresight-request-id"
REPLICA_HEADER = "x-foresight-replica"
REPLICAS_HEADER = "x-foresight-replicas"
# Each process answers for itself.
ABOUT_ONE_PROCESS = (
    "/foresight.predictor.v1.PredictionService/GetSpool",
    "/foresight.predictor.v1.PredictionService/ListServing",
)


def service_routes(service: str, prefixes: Sequence[str], processes: Sequence[str]) -> list[Json]:
    """The routes to the processes of a service; the first that fits is taken."""
    if len(processes) == 1:
        return [_route(_prefix(prefix), service) for prefix in prefixes]
    routes = []
    for path in ABOUT_ONE_PROCESS:
        if path.startswith(tuple(prefixes)):
            routes += [_to_one(path, service, name) for name in processes]
            routes.append(_naming_all(path, service, processes))
    named = {"name": REQUEST_ID_HEADER, "present_match": True}
    for prefix in prefixes:
        routes.append(_steady({**_prefix(prefix), "headers": [named]}, service))
        routes.append(_route(_prefix(prefix), service))
    return routes


def _prefix(prefix: str) -> Json:
    return {"prefix": prefix, "grpc": {}}


def _to_one(path: str, service: str, process: str) -> Json:
    header = {"name": REPLICA_HEADER, "string_match": {"exact": process}}
    route = _route({"path": path, "grpc": {}, "headers": [header]}, service)
    route["route"]["metadata_match"] = {"filter_metadata": {"envoy.lb": {REPLICA: process}}}
    return route


def _naming_all(path: str, service: str, processes: Sequence[str]) -> Json:
    header = {"key": REPLICAS_HEADER, "value": ",".join(processes)}
    route = _route({"path": path, "grpc": {}}, service)
    return {**route, "response_headers_to_add": [{"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]}


def _steady(match: Json, service: str) -> Json:
    route = _route(match, by_request(service))
    route["route"]["hash_policy"] = [{"header": {"header_name": REQUEST_ID_HEADER}}]
    return route


def _route(match: Json, cluster: str) -> Json:
    return {
        "match": match,
        "route": {
            "cluster": cluster,
            # Streams last as long as they need; a caller's own deadline is kept as it is.
            "timeout": "0s",
            "max_stream_duration": {"grpc_timeout_header_max": "0s"},
            "retry_policy": RETRY_POLICY,
        },
    }
