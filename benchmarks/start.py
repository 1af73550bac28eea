"""How long the local stack takes to be ready, and to answer the first prediction with a model deployed.

make bench-start
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import Result, publish
from deploy.local import LocalStack
from examples.first_steps import service
from foresight.client import Client

RUNS = 5
SEVERAL = 2


def main() -> int:
    """Measures RUNS first and RUNS later starts, of single processes and of several; medians."""
    single, several = [], []
    for _ in range(RUNS):
        single.append(start_twice(1))
        several.append(start_twice(SEVERAL))
    first, again, answered, restarted, stopped = (statistics.median(figures) for figures in zip(*single, strict=True))
    of_several = "two predictors and two feature stores: {}".format
    _, _, answered_by_several, restarted_several, stopped_several = (
        statistics.median(figures) for figures in zip(*several, strict=True)
    )
    results = [
        Result("ready, empty state folder", first, "s", at_most=5),
        Result("ready, with a model deployed", again, "s", at_most=5),
        Result("first answered prediction, with a model deployed", answered, "s", at_most=5),
        Result("predictor restarted, until the gateway uses it", restarted, "s"),
        Result("down", stopped, "s"),
        Result(of_several("first answered prediction"), answered_by_several, "s"),
        Result(of_several("predictors restarted one after the other"), restarted_several, "s"),
        Result(of_several("down"), stopped_several, "s"),
    ]
    publish("start", results)
    return 0 if all(r.holds for r in results) else 1


def start_twice(processes: int) -> tuple[float, float, float, float, float]:
    """Seconds until a new stack is ready, until it is ready again with a model, until it has answered then, that a
    restart of its predictors takes, and until it is down."""
    folder = Path(tempfile.mkdtemp(prefix="foresight-bench-"))
    stack = LocalStack(folder / "state", gateway_port=0, metrics_port=0, predictors=processes, feature_stores=processes)
    started = time.perf_counter()
    with stack:
        first = time.perf_counter() - started
        with Client(state=stack.state) as client:
            service.build(client)
        stopping = time.perf_counter()
    stopped = time.perf_counter() - stopping
    started = time.perf_counter()
    with stack:
        again = time.perf_counter() - started
        with Client(state=stack.state) as client:
            service.ask(client)
        answered = time.perf_counter() - started
        restarting = time.perf_counter()
        stack.restart("predictor")
        restarted = time.perf_counter() - restarting
    shutil.rmtree(folder)
    return first, again, answered, restarted, stopped


if __name__ == "__main__":
    sys.exit(main())
