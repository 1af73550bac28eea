"""The one way to run a gRPC server: health that follows readiness, reflection, an end that costs no caller an answer.

SIGTERM drains: health says NOT_SERVING; a pause lets balancers look away while calls are answered as ever, and ends
when none come any more; then calls under way finish within the grace and the server ends. SIGINT leaves out the pause,
for those who know that nobody looks: the local stack stops the gateway first. A second signal ends the pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Sequence

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.runtime.boundary import Boundary
from services.runtime.metrics import Metrics
from services.runtime.settings import ServiceSettings

log = structlog.get_logger()

MESSAGE_BYTES_MAX = 16 << 20
# As gRPC has it.
PENDING_CALLS_MAX = 1_000
READINESS_PERIOD_S = 0.5
# While not ready: whoever waits for the start should not wait for the next look.
UNREADY_PERIOD_S = 0.05
READINESS_TIMEOUT_S = 2.0
# After the pause, so many looks in a row have to find no new call: a machine that is short of time may not have shown
# us those that came long ago. Callers that never look away get no more than QUIET_LOOKS_MAX of them.
QUIET_LOOK_S = 0.02
QUIET_LOOKS = 5
QUIET_LOOKS_MAX = 100
# Callers that look for a dead peer may ask so often; a server that does not say so ends their connection.
PING_INTERVAL_MIN_MS = 1_000

Ready = Callable[[], Awaitable[bool]]


class Server:
    """A gRPC server on one Unix socket.

    Add servicers to `grpc`, then `run`. `ready` is asked twice a second, and more often while it says no; health
    answers what it said last, for the empty name and for every service in `services` (full names). `stopping` is set
    at the first signal, so that streams without an end of their own can end; `closing` after the pause, for those that
    work for their callers until then.

    When calls come faster than they can even be looked at, they queue in the transport. From `pending_calls_max` of
    them on it drops new ones, from twice as many on all new ones: callers get CANCELLED, at next to no cost for us.
    """

    def __init__(
        self, settings: ServiceSettings, metrics: Metrics, *, pending_calls_max: int = PENDING_CALLS_MAX
    ) -> None:
        self._settings = settings
        self.stopping = asyncio.Event()
        self.closing = asyncio.Event()
        self._unwatched = asyncio.Event()
        self._boundary = Boundary(metrics)
        self.grpc = grpc.aio.server(
            interceptors=[self._boundary],
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
                ("grpc.server.max_pending_requests", pending_calls_max),
                ("grpc.server.max_pending_requests_hard_limit", 2 * pending_calls_max),
            ],
        )

    async def run(self, services: Sequence[str], ready: Ready) -> None:
        """Serves until SIGTERM or SIGINT, then drains and stops; see the module."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGINT, self._stop)
        status = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(status, self.grpc)
        reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), self.grpc)
        names = ("", *services)
        for name in names:
            await status.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        # The socket must not be open to others even for a moment; its folder is 0700, and so is it.
        os.umask(0o077)
        self.grpc.add_insecure_port(self._settings.listen)
        await self.grpc.start()
        log.info("server_started", listen=self._settings.listen)
        follow = asyncio.create_task(_follow_readiness(status, names, ready))
        await self.stopping.wait()
        log.info("server_stopping")
        follow.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follow
        await status.enter_graceful_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_pause_s):
                await self._unwatched.wait()
        await self._quiet()
        self.closing.set()
        await self.grpc.stop(self._settings.stop_grace_s)
        log.info("server_stopped")

    async def _quiet(self) -> None:
        """Returns when no calls come any more, as those that nobody has looked at yet would be lost."""
        quiet = 0
        for _ in range(QUIET_LOOKS_MAX):
            if quiet == QUIET_LOOKS or self._unwatched.is_set():
                return
            calls = self._boundary.calls
            await asyncio.sleep(QUIET_LOOK_S)
            quiet = quiet + 1 if self._boundary.calls == calls else 0

    def _drain(self) -> None:
        if self.stopping.is_set():
            self._unwatched.set()
        self.stopping.set()

    def _stop(self) -> None:
        self._unwatched.set()
        self.stopping.set()


async def _follow_readiness(status: health.aio.HealthServicer, names: Sequence[str], ready: Ready) -> None:
    """Keeps health equal to what `ready` says; a check that fails or hangs counts as not ready."""
    last: bool | None = None
    while True:
        try:
            async with asyncio.timeout(READINESS_TIMEOUT_S):
                now = await ready()
        except Exception as error:  # noqa: BLE001 - a supervised loop: any fault means not ready
            now = False
            if last is not False:
                log.warning("readiness_check_failed", error=type(error).__name__)
        if now is not last:
            log.info("readiness_changed", ready=now)
            code = health_pb2.HealthCheckResponse.SERVING if now else health_pb2.HealthCheckResponse.NOT_SERVING
            for name in names:
                await status.set(name, code)
            last = now
        await asyncio.sleep(READINESS_PERIOD_S if now else UNREADY_PERIOD_S)
