"""Foresight beside what would otherwise be built, through the same gateway with mutual TLS, in one interleaved run.

Each round gives every system its turn while the others idle: with IN_FLIGHT calls in flight, then at a load that is the
same for all. Medians over the rounds; a ratio is the median of the rounds' ratios. A curve shows for every system how
long one call in a hundred takes at shares of what it bears. Load generator, gateway and system share the machine; what
other programs take of it meanwhile is measured too. With --quick, little is measured and nothing written.

python -m benchmarks.gateway.side_by_side [--quick]
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.gateway.envoys import running_fronts
from benchmarks.gateway.h2load import H2Load
from benchmarks.gateway.rounds import Bench, Turn
from benchmarks.gateway.systems import ECHO, FORESIGHT, TITLES, learn, running_systems
from benchmarks.predictor.services import running_services
from benchmarks.results import FOLDER, Result, publish

TOPIC = "predictor_side_by_side"
IN_FLIGHT = 64
# The equal load is this share of what the first of these bears.
REFERENCE, EQUAL_SHARE = "mlserver_feast_1", 0.6
STACKS = ("mlserver_feast", "kserve_feast", "mlserver_feast_1", "kserve_feast_1")
ALONE = ("mlserver", "mlserver_1")
TIMES_THROUGHPUT_MIN = {"mlserver_feast": 10, "kserve_feast": 7, "mlserver_feast_1": 6, "kserve_feast_1": 6}
TIMES_THROUGHPUT_MIN |= dict.fromkeys(ALONE, 3)
TIMES_LESS_CPU_MIN = 8
TIMES_P99_MIN = 10
SHARE_OF_EMPTY_MIN = 0.7
IDLE_S = 5.0
# The whole run is to end within 20 minutes.
KIND_S, ROUNDS_MIN = 240.0, 3
CALLS_MIN = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """How long it is measured; a turn takes longer for a system that has become slower."""

    rounds: int = 5
    seconds: float = 4.0
    curve_rounds: int = 3
    curve_seconds: float = 2.0
    shares: Sequence[float] = (0.1, 0.3, 0.6, 0.85)


QUICK = Plan(rounds=1, seconds=1.5, curve_rounds=1, curve_seconds=1.0, shares=(0.3, 0.7))


Turns = dict[str, list[Turn]]


@dataclass(frozen=True, slots=True)
class Measured:
    """All turns by system: with IN_FLIGHT calls in flight, at the load that is the same for all, and by share of that
    which it bears.
    """

    idle_cpu: Mapping[str, float]
    in_flight: Turns = field(default_factory=lambda: {name: [] for name in TITLES})
    equal: Turns = field(default_factory=lambda: {name: [] for name in TITLES})
    curves: dict[str, dict[float, list[Turn]]] = field(default_factory=lambda: {name: {} for name in TITLES})

    @property
    def equal_per_s(self) -> float:
        """The load that is the same for all, calls per second."""
        return EQUAL_SHARE * _median(self.in_flight[REFERENCE], _per_s)

    def turns_of(self, name: str) -> list[Turn]:
        """Of one system, of all kinds."""
        return [*self.in_flight[name], *self.equal[name], *chain.from_iterable(self.curves[name].values())]


def measure(plan: Plan) -> Measured:
    """Starts everything, measures, and removes it."""
    folder = Path(tempfile.mkdtemp(prefix="fs-side-"))
    try:
        truth = learn(folder)
        with running_services(echo=False) as services, running_systems(folder, services, truth) as systems:
            addresses = {name: system.address for name, system in systems.items()}
            with running_fronts(folder, addresses) as fronts:
                bench = Bench(systems, fronts, truth, H2Load(folder))
                bench.await_ready()
                return _measure(bench, tuple(systems), plan)
    finally:
        shutil.rmtree(folder)


def _measure(bench: Bench, names: Sequence[str], plan: Plan) -> Measured:
    bears = {name: bench.warm_up(name, IN_FLIGHT) for name in names}
    measured = Measured(bench.idle_cpu(IDLE_S))
    for number in _while_there_is_time(plan.rounds):
        for name in _in_turn(names, number):
            turn = bench.in_flight(name, IN_FLIGHT, max(CALLS_MIN, round(bears[name] * plan.seconds)))
            bears[name] = turn.load.per_s
            measured.in_flight[name].append(turn)
    per_s = measured.equal_per_s
    for number in _while_there_is_time(plan.rounds):
        for name in _in_turn(names, number):
            # Who bears less has as long for fewer calls.
            seconds = plan.seconds * min(1.0, _median(measured.in_flight[name], _per_s) / per_s)
            measured.equal[name].append(bench.offered(name, per_s, seconds, seed=number))
    for number in _while_there_is_time(plan.curve_rounds, least=1):
        for share, name in product(plan.shares, _in_turn(names, number)):
            per_s = share * _median(measured.in_flight[name], _per_s)
            turn = bench.offered(name, per_s, plan.curve_seconds, seed=number)
            measured.curves[name].setdefault(share, []).append(turn)
    return measured


def _while_there_is_time(rounds: int, least: int = ROUNDS_MIN) -> Iterator[int]:
    """Numbers of rounds; on a machine so busy that KIND_S is over before the last one, they are fewer."""
    until = time.monotonic() + KIND_S
    for number in range(rounds):
        if number >= least and time.monotonic() > until:
            print(f"{number} of {rounds} rounds: there is no time for more")
            return
        yield number


def _in_turn(names: Sequence[str], number: int) -> Iterator[str]:
    """Another one begins each round."""
    first = number % len(names)
    yield from (*names[first:], *names[:first])


def _per_s(turn: Turn) -> float:
    return turn.load.per_s


def _p50_s(turn: Turn) -> float:
    return turn.load.quantile_s(0.5)


def _p99_s(turn: Turn) -> float:
    return turn.load.quantile_s(0.99)


def _server_cpu_s(turn: Turn) -> float:
    return turn.server_cpu_s


def _gateway_cpu_s(turn: Turn) -> float:
    return turn.gateway_cpu_s


def _others_cores(turn: Turn) -> float:
    return turn.others_cores


def _median(turns: Sequence[Turn], value: Callable[[Turn], float]) -> float:
    return statistics.median(map(value, turns))


def _ratio(over: Sequence[Turn], under: Sequence[Turn], value: Callable[[Turn], float]) -> float:
    return statistics.median(value(a) / value(b) for a, b in zip(over, under, strict=True))


def results_of(measured: Measured) -> list[Result]:
    """The figures of each system, then what they are held against."""
    results = []
    for name, turns in measured.in_flight.items():
        equal, title = measured.equal[name], TITLES[name]
        results += [
            Result(f"{title}: answers at {IN_FLIGHT} in flight", _median(turns, _per_s), "1/s"),
            Result(f"{title}: p50 at {IN_FLIGHT} in flight", 1e3 * _median(turns, _p50_s), "ms"),
            Result(f"{title}: p99 at {IN_FLIGHT} in flight", 1e3 * _median(turns, _p99_s), "ms"),
            Result(f"{title}: server CPU per call", 1e3 * _median(turns, _server_cpu_s), "ms"),
            Result(f"{title}: gateway CPU per call", 1e3 * _median(turns, _gateway_cpu_s), "ms"),
            Result(f"{title}: p50 at {measured.equal_per_s:.0f}/s", 1e3 * _median(equal, _p50_s), "ms"),
            Result(f"{title}: p99 at {measured.equal_per_s:.0f}/s", 1e3 * _median(equal, _p99_s), "ms"),
            Result(f"{title}: CPU while idle", 100 * measured.idle_cpu[name], "% of a core"),
        ]
    rounds = Result("rounds", min(len(turns) for turns in (*measured.in_flight.values(), *measured.equal.values())), "")
    others = Result(
        "cores that other programs took",
        _median([t for name in TITLES for t in measured.turns_of(name)], _others_cores),
        "",
    )
    return [*results, rounds, others, *held(measured)]


def held(measured: Measured) -> list[Result]:
    """What is held against the targets."""
    ours, ours_equal = measured.in_flight[FORESIGHT], measured.equal[FORESIGHT]
    found = []
    for name in (*STACKS, *ALONE):
        ratio = _ratio(ours, measured.in_flight[name], _per_s)
        least = TIMES_THROUGHPUT_MIN[name]
        found.append(Result(f"throughput: Foresight / {TITLES[name]}", ratio, "x", at_least=least))
    for name in STACKS:
        ratio = _ratio(measured.in_flight[name], ours, _server_cpu_s)
        found.append(Result(f"server CPU: {TITLES[name]} / Foresight", ratio, "x", at_least=TIMES_LESS_CPU_MIN))
    for name in STACKS:
        ratio = _ratio(measured.equal[name], ours_equal, _p99_s)
        found.append(Result(f"p99 at the same load: {TITLES[name]} / Foresight", ratio, "x", at_least=TIMES_P99_MIN))
    share = _ratio(ours, measured.in_flight[ECHO], _per_s)
    failed = {name: sum(turn.failed for turn in measured.turns_of(name)) for name in TITLES}
    return [
        *found,
        Result(f"throughput: Foresight / {TITLES[ECHO]}", share, "x", at_least=SHARE_OF_EMPTY_MIN),
        Result("calls that were refused: Foresight", failed.pop(FORESIGHT), "", at_most=0),
        # Some are offered more than they bear, and may refuse.
        Result("calls that were refused: all others", sum(failed.values()), ""),
    ]


def show(measured: Measured) -> None:
    """Prints a line per system."""
    table = Table(title=f"{IN_FLIGHT} in flight, and {measured.equal_per_s:.0f}/s for all", box=box.SIMPLE_HEAD)
    table.add_column("system", no_wrap=True)
    for heading in ("answers/s", "p50 ms", "p99 ms", "server ms", "gateway ms", "p50 ms, equal", "p99 ms, equal"):
        table.add_column(heading, justify="right")
    for name, turns in measured.in_flight.items():
        equal = measured.equal[name]
        milliseconds = [
            *(_median(turns, value) for value in (_p50_s, _p99_s, _server_cpu_s, _gateway_cpu_s)),
            *(_median(equal, value) for value in (_p50_s, _p99_s)),
        ]
        per_s = f"{_median(turns, _per_s):,.0f}"
        table.add_row(TITLES[name], per_s, *(f"{1e3 * value:,.2f}" for value in milliseconds))
    Console(width=130).print(table)


def draw(measured: Measured) -> None:
    """All systems in one picture: p99 by load, and a square for IN_FLIGHT calls in flight."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, turns in measured.in_flight.items():
        points = [(_median(at, _per_s), 1e3 * _median(at, _p99_s)) for _, at in sorted(measured.curves[name].items())]
        style = "--" if name.endswith("_1") else "-"
        (line,) = axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, label=TITLES[name])
        axes.plot(_median(turns, _per_s), 1e3 * _median(turns, _p99_s), "s", markersize=9, color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="answers per second", ylabel="p99, ms")
    axes.set_title(f"Latency by load, through the gateway (squares: {IN_FLIGHT} calls in flight)")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f"{TOPIC}.svg", metadata={"Date": None})


def main(arguments: Sequence[str]) -> int:
    """Measures and publishes."""
    # So that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print(f"{os.cpu_count()} cores, load average before {os.getloadavg()[0]:.1f}")
    if "--quick" in arguments:
        # For trying: too short to be kept.
        measured = measure(QUICK)
        show(measured)
        for result in held(measured):
            print(f"{result.name}: {result.value:.2f} {result.unit}")
        return 0
    measured = measure(Plan())
    show(measured)
    draw(measured)
    results = results_of(measured)
    publish(TOPIC, results)
    return 0 if all(result.holds for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
