"""Channels to other services, over their Unix sockets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import grpc

from services.runtime.server import MESSAGE_BYTES_MAX
from services.runtime.status import upstream_error


@contextlib.asynccontextmanager
async def open_channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a service; it connects at the first call and reconnects within a second of a restart."""
    channel = grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            # One socket path is one server: no authority to check, and Envoy-style absolute names are not needed.
            ("grpc.default_authority", "localhost"),
        ],
    )
    try:
        yield channel
    finally:
        await channel.close()


@contextlib.contextmanager
def translated(upstream: str) -> Iterator[None]:
    """Turns an upstream's RPC error into the error that it means here; `upstream` is its name for messages."""
    try:
        yield
    except grpc.RpcError as error:
        raise upstream_error(error, upstream) from error
