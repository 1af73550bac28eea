"""What a prediction costs, and what is left of the throughput under overload: writes benchmarks/results/predictor.json.

python -m benchmarks.predictor
"""

from __future__ import annotations

import asyncio
import sys

from benchmarks.predictor import cpu, overload
from benchmarks.predictor.services import running_services
from benchmarks.results import publish


def main() -> int:
    """Measures on one set of services."""
    with running_services() as services:
        results = asyncio.run(cpu.measured(services)) + asyncio.run(overload.measured(services))
    publish("predictor", results)
    return 0 if all(r.holds for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
