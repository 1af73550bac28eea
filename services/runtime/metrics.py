"""Metrics in Prometheus' format. Labels come from closed sets: methods that exist, codes that gRPC has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

LATENCY_BUCKETS_S = (
    *(0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64),
)


class Metrics:
    """The registry of one process and the metrics that every server has.

    Services make their own metrics in `registry`, named `foresight_<service>_<what>_<unit>`.
    """

    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._service = service
        self._requests = Counter(
            "foresight_requests", "Calls answered", ["service", "method", "code"], registry=self.registry
        )
        self._latency = Histogram(
            "foresight_request_duration_seconds",
            "Time from the first byte of a call to its end",
            ["service", "method"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "foresight_requests_in_flight", "Calls being answered", ["service"], registry=self.registry
        ).labels(service)
        # Bound once: finding a child by its labels costs more than the observation. Methods and codes are few.
        self._finished: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Counts one finished call."""
        bound = self._finished.get((method, code))
        if bound is None:
            bound = self._requests.labels(self._service, method, code), self._latency.labels(self._service, method)
            self._finished[method, code] = bound
        bound[0].inc()
        bound[1].observe(seconds)

    def began(self) -> None:
        """A call is being answered; `ended` follows."""
        self._in_flight.inc()

    def ended(self) -> None:
        """A call that began is over."""
        self._in_flight.dec()

    @contextmanager
    def served(self, port: int) -> Iterator[None]:
        """Serves the page http://127.0.0.1:<port>/metrics; port 0: not at all."""
        if port == 0:
            yield
            return
        server, thread = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join(timeout=5)
