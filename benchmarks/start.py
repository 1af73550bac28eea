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


def main() -> int:
    """Measures RUNS first and RUNS later starts; medians."""
    first, again, answered, stopped = [], [], [], []
    for _ in range(RUNS):
        folder = Path(tempfile.mkdtemp(prefix="foresight-bench-"))
        stack = LocalStack(folder / "state", gateway_port=0, metrics_port=0)
        started = time.perf_counter()
        with stack:
            first.append(time.perf_counter() - started)
            with Client(state=stack.state) as client:
                service.build(client)
            stopping = time.perf_counter()
        stopped.append(time.perf_counter() - stopping)
        started = time.perf_counter()
        with stack:
            again.append(time.perf_counter() - started)
            with Client(state=stack.state) as client:
                service.ask(client)
            answered.append(time.perf_counter() - started)
        shutil.rmtree(folder)
    results = [
        Result("ready, empty state folder", statistics.median(first), "s", at_most=5),
        Result("ready, with a model deployed", statistics.median(again), "s", at_most=5),
        Result("first answered prediction, with a model deployed", statistics.median(answered), "s", at_most=5),
        Result("down", statistics.median(stopped), "s"),
    ]
    publish("start", results)
    return 0 if all(r.holds for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
