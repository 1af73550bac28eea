"""The connection to a Foresight gateway: gRPC over mutual TLS, with deadlines and retries.

One channel per connection; it connects at the first call, may be shared by threads, and must not be used in a
process forked from the one that made it. An answer UNAVAILABLE is asked for again with jittered exponential backoff
until `retry_s` has passed, and so is that of an overloaded service, not before the time that it names; a stream starts
again from its beginning, one of predictions from the first that has no answer. What a repeated call leaves behind, when
the answer to the first one was lost, is said at each method that changes something.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from foresight.client.errors import CERTIFICATE, NotConnected, ResourceExhausted, Unavailable
from foresight.client.statuses import error_of

T = TypeVar("T")
Request = TypeVar("Request")
Response = TypeVar("Response")
# Names and values that go along with a call.
Headers = tuple[tuple[str, str], ...]

MESSAGE_BYTES_MAX = 16 << 20
PAUSE_MIN_S = 0.05
PAUSE_MAX_S = 2.0
STATE_VERSION = 1
# The gateway says with an answer which processes of a service there are, and takes a call to the one that is named.
REPLICAS_HEADER = "x-foresight-replicas"
REPLICA_HEADER = "x-foresight-replica"

CALL_S = 30.0
PREDICT_S = 5.0
READ_S = 120.0
TRAIN_S = 900.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where the gateway is, and the files that prove who is who: PEM certificates and the caller's key."""

    address: str
    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def local(cls, state: Path | str | None = None, identity: str = "operator") -> Target:
        """The local stack of a state folder; default: $FORESIGHT_STATE, else ./var/foresight."""
        folder = Path(state or os.environ.get("FORESIGHT_STATE") or "var/foresight")
        try:
            stack = json.loads((folder / "foresight.json").read_text())
        except FileNotFoundError:
            raise NotConnected(f"no local stack in {folder}; start one with `foresight up`") from None
        except OSError as error:
            raise NotConnected(f"cannot read the local stack in {folder}: {error.strerror}") from None
        except ValueError:
            raise NotConnected(f"foresight.json in {folder} cannot be read: it is damaged; restart the stack") from None
        if not isinstance(stack, dict) or stack.get("version") != STATE_VERSION:
            raise NotConnected(f"the stack in {folder} was made by another version of Foresight")
        if identity not in stack["identities"]:
            raise NotConnected(f"the stack in {folder} has no identity {identity}, only {sorted(stack['identities'])}")
        files = stack["identities"][identity]
        return cls(stack["gateway"], Path(stack["ca"]), Path(files["certificate"]), Path(files["key"]))


@dataclass(frozen=True, slots=True)
class Retry:
    """How long and how often a call is tried again that found nobody, or an overloaded service.

    Clock, sleep and randomness can be replaced in tests.
    """

    seconds: float = 30.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    def run(self, attempt: Callable[[], T], recovered: Callable[[], T | None] | None = None) -> T:
        """The result of the first attempt that is neither Unavailable nor refused with a time to come again.

        `recovered` is asked before each further attempt whether an earlier one went through after all.
        """
        give_up = self.clock() + self.seconds
        ceiling = PAUSE_MIN_S
        while True:
            try:
                return attempt()
            except (Unavailable, ResourceExhausted) as error:
                pause = ceiling * (0.5 + self.jitter() / 2)
                if isinstance(error, ResourceExhausted):
                    if error.retry_after_s is None:
                        raise
                    # Jittered upwards, so that those who were refused together do not come together.
                    pause += error.retry_after_s
                if error.reason == CERTIFICATE or self.clock() + pause > give_up:
                    raise
            self.sleep(pause)
            ceiling = min(2 * ceiling, PAUSE_MAX_S)
            if recovered is not None and (result := self.run(recovered)) is not None:
                return result


class Connection:
    """A channel with Foresight's rules for deadlines, retries and errors; see the module."""

    def __init__(self, channel: grpc.Channel, address: str, retry: Retry) -> None:
        self.channel = channel
        self.address = address
        self.retry = retry

    @classmethod
    def open(cls, target: Target, retry: Retry) -> Connection:
        """A connection to `target`; nothing is sent yet. Raises NotConnected when a file cannot be read."""
        try:
            credentials = grpc.ssl_channel_credentials(
                root_certificates=target.ca.read_bytes(),
                private_key=target.key.read_bytes(),
                certificate_chain=target.certificate.read_bytes(),
            )
        except OSError as error:
            raise NotConnected(f"cannot read {error.filename}: {error.strerror}") from None
        return cls(grpc.secure_channel(target.address, credentials, options_for(target.address)), target.address, retry)

    def close(self) -> None:
        """Ends the connection; calls under way are cancelled."""
        self.channel.close()

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float = CALL_S,
        recovered: Callable[[], Response | None] | None = None,
        headers: Headers = (),
    ) -> Response:
        """Calls with one request and one answer; the deadline counts anew for each attempt."""
        return self.retry.run(lambda: self.call_once(method, request, timeout_s, headers), recovered)

    def call_once(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float = CALL_S,
        headers: Headers = (),
    ) -> Response:
        """As `call`, without any retry."""
        try:
            return method(request, timeout=timeout_s, metadata=headers or None)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None

    def call_each_replica(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout_s: float = CALL_S
    ) -> list[Response]:
        """The answers of all processes of a service, to a method that concerns the one that answers.

        The gateway names them with the first answer. Raises Unavailable when one of them is away for longer than
        calls are tried again.
        """
        names: list[str] = []

        def ask() -> Response:
            try:
                answer, call = method.with_call(request, timeout=timeout_s)
            except grpc.RpcError as error:
                raise error_of(error, self.address) from None
            named = dict(call.initial_metadata() or ()).get(REPLICAS_HEADER, "")
            names[:] = [name for name in str(named).split(",") if name]
            return answer

        answer = self.retry.run(ask)
        if not names:
            return [answer]
        return [self.call(method, request, timeout_s, headers=((REPLICA_HEADER, name),)) for name in names]

    def upload(
        self,
        method: grpc.StreamUnaryMultiCallable[Request, Response],
        requests: Callable[[], Iterator[Request]],
        timeout_s: float,
        *,
        repeatable: bool = True,
    ) -> Response:
        """Sends the stream that `requests` makes, once per attempt, and returns the answer; not `repeatable`: once.

        What `requests` raises ends the call and is raised here.
        """

        def attempt() -> Response:
            raised: list[Exception] = []
            try:
                return method(_noting(requests(), raised), timeout=timeout_s)
            except grpc.RpcError as error:
                raise (raised[0] if raised else error_of(error, self.address)) from None

        return self.retry.run(attempt) if repeatable else attempt()

    def download(
        self,
        start: Callable[[], Iterable[Response]],
        read: Callable[[Iterator[Response]], T],
    ) -> T:
        """What `read` makes of the stream that `start` opens; both are called once per attempt."""

        def attempt() -> T:
            stream: Any = start()
            try:
                return read(self._translated(stream))
            finally:
                # A reader that stopped early must not leave the call open.
                stream.cancel()

        return self.retry.run(attempt)

    @contextmanager
    def streamed(self, start: Callable[[], Iterable[Response]]) -> Iterator[Iterator[Response]]:
        """The stream that `start` opens, for those who use its parts as they come: it is never asked for again."""
        stream: Any = start()
        try:
            yield self._translated(stream)
        finally:
            # A reader that stopped early must not leave the call open.
            stream.cancel()

    def _translated(self, stream: Iterable[Response]) -> Iterator[Response]:
        try:
            yield from stream
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None


class Calls:
    """A part of the client: the calls about one noun, over a shared connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection


def _noting(requests: Iterator[Request], raised: list[Exception]) -> Iterator[Request]:
    """The requests; what they raise is noted, as a call says only that something was."""
    try:
        yield from requests
    except Exception as error:
        raised.append(error)
        raise


def options_for(address: str) -> list[tuple[str, Any]]:
    """The channel's options: 16 MiB messages, quick reconnects after a restart, pings while calls are under way."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    host = address.rpartition(":")[0]
    if host in ("localhost", "[::1]") or host.startswith("127."):
        # A proxy named in the environment cannot reach this machine's loopback.
        options.append(("grpc.enable_http_proxy", 0))
    return options
