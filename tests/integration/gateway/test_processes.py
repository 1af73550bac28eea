"""A service that runs in several processes: which of them gets a call."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from gateway.policy import SERVICES
from tests.integration.gateway.rig import PREDICT, Rig, eventually, running_rig

GET_SPOOL = "/foresight.predictor.v1.PredictionService/GetSpool"
PROCESSES = ("predictor-0", "predictor-1", "predictor-2")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def several() -> Iterator[Rig]:
    with running_rig([*PROCESSES, *(name for name in SERVICES if name != "predictor")]) as rig:
        yield rig


@pytest.fixture
def rig(several: Rig) -> Rig:
    """All processes are there, and known to be."""
    with several.channel(several.client("operator")) as channel:
        eventually(lambda: len(answering(several, channel)) == len(PROCESSES), within_s=30)
    several.forget()
    return several


def answering(rig: Rig, channel: grpc.Channel, *ids: str) -> Counter[str]:
    """How many of some calls each process got; with ids, one call names each of them."""
    rig.forget()
    calling: Any = channel.unary_unary(PREDICT)
    for id in ids or [""] * 40:
        calling(b"?", timeout=20, metadata=(("x-foresight-request-id", id),) if id else ())
    return Counter({name: len(u.calls) for name, u in rig.upstreams.items() if u.calls})


def test_the_configuration_is_valid(rig: Rig) -> None:
    done = subprocess.run(rig.gateway.command("--mode", "validate"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


def test_the_calls_of_one_connection_go_to_all_processes(rig: Rig) -> None:
    with rig.channel(rig.client("operator")) as channel:
        assert set(answering(rig, channel)) == set(PROCESSES)


def test_a_repeated_request_meets_the_same_process_on_any_connection(rig: Rig) -> None:
    met = set[str]()
    for id in map(str, range(12)):
        first, second = Counter[str](), Counter[str]()
        for found in (first, second):
            with rig.channel(rig.client("application")) as channel:
                found.update(answering(rig, channel, id, id))
        assert first == second
        assert len(first) == 1
        met.update(first)
    assert len(met) > 1


def test_a_process_that_is_about_to_stop_gets_no_new_calls_and_is_back_afterwards(rig: Rig) -> None:
    leaving = rig.upstreams["predictor-1"]
    ids = [str(n) for n in range(30)]
    with rig.channel(rig.client("operator")) as channel:
        before = answering(rig, channel, *ids)
        leaving.say(NOT_SERVING)
        try:
            eventually(lambda: "predictor-1" not in answering(rig, channel))
            eventually(lambda: "predictor-1" not in answering(rig, channel, *ids))
        finally:
            leaving.say(SERVING)
        eventually(lambda: set(answering(rig, channel)) == set(PROCESSES))
        assert answering(rig, channel, *ids) == before


def test_a_process_that_is_gone_costs_no_call(rig: Rig) -> None:
    gone = rig.upstreams["predictor-0"]
    with rig.channel(rig.client("operator")) as channel:
        gone.stop()
        try:
            for ids in ([], [str(n) for n in range(30)]):
                assert set(answering(rig, channel, *ids)) == {"predictor-1", "predictor-2"}
        finally:
            gone.start()


def test_what_is_about_one_process_is_asked_of_each_by_its_name(rig: Rig) -> None:
    _, call = rig.call(rig.client("operator"), GET_SPOOL)
    names = dict(call.initial_metadata())["x-foresight-replicas"].split(",")
    assert names == list(PROCESSES)
    for name in names:
        rig.forget()
        rig.call(rig.client("operator"), GET_SPOOL, metadata=[("x-foresight-replica", name)])
        assert [len(u.calls) for n, u in rig.upstreams.items() if n == name] == [1]
        assert len(rig.calls()) == 1


def test_nobody_answers_for_a_process_that_is_away(rig: Rig) -> None:
    away = rig.upstreams["predictor-2"]
    away.say(NOT_SERVING)
    try:
        with rig.channel(rig.client("operator")) as channel:
            eventually(lambda: "predictor-2" not in answering(rig, channel))
        with pytest.raises(grpc.RpcError) as failed:
            rig.call(rig.client("operator"), GET_SPOOL, metadata=[("x-foresight-replica", "predictor-2")])
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        away.say(SERVING)


def test_where_calls_cannot_be_told_apart_they_count_as_those_of_one_service(rig: Rig) -> None:
    with rig.channel(rig.client("operator")) as channel:
        answering(rig, channel)
        answering(rig, channel, "named")
    page = rig.metrics()[1]
    assert 'envoy_cluster_name="predictor"' in page
    assert "by-request" not in page
