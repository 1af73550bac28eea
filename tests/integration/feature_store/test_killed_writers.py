"""kill -9 at random points under load: afterwards offline and online say the same."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from services.runtime.settings import DatabaseSettings
from tests.conftest import MakeDatabase
from tests.integration.feature_store.rig import running_store
from tests.integration.feature_store.test_online_store import NUMBER, PLACE, assert_same

KILLS = 4


async def test_offline_and_online_agree_after_every_kill(postgres_url: MakeDatabase, folder: Path) -> None:
    """Killed while commits are copied, published and applied; the next process applies what is missing first."""
    settings, chance = postgres_url("feature_store"), random.Random(17)
    async with running_store(settings, folder) as store:
        await store.group("weather", [PLACE], [NUMBER])
    commits = 0
    for life in range(KILLS):
        await write_and_be_killed(settings, folder, life, chance.random() * 0.4)
        async with running_store(settings, folder, applying=False) as store:
            behind = await store.online.applied_commit()
            last = await store.commits.last()
            assert commits < last
            assert behind <= last
            store.applying = asyncio.create_task(store.applier.run())
            await store.applier.applied(last, 30)
            assert await assert_same(store, "weather") > 0
            commits = last


async def write_and_be_killed(settings: DatabaseSettings, folder: Path, seed: int, after_s: float) -> None:
    """One life of a writing process."""
    module = "tests.integration.feature_store.writing_process"
    arguments = (settings.url, str(settings.password_file), str(folder), str(seed))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 60) == b"writing\n"
    await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=after_s)
    assert process.returncode is None
    process.kill()
    await process.wait()
