"""Reading h2load's log and the gateway's counts, and what becomes of turns."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from benchmarks.gateway.envoys import in_front_of, parse_counts
from benchmarks.gateway.h2load import ROUNDED_UP_MS, Load, parse_log, poisson_script
from benchmarks.gateway.rounds import Turn
from benchmarks.gateway.side_by_side import Measured, results_of
from benchmarks.gateway.systems import ECHO, FORESIGHT, TITLES

METRICS = """\
# TYPE envoy_cluster_grpc_0 counter
envoy_cluster_grpc_0{envoy_cluster_name="predictor"} 39497
envoy_cluster_grpc_8{envoy_cluster_name="predictor"} 3
envoy_cluster_grpc_0{envoy_cluster_name="trainer"} 5
envoy_cluster_grpc_success{envoy_cluster_name="predictor"} 39497
"""


def log(*calls: tuple[int, int, int]) -> str:
    return "".join(f"{start}\t{status}\t{latency}\n" for start, status, latency in calls)


def test_the_first_calls_that_are_answered_do_not_count() -> None:
    text = log((5_900_000, 200, 200_000), (5_000_000, 200, 1_000), (6_500_000, 200, 501_000), (6_000_000, 200, 501_000))
    load = parse_log(text, calls=4, warm_share=0.25)
    assert load.calls == 4
    assert load.latencies_s == pytest.approx([0.2, 0.501, 0.501])
    assert load.seconds == pytest.approx(2.0)
    assert load.per_s == pytest.approx(1.5)


def test_time_begins_when_the_first_is_answered() -> None:
    load = parse_log(log((1_000_000, 200, 1_000), (1_000_000, 200, 9_000)), calls=2, warm_share=0)
    assert load.seconds == pytest.approx(0.008)
    assert load.latencies_s == pytest.approx([0.009])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (log((1, 200, 5)), "1 of 2 calls were answered"),
        (log((1, 200, 5), (2, -1, 5)), "1 of 2 calls were answered"),
        (log((1, 200, 5), (2, 503, 5)), "1 of 2 calls were answered"),
        ("", "0 of 2 calls were answered"),
    ],
)
def test_a_log_that_shows_too_little_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_log(text, calls=2)


def test_quantiles_are_those_of_the_sorted_latencies() -> None:
    load = Load(100, 1.0, [i / 1e3 for i in reversed(range(100))])
    assert load.quantile_s(0.5) == pytest.approx(0.050)
    assert load.quantile_s(0.99) == pytest.approx(0.099)
    assert load.quantile_s(1.0) == pytest.approx(0.099)


def test_a_script_has_every_call_in_order_and_is_the_same_for_the_same_seed() -> None:
    lines = poisson_script("http://x/y", per_s=200, seconds=2.0, seed=7)
    moments = [float(line.split("\t")[0]) for line in lines]
    assert len(lines) == 400
    assert {line.split("\t")[1] for line in lines} == {"http://x/y"}
    assert moments == sorted(moments)
    assert moments[0] >= 0
    assert lines == poisson_script("http://x/y", per_s=200, seconds=2.0, seed=7)
    assert lines != poisson_script("http://x/y", per_s=200, seconds=2.0, seed=8)
    gaps = {round(later - earlier, 3) for earlier, later in pairwise(moments)}
    # At the same moment, or what h2load rounds up to whole milliseconds.
    assert all(gap == 0 or (gap + ROUNDED_UP_MS) == pytest.approx(round(gap + ROUNDED_UP_MS)) for gap in gaps)


def test_the_gateways_counts_are_those_of_the_predictor_by_status() -> None:
    counts = parse_counts(METRICS)
    assert counts == {0: 39497, 8: 3}
    assert (counts - parse_counts("")) == counts


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("unix:/run/p.s", {"pipe": {"path": "/run/p.s"}}),
        ("127.0.0.1:81", {"socket_address": {"address": "127.0.0.1", "port_value": 81}}),
    ],
)
def test_only_the_predictor_is_elsewhere(address: str, expected: object) -> None:
    def cluster(name: str) -> dict[str, object]:
        endpoint = {"endpoint": {"address": {"pipe": {"path": "/none"}}}}
        return {
            "name": name,
            "health_checks": [{}],
            "load_assignment": {"endpoints": [{"lb_endpoints": [endpoint]}]},
        }

    rendered = {"static_resources": {"clusters": [cluster("predictor"), cluster("trainer")], "listeners": ["as it is"]}}
    found = in_front_of(address, rendered)["static_resources"]
    assert found["listeners"] == ["as it is"]
    predictor, trainer = (c["load_assignment"]["endpoints"][0]["lb_endpoints"][0] for c in found["clusters"])
    assert predictor["endpoint"]["address"] == expected
    assert trainer["endpoint"]["address"] == {"pipe": {"path": "/none"}}
    assert "health_checks" not in json.dumps(found)


def turn(per_s: float, p99_s: float, cpu_s: float, failed: int = 0) -> Turn:
    return Turn(Load(10, 1.0 / per_s, [p99_s]), failed, cpu_s, 0.0001, others_cores=0.5)


def measured(failed: int = 0) -> Measured:
    every = {name: [turn(100, 0.1, 0.01)] for name in TITLES}
    every[FORESIGHT], every[ECHO] = [turn(1_000, 0.01, 0.001, failed)], [turn(1_250, 0.01, 0.0005)]
    return Measured(dict.fromkeys(TITLES, 0.0), every, every)


def test_ratios_are_held_against_the_targets() -> None:
    held = {r.name: r for r in results_of(measured()) if r.at_least is not None or r.at_most is not None}
    assert held["throughput: Foresight / MLServer + Feast"].value == pytest.approx(10)
    assert held["server CPU: KServe + Feast / Foresight"].value == pytest.approx(10)
    assert held["p99 at the same load: KServe + Feast, one thread / Foresight"].value == pytest.approx(10)
    assert held["throughput: Foresight / empty grpc.aio call"].value == pytest.approx(0.8)
    # Four stacks in throughput, CPU and p99, MLServer alone twice, the empty call, and that all was answered.
    assert len(held) == 4 * 3 + 2 + 1 + 1


def test_the_equal_load_is_a_share_of_what_the_stack_bears() -> None:
    assert measured().equal_per_s == pytest.approx(60)


def test_a_call_that_was_not_answered_is_no_success() -> None:
    ours, others = results_of(measured(failed=1))[-2:]
    # Of the turns with calls in flight and of those at the same load.
    assert ours.value == 2
    assert not ours.holds
    assert others.value == 0
