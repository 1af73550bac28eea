"""What services see of a permitted call, how failures look, and how certificates change while calls go on."""

from __future__ import annotations

import functools
import json
import socket
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from gateway.certificates import ensure_certificates
from gateway.policy import APPLICATION, OPERATOR
from services.runtime.identity import caller_of
from tests.integration.gateway.rig import PREDICT, Rig, eventually

STREAM = "/foresight.predictor.v1.PredictionService/PredictStream"
HANG = "/foresight.predictor.v1.PredictionService/Hang"


def test_the_configuration_is_valid(rig: Rig) -> None:
    done = subprocess.run(rig.gateway.command("--mode", "validate"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


@pytest.mark.parametrize("forwarded_for", [(), (("x-forwarded-for", "203.0.113.9"),)])
def test_what_a_caller_could_pretend_with_is_replaced(rig: Rig, forwarded_for: tuple[tuple[str, str], ...]) -> None:
    spoofed = (
        ("x-forwarded-client-cert", "URI=spiffe://foresight/operator/root"),
        ("x-request-id", "chosen-by-the-caller"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
        ("x-envoy-internal", "true"),
        ("under_scored", "dropped"),
        ("own", "kept"),
        *forwarded_for,
    )
    _, call = rig.call(rig.client("application"), metadata=spoofed)
    [(_, metadata)] = rig.calls()
    assert caller_of(metadata.items()) == "spiffe://foresight/application/test"
    assert len(str(metadata["x-request-id"])) == 36
    assert not [key for key in metadata if key.startswith(("x-envoy", "x-forwarded-for"))]
    assert metadata["own"] == "kept"
    assert "under_scored" not in metadata
    assert {key for key, _ in call.initial_metadata()} <= {"date"}


def test_every_call_gets_an_id_of_its_own_and_a_line_in_the_access_log(rig: Rig) -> None:
    for _ in range(3):
        rig.call(rig.client("operator"))
    ids = {str(metadata["x-request-id"]) for _, metadata in rig.calls()}
    assert len(ids) == 3

    def logged() -> list[dict[str, Any]]:
        lines = map(json.loads, rig.gateway.access_log.read_text().splitlines())
        found = [line for line in lines if line["request_id"] in ids]
        return found if len(found) == 3 else []

    for line in eventually(logged):
        assert line["caller"] == OPERATOR.identity("test")
        assert (line["method"], line["code"], line["service"]) == (PREDICT, "OK", "predictor")


def test_a_message_of_the_largest_size_passes_both_ways(rig: Rig) -> None:
    body = bytes(15 << 20)
    assert rig.call(rig.client("operator"), body=body)[0] == body


def test_a_stream_passes_message_by_message(rig: Rig) -> None:
    with rig.channel(rig.client("operator")) as channel:
        sent: list[bytes] = []
        more = threading.Semaphore(1)

        def requests() -> Any:
            for number in range(5):
                more.acquire()
                sent.append(bytes([number]))
                yield sent[-1]

        calling: Any = channel.stream_stream(STREAM)
        for answer in calling(requests(), timeout=10):
            # The next one is sent only now: nothing is held back to fill a buffer.
            assert answer == sent[-1]
            more.release()
        assert len(sent) == 5


def test_a_deadline_holds_although_the_service_ignores_it(rig: Rig) -> None:
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as late:
        rig.call(rig.client("operator"), HANG, timeout_s=0.3)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 5


def test_a_stopped_service_is_unavailable_at_once_and_back_soon(rig: Rig) -> None:
    with rig.channel(rig.client("operator")) as channel:
        calling: Any = channel.unary_unary(PREDICT)
        calling(b"1", timeout=5)
        upstream = rig.upstreams["predictor"]
        upstream.stop()
        try:
            for _ in range(5):
                started = time.monotonic()
                with pytest.raises(grpc.RpcError) as down:
                    calling(b"2", timeout=20)
                assert time.monotonic() - started < 3
                assert (down.value.code(), down.value.details()) == (
                    grpc.StatusCode.UNAVAILABLE,
                    "the service does not answer",
                )
            # The others are not concerned.
            rig.call(rig.client("operator"), "/foresight.logger.v1.OutcomeService/RecordOutcomes")
        finally:
            upstream.start()

        def answered() -> bool:
            try:
                return bool(calling(b"3", timeout=5))
            except grpc.RpcError:
                return False

        eventually(answered)


def test_the_metrics_page_can_be_read_and_nothing_else(rig: Rig) -> None:
    rig.call(rig.client("operator"))
    status, page = rig.metrics()
    assert status == 200
    assert 'envoy_cluster_upstream_rq_total{envoy_cluster_name="predictor"}' in page
    for method, path in (
        ("POST", "/stats/prometheus"),
        ("POST", "/quitquitquit"),
        ("GET", "/quitquitquit"),
        ("GET", "/config_dump"),
        ("GET", "/"),
        ("GET", "/stats/prometheus/../../quitquitquit"),
    ):
        assert rig.metrics(method, path)[0] == 404
    rig.call(rig.client("operator"))


def presented_certificate(rig: Rig) -> bytes:
    """The server certificate of a new connection."""
    context = ssl.create_default_context(cafile=str(rig.gateway.certificates.authority))
    context.load_cert_chain(rig.gateway.certificates.client("operator"))
    with (
        socket.create_connection(("localhost", rig.gateway.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return secure.getpeercert(binary_form=True) or b""


def has_changed(rig: Rig, before: bytes) -> bool:
    return presented_certificate(rig) != before


def has_grown(counts: list[int], before: list[int]) -> bool:
    return all(now > then for now, then in zip(counts, before, strict=True))


def test_certificates_rotate_without_a_failed_call(rig: Rig) -> None:
    clients = {"operator": OPERATOR.identity("test"), "application": APPLICATION.identity("test")}
    done = threading.Event()
    failures: list[grpc.RpcError] = []
    answered = [0, 0]

    def keep_calling(place: int, fresh: bool) -> None:
        while not done.is_set():
            try:
                with rig.channel(rig.client("operator")) as channel:
                    calling: Any = channel.unary_unary(PREDICT)
                    for _ in range(1 if fresh else 1_000_000):
                        if done.is_set():
                            break
                        calling(b"hello", timeout=10)
                        answered[place] += 1
            except grpc.RpcError as error:
                failures.append(error)

    callers = [
        threading.Thread(target=keep_calling, args=(0, True)),
        threading.Thread(target=keep_calling, args=(1, False)),
    ]
    for caller in callers:
        caller.start()
    try:
        for _ in range(3):
            before, counted = presented_certificate(rig), list(answered)
            rig.gateway.certificates.server.unlink()
            assert ensure_certificates(rig.gateway.certificates, clients, datetime.now(UTC)) == ["server.pem"]
            eventually(functools.partial(has_changed, rig, before))
            eventually(functools.partial(has_grown, answered, counted))
    finally:
        done.set()
        for caller in callers:
            caller.join()
    assert failures == []
