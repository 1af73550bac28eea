"""What a prediction costs, what overload leaves of it, a hundred models in one process, and how others do beside it.

python -m benchmarks.predictor [costs | side_by_side [--quick]]

Writes benchmarks/results/predictor.json and predictor_side_by_side.json; without a part, all are run.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from benchmarks.gateway import side_by_side
from benchmarks.predictor import cpu, models, overload, streaming
from benchmarks.predictor.services import running_services
from benchmarks.results import publish


def measure_costs() -> int:
    """Measures on one set of services."""
    with running_services() as services:
        results = [
            result
            for measured in (cpu.measured, streaming.measured, overload.measured)
            for result in asyncio.run(measured(services))
        ]
        results += models.measured(services)
    publish("predictor", results)
    return 0 if all(r.holds for r in results) else 1


def main(arguments: Sequence[str]) -> int:
    """Runs the part that is named, or all."""
    match arguments:
        case []:
            return max(measure_costs(), side_by_side.main([]))
        case ["costs"]:
            return measure_costs()
        case ["side_by_side", *options]:
            return side_by_side.main(options)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
