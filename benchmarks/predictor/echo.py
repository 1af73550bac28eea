"""The empty call that a prediction is measured against: a grpc.aio server that answers what it was sent.

python -m benchmarks.predictor.echo unix:/path/of/the/socket [/package.Service/Method]
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

CALL = "/benchmarks.Echo/Call"


async def main(address: str, path: str = CALL) -> None:
    """Serves until it is killed."""
    server = grpc.aio.server()
    _, service, method = path.split("/")
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {method: grpc.unary_unary_rpc_method_handler(_answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


async def _answer(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    return request


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
