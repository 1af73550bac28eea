"""Whether a program answers: gRPC health over a service's Unix socket, Envoy's readiness over its own."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

CHECK_TIMEOUT_S = 2.0


async def service_is_serving(socket: Path) -> bool:
    """Whether the whole server behind a socket says SERVING."""
    if not os.path.exists(socket):  # noqa: ASYNC240 - one look at a folder in memory
        return False
    # A fresh channel each time: one that failed would wait before it tries the new process behind the same path.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost")]
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=CHECK_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def envoy_is_ready(admin_socket: Path) -> bool:
    """Whether Envoy has started to listen, which it does once it has asked each service for its health."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(admin_socket)
            try:
                writer.write(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
