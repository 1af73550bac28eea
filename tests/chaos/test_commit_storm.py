"""A long storm per seed: every process is killed once, and another one takes its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeDatabase
from tests.integration.feature_store.commit_storm import Weather, storm
from tests.integration.feature_store.rig import state_folder


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(5))
async def test_the_commit_log_stands_any_weather(postgres_url: MakeDatabase, seed: int) -> None:
    """Sixteen writers at a time; four readers by cursor see every row exactly once."""
    weather = Weather(4, 4, writes=50, kills=4, cuts=250, cut_every_s=0.03, readers=4, seed=seed, replaced=True)
    with state_folder() as folder:
        seen = await storm(postgres_url("feature_store"), Path(folder), weather)
    assert seen.kills == 4
    assert seen.cuts > 50
    assert len(seen.watermarks) > 50
    assert len(seen.answers) > 4 * 4 * 50
