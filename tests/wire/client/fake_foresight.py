"""A gateway with scripted services behind it: mutual TLS, real messages, answers that a test writes by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from foresight.feature_store.v1 import (
    erasure_pb2,
    lineage_pb2,
    log_ingestion_pb2,
    offline_pb2,
    online_pb2,
    pipeline_pb2,
    registry_pb2,
    statistics_pb2,
    training_dataset_pb2,
)
from foresight.logger.v1 import outcome_pb2, prediction_log_pb2
from foresight.predictor.v1 import prediction_pb2
from foresight.trainer.v1 import batch_prediction_pb2, flywheel_pb2, model_registry_pb2, training_pb2
from gateway.certificates import CertificateFolder, ensure_certificates
from services.runtime.status import DETAILS_KEY, status_of

FILES = (
    *(registry_pb2, offline_pb2, online_pb2, training_dataset_pb2, log_ingestion_pb2, statistics_pb2, lineage_pb2),
    *(erasure_pb2, pipeline_pb2, outcome_pb2, prediction_log_pb2, prediction_pb2),
    *(batch_prediction_pb2, flywheel_pb2, model_registry_pb2, training_pb2),
)
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
# A request, or all requests of a client stream, to an answer, or the answers of a server stream.
Answer = Callable[[Any], Any]


# Methods whose messages are answered one by one; others answer when they have them all.
EXCHANGES = frozenset({"PredictStream"})


class FakeForesight(grpc.GenericRpcHandler):
    """Answers what `on` was given; keeps what it was asked in `asked`, by the method's short name.

    An answer that raises an error of the services, or of `foresight.values`, fails as a service's boundary fails.
    """

    def __init__(self) -> None:
        self.asked: dict[str, list[Any]] = {}
        # What came along with the last call of a unary method.
        self.headers: dict[str, dict[str, Any]] = {}
        self._answers: dict[str, Answer] = {}
        self._processes: dict[str, dict[str, Any]] = {}

    def on(self, method: str, *answers: Any) -> None:
        """Scripts a method: a function of the request, or what to answer one after the other, the last for ever."""
        if len(answers) == 1 and callable(answers[0]) and not isinstance(answers[0], type):
            self._answers[method] = answers[0]
            return
        script = itertools.chain(answers, itertools.repeat(answers[-1]))
        self._answers[method] = lambda request: _raised(next(script))

    def on_processes(self, method: str, answers: dict[str, Any]) -> None:
        """Scripts a unary method that processes answer for themselves, as the gateway lets them be asked."""
        self._processes[method] = answers

    def requests(self, method: str) -> list[Any]:
        """What the method was asked; a list of messages per call for a client stream, all messages for an exchange."""
        return self.asked.get(method, [])

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a method that exists."""
        method = METHODS.get(handler_call_details.method)
        if method is None:
            return None
        name = {
            (False, False): "unary_unary",
            (False, True): "unary_stream",
            (True, False): "stream_unary",
            (True, True): "stream_stream",
        }[method.client_streaming, method.server_streaming]
        make: Any = getattr(grpc, f"{name}_rpc_method_handler")
        handle = self._stream(method.name) if method.server_streaming else self._unary(method.name)
        if method.name in EXCHANGES:
            handle = self._exchange(method.name)
        handler: grpc.RpcMethodHandler[Any, Any] = make(
            handle, GetMessageClass(method.input_type).FromString, GetMessageClass(method.output_type).SerializeToString
        )
        return handler

    def _unary(self, name: str) -> Callable[[Any, grpc.ServicerContext], Any]:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            self.headers[name] = dict(context.invocation_metadata())
            try:
                if processes := self._processes.get(name):
                    context.send_initial_metadata((("x-foresight-replicas", ",".join(processes)),))
                    chosen = dict(context.invocation_metadata()).get("x-foresight-replica", next(iter(processes)))
                    return _raised(processes[str(chosen)])
                return self._answer(name, request)
            except Exception as error:  # noqa: BLE001 - as the services' boundary does
                _abort(context, error)

        return handle

    def _stream(self, name: str) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
        def handle(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                for answer in self._answer(name, request):
                    yield _raised(answer)
            except Exception as error:  # noqa: BLE001 - as the services' boundary does
                _abort(context, error)

        return handle

    def _exchange(self, name: str) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
        """Answers message by message, as each comes; an error ends the call."""

        def handle(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                for request in requests:
                    yield _raised(self._answer(name, request))
            except Exception as error:  # noqa: BLE001 - as the services' boundary does
                _abort(context, error)

        return handle

    def _answer(self, name: str, request: Any) -> Any:
        if isinstance(request, Iterator):
            request = list(request)
        self.asked.setdefault(name, []).append(request)
        return self._answers[name](request)


class Gateway:
    """A running fake, with the state folder that leads to it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.fake = FakeForesight()
        folder = CertificateFolder(state / "certificates")
        ensure_certificates(folder, {"operator": "spiffe://foresight/operator/test"}, datetime.now(UTC))
        pem = folder.server.read_bytes()
        credentials = grpc.ssl_server_credentials([(pem, pem)], folder.authority.read_bytes(), require_client_auth=True)
        self._server = grpc.server(ThreadPoolExecutor(4), handlers=[self.fake])
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()
        client = str(folder.client("operator"))
        stack = {
            "version": 1,
            "gateway": f"127.0.0.1:{self.port}",
            "ca": str(folder.authority),
            "identities": {"operator": {"certificate": client, "key": client}},
        }
        (state / "foresight.json").write_text(json.dumps(stack))

    def stop(self) -> None:
        """Ends it; calls fail from now on."""
        self._server.stop(None).wait()


def tables(messages: Sequence[Any]) -> bytes:
    """The Arrow bytes of a client stream."""
    return b"".join(message.arrow for message in messages)


def pieces(kind: Callable[..., Any], chunks: Iterable[bytes]) -> list[Any]:
    """The messages of a server stream of Arrow bytes."""
    return [kind(arrow=chunk) for chunk in chunks]


def _raised(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _abort(context: grpc.ServicerContext, error: Exception) -> None:
    code, status = status_of(error)
    context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
    context.abort(code, status.message)
