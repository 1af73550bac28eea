"""Whether a program answers: gRPC health over a service's Unix socket, Envoy's administration over its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

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


class EnvoyAdmin:
    """Envoy's administration, behind a Unix socket. Raises OSError and TimeoutError when it does not answer."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def is_ready(self) -> bool:
        """Whether Envoy has started to listen."""
        try:
            return (await self._asked("GET", "/ready"))[0]
        except (OSError, TimeoutError):
            return False

    async def post(self, path: str) -> None:
        """Does something."""
        await self._asked("POST", path)

    async def gauges(self, pattern: str) -> dict[str, int]:
        """The measures whose names match."""
        _, page = await self._asked("GET", f"/stats?filter={quote(pattern)}")
        return {name: int(value) for name, _, value in (line.partition(": ") for line in page.splitlines()) if value}

    async def _asked(self, method: str, path: str) -> tuple[bool, str]:
        """Whether the answer is 200, and its body."""
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(self._socket)
            try:
                headers = "host: localhost\r\nconnection: close\r\ncontent-length: 0"
                writer.write(f"{method} {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode())
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
        if b"transfer-encoding: chunked" in head.lower():
            body = b"".join(_chunks(body))
        return b" 200 " in head.partition(b"\r\n")[0], body.decode()


def _chunks(body: bytes) -> Iterator[bytes]:
    """The parts of a body in HTTP's chunked form."""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        yield rest[:length]
        body = rest[length + 2 :] if length else b""
