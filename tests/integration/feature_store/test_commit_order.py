"""Commits appear in order, whole and once, whoever is slow, cut off or killed."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import MakeDatabase
from tests.integration.feature_store.commit_storm import Weather, storm

WEATHER = Weather(processes=4, writers=4, writes=10, kills=2, cuts=30, cut_every_s=0.03, readers=3, seed=7)


async def test_sixteen_writers_and_nobody_sees_anything_appear_below_a_watermark(
    postgres_url: MakeDatabase, folder: Path
) -> None:
    """Four of them slow, half of them killed, connections cut: three readers by cursor see every row exactly once."""
    seen = await storm(postgres_url("feature_store"), folder, WEATHER)
    assert seen.kills == WEATHER.kills
    assert seen.cuts > 3
    assert len(seen.watermarks) > 10
    assert len(seen.answers) >= 2 * 4 * WEATHER.writes
