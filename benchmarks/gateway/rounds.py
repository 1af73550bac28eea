"""Rounds in which each system takes its turn under load, through its gateway, while the others idle.

Before and after each turn answers are checked against the model, over the way that the load takes; and the gateway
counts which of the load's calls were not answered with OK.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import grpc
import psutil

from benchmarks.gateway.envoys import Front
from benchmarks.gateway.h2load import H2Load, Load
from benchmarks.gateway.systems import System, Truth, process_cpu_s
from benchmarks.predictor.services import ENTITIES
from gateway.envoy import LOOPBACK

READY_S = 120.0
FIRST_CALLS, WARM_UP_S = 500, 2.0
# What was answered is soon logged, which belongs to it.
SETTLED_S = 0.5
CHECKED = 8
TOLERANCE = 1e-5
CALL_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Turn:
    """What a load did, with the CPU seconds of the system and of its gateway per call. `failed` were not OK.

    `others_cores` is how many cores' time programs took that have no part in it.
    """

    load: Load
    failed: int
    server_cpu_s: float
    gateway_cpu_s: float
    others_cores: float


class Bench:
    """Gives systems their turns."""

    def __init__(
        self, systems: Mapping[str, System], fronts: Mapping[str, Front], truth: Truth, h2load: H2Load
    ) -> None:
        self._systems, self._fronts, self._truth, self._h2load = systems, fronts, truth, h2load
        self._turns = 0

    def await_ready(self) -> None:
        """Returns once every system answers rightly. Raises TimeoutError, naming the one that does not."""
        deadline = time.monotonic() + READY_S
        for name in self._systems:
            while True:
                try:
                    self._check(name)
                    break
                except grpc.RpcError as error:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"{name} does not answer") from error
                time.sleep(0.5)

    def idle_cpu(self, seconds: float) -> dict[str, float]:
        """Shares of a core that the systems use while none is asked."""
        before = {name: system.cpu_s() for name, system in self._systems.items()}
        time.sleep(seconds)
        return {name: (system.cpu_s() - before[name]) / seconds for name, system in self._systems.items()}

    def warm_up(self, name: str, in_flight: int) -> float:
        """Asks for a while; answers how many calls a second the system bears with so many in flight."""
        calls, per_s = FIRST_CALLS, 0.0
        for _ in range(2):
            run = partial(self._h2load.in_flight, in_flight=in_flight, calls=calls)
            per_s = self._turn(name, run).load.per_s
            calls = max(FIRST_CALLS, round(WARM_UP_S * per_s))
        return per_s

    def in_flight(self, name: str, in_flight: int, calls: int) -> Turn:
        """So many calls, of which so many are in flight."""
        return self._turn(name, partial(self._h2load.in_flight, in_flight=in_flight, calls=calls))

    def offered(self, name: str, per_s: float, seconds: float, seed: int) -> Turn:
        """Calls at random moments, the same for every system that is given the same seed."""
        return self._turn(name, partial(self._h2load.offered, per_s=per_s, seconds=seconds, seed=seed))

    def _turn(self, name: str, run: Callable[[str, bytes], Load]) -> Turn:
        system, front = self._systems[name], self._fronts[name]
        self._check(name)
        self._turns += 1
        message = system.question(self._turns % ENTITIES)
        pids = {"gateway": front.pid, "load": front.load_pid}
        counted, started, busy = front.counts(), time.perf_counter(), _busy_s()
        before = {"server": system.cpu_s()} | {part: process_cpu_s(pid) for part, pid in pids.items()}
        load = run(f"http://{LOOPBACK}:{front.plain_port}{system.method}", message)
        time.sleep(SETTLED_S)
        after = {"server": system.cpu_s()} | {part: process_cpu_s(pid) for part, pid in pids.items()}
        used = {part: after[part] - before[part] for part in after}
        busy, seconds = _busy_s() - busy, time.perf_counter() - started
        ended = front.counts() - counted
        self._check(name)
        failed = load.calls - ended[grpc.StatusCode.OK.value[0]]
        if failed:
            print(f"{name}: of {load.calls:,} calls the gateway saw, by status, {dict(ended)}")
        others = max(0.0, busy - sum(used.values())) / seconds
        return Turn(load, failed, used["server"] / load.calls, used["gateway"] / load.calls, others)

    def _check(self, name: str) -> None:
        """Asks for some entities. Raises RuntimeError for a wrong answer, RpcError for none."""
        system, front = self._systems[name], self._fronts[name]
        with grpc.insecure_channel(f"{LOOPBACK}:{front.plain_port}") as channel:
            ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(system.method)
            for number in range(CHECKED):
                entity = (self._turns * CHECKED + number * 37) % ENTITIES
                found = system.probability(ask(system.question(entity), timeout=CALL_TIMEOUT_S))
                expected = self._truth.probabilities[entity]
                if found is not None and abs(found - expected) > TOLERANCE:
                    raise RuntimeError(f"{name} answers {found} for entity {entity} and not {expected}")


def _busy_s() -> float:
    """CPU seconds of the whole machine so far, less those of this process and its children that have ended."""
    machine, own = psutil.cpu_times(), os.times()
    return float(machine.user + machine.nice + machine.system + machine.irq + machine.softirq) - sum(own[:4])
