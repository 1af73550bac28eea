"""Channels to other services, over their Unix sockets.

A service that runs in several processes has an address for each. Calls go round among those that answer; one that
ends, or hangs for some seconds, is left out until it is back. A call that such a process took with it is made again at
another one when its method is `repeatable`: what only reads, or leaves the same behind however often it is called.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc

from services.runtime.server import MESSAGE_BYTES_MAX, PING_INTERVAL_MIN_MS
from services.runtime.status import upstream_error

# gRPC has this bound on how often it makes a call.
_ATTEMPTS = 5
# CANCELLED is how a server that stops, or has too much to do, drops what it has not looked at.
_ELSEWHERE = ("UNAVAILABLE", "CANCELLED")


@contextlib.asynccontextmanager
async def open_channel(
    addresses: str | Sequence[str], repeatable: Sequence[tuple[str, str]] = ()
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a service; it connects at the first call and reconnects within a second of a restart.

    `repeatable` names methods by service and name; an empty name stands for all of a service. It counts where there
    are several addresses: with one there is nobody else to ask.
    """
    each = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    channel = grpc.aio.insecure_channel(
        each[0] if len(each) == 1 else "unix:" + ",".join(address.removeprefix("unix:") for address in each),
        options=[
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            # One socket path is one server: no authority to check, and Envoy-style absolute names are not needed.
            ("grpc.default_authority", "localhost"),
            *(_spread(repeatable) if len(each) > 1 else ()),
        ],
    )
    try:
        yield channel
    finally:
        await channel.close()


def _spread(repeatable: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
    names = [{"service": service, **({"method": method} if method else {})} for service, method in repeatable]
    retry = {
        "maxAttempts": _ATTEMPTS,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.25s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": _ELSEWHERE,
    }
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if names:
        config["methodConfig"] = [{"name": names, "retryPolicy": retry}]
    return [
        ("grpc.service_config", json.dumps(config)),
        # A process that hangs keeps its connections; asked like this, while calls wait for it, it is found out.
        ("grpc.keepalive_time_ms", 2 * PING_INTERVAL_MIN_MS),
        ("grpc.keepalive_timeout_ms", PING_INTERVAL_MIN_MS),
        ("grpc.http2.ping_timeout_ms", PING_INTERVAL_MIN_MS),
        ("grpc.http2.max_pings_without_data", 0),
    ]


@contextlib.contextmanager
def translated(upstream: str) -> Iterator[None]:
    """Turns an upstream's RPC error into the error that it means here; `upstream` is its name for messages."""
    try:
        yield
    except grpc.RpcError as error:
        raise upstream_error(error, upstream) from error
