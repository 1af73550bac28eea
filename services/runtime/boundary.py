"""The one boundary between gRPC and the services: every call is named, counted, logged and its errors mapped here.

grpc.aio answers malformed protobuf and unhandled exceptions with UNKNOWN and the exception's text, so the request
deserializer and the iteration over streams are wrapped too, not just the handler.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.rpc import status_pb2

from services.runtime.ids import new_id
from services.runtime.metrics import Metrics
from services.runtime.status import DETAILS_KEY, MalformedMessage, status_of, unimplemented

log = structlog.get_logger()

REQUEST_ID_HEADER = "x-request-id"
REQUEST_ID_BYTES_MAX = 64
HEALTH = "/grpc.health."


class _Malformed:
    """Stands for a request whose bytes could not be read."""


_MALFORMED = _Malformed()


class Boundary(grpc.aio.ServerInterceptor):
    """Wraps every method of a server."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Calls that came so far, but for those that ask for its health.
        self.calls = 0
        # Handlers are wrapped once per method that exists.
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Answers the wrapped handler of the method, or one that says UNIMPLEMENTED."""
        wrapped = self._wrapped.get(handler_call_details.method)
        if wrapped is not None:
            return wrapped
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return grpc.unary_unary_rpc_method_handler(self._unimplemented)
        method = handler_call_details.method
        deserializer = _tolerant(handler.request_deserializer)
        serializer = handler.response_serializer
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            wrapped = self._wrapped[method] = make(self._streaming(inner, method), deserializer, serializer)
            return wrapped
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
        make_unary: Any = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        unary: grpc.RpcMethodHandler[Any, Any] = make_unary(self._unary(inner, method), deserializer, serializer)
        self._wrapped[method] = unary
        return unary

    def _unary(self, inner: Any, method: str) -> Any:
        """A handler with one answer, to one request or a stream of them."""
        counted = not method.startswith(HEALTH)

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            bind_request(context)
            started = time.perf_counter()
            code = grpc.StatusCode.OK
            self._metrics.began()
            self.calls += counted
            try:
                return await inner(_checked(request), context)
            except (grpc.aio.AbortError, asyncio.CancelledError):
                code = _code_of(context)
                raise
            except Exception as error:  # noqa: BLE001 - the one boundary
                code = await self._abort(context, error, method)
            finally:
                self._metrics.ended()
                self._metrics.observe(method, code.name, time.perf_counter() - started)

        return call

    def _streaming(self, inner: Any, method: str) -> Any:
        counted = not method.startswith(HEALTH)

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            bind_request(context)
            started = time.perf_counter()
            code = grpc.StatusCode.OK
            self._metrics.began()
            self.calls += counted
            try:
                responses = inner(_checked(request), context)
                if inspect.isawaitable(responses):
                    # A handler that writes to the context itself, as that of health does.
                    await responses
                    return
                async for response in responses:
                    yield response
            except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
                code = _code_of(context)
                raise
            except Exception as error:  # noqa: BLE001 - the one boundary
                code = await self._abort(context, error, method)
            finally:
                self._metrics.ended()
                self._metrics.observe(method, code.name, time.perf_counter() - started)

        return call

    async def _abort(
        self, context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str
    ) -> grpc.StatusCode:
        code, status = refusal(error, method)
        try:
            await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))
        except grpc.aio.AbortError:
            # Counted by the caller, who re-raises nothing: gRPC has the status already.
            return code

    @staticmethod
    async def _unimplemented(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        status = unimplemented()
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, status.message, ((DETAILS_KEY, status.SerializeToString()),))


def refusal(error: Exception, method: str) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """What the caller of a method is told of an error, which is logged."""
    code, status = status_of(error)
    if code is grpc.StatusCode.INTERNAL:
        log.exception("call_failed_by_bug", method=method, exc_info=error)
    else:
        log.info("call_refused", method=method, code=code.name, reason=status.message[:300])
    return code, status


def bind_request(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Takes the request's id from the gateway, or makes one; all log lines of the call carry it."""
    request_id = request_id_of(context) or new_id()
    structlog.contextvars.bind_contextvars(request_id=request_id)
    return request_id


def request_id_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The `x-request-id` of a call, at most 64 printable ASCII characters; empty without one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_HEADER and isinstance(value, str) and value.isascii() and value.isprintable():
            return value[:REQUEST_ID_BYTES_MAX]
    return ""


def _code_of(context: grpc.aio.ServicerContext[Any, Any]) -> grpc.StatusCode:
    code: Any = context.code()
    if isinstance(code, int):
        code = next((c for c in grpc.StatusCode if c.value[0] == code), grpc.StatusCode.CANCELLED)
    return code if isinstance(code, grpc.StatusCode) and code is not grpc.StatusCode.OK else grpc.StatusCode.CANCELLED


def _tolerant(deserializer: Any) -> Any:
    if deserializer is None:
        return None

    def deserialize(data: bytes) -> Any:
        try:
            return deserializer(data)
        except Exception:  # noqa: BLE001 - any fault of the parser means malformed bytes
            return _MALFORMED

    return deserialize


def _checked(request: Any) -> Any:
    """The request, or an iterator over requests, that raises MalformedMessage where one could not be read."""
    if request is _MALFORMED:
        raise MalformedMessage
    if hasattr(request, "__aiter__"):
        return _checked_stream(request)
    return request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if request is _MALFORMED:
            raise MalformedMessage
        yield request
