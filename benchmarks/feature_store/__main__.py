"""All figures of the feature store, part by part, each in a process of its own so that peaks of memory are its own.

make bench-feature_store
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.results import FOLDER, Result, publish

PARTS = ("ingestion", "as_of", "online", "feast")
TOPIC = "feature_store"


def main() -> int:
    """Runs the parts and publishes their results together."""
    codes = [subprocess.run([sys.executable, "-m", f"benchmarks.{TOPIC}.{part}"]).returncode for part in PARTS]
    results: list[Result] = []
    for part in PARTS:
        file = FOLDER / f"{TOPIC}_{part}.json"
        found = json.loads(file.read_text())
        results += [Result(**{name: value for name, value in r.items() if name != "holds"}) for r in found]
        file.unlink()
    publish(TOPIC, results)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
