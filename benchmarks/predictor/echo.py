"""The empty call that a prediction is measured against: a grpc.aio server that answers what it was sent.

python -m benchmarks.predictor.echo unix:/path/of/the/socket
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

SERVICE, METHOD = "benchmarks.Echo", "Call"


async def main(address: str) -> None:
    """Serves until it is killed."""
    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {METHOD: grpc.unary_unary_rpc_method_handler(_answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


async def _answer(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    return request


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
