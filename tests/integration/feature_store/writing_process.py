"""A feature store that writes until it is killed: `python -m ... URL PASSWORD_FILE FOLDER SEED`.

It prints a line once it has made its first commit.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from typing import Any

from services.runtime.settings import DatabaseSettings
from tests.integration.feature_store.rig import Store, at, running_store

WRITERS = 4
PLACES = 400


async def write(store: Store, chance: random.Random) -> None:
    """Small and large commits with corrections, late rows and tombstones."""
    while True:
        rows: list[dict[str, Any]] = [
            {
                "place": f"p{place}",
                "event_time": at(chance.randrange(100)),
                "number": chance.random(),
                "deleted": chance.random() < 0.1,
            }
            for place in chance.sample(range(PLACES), chance.choice((1, 3, PLACES)))
        ]
        await store.write("weather", rows)


async def main(url: str, password_file: str, folder: str, seed: str) -> None:
    """Writes from several tasks."""
    settings = DatabaseSettings(url=url, password_file=Path(password_file))
    async with running_store(settings, Path(folder)) as store, asyncio.TaskGroup() as tasks:
        await store.write("weather", [{"place": "first", "event_time": at(0), "number": 0.0}])
        print("writing", flush=True)
        for writer in range(WRITERS):
            tasks.create_task(write(store, random.Random(f"{seed} {writer}")))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
