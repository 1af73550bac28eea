"""The storm of `tests/wire/predictor/storm`, 200,000 requests long, on a predictor in a process of its own."""

from __future__ import annotations

import psutil
import pytest

from services.runtime.channel import open_channel
from tests.integration.predictor.test_predictor_process import predictor, serving
from tests.wire.predictor.rig import running_rig, until
from tests.wire.predictor.storm import Storm, deploy_all

REQUESTS = 200_000
WARM_UP = 20_000
PARTS = 9
IN_FLIGHT = 64
GROWTH_BYTES_MAX = 24 << 20


@pytest.mark.timeout(3_600)
async def test_nothing_grows_and_no_answer_changes_over_two_hundred_thousand_requests() -> None:
    """Memory after the warm-up stays where it is, part by part; every answered prediction is logged once."""
    async with running_rig() as rig:
        rig.logger.ids_only = True
        await rig.deploy_flights()
        rig.feed()
        await deploy_all(rig)
        async with predictor(rig, LOG_LEVEL="ERROR") as process, open_channel(rig.address("predictor")) as channel:
            await serving(channel)
            memory = psutil.Process(process.process.pid)
            storm = Storm(channel, seed=11)
            await storm.ask_alone()
            await storm.rage(WARM_UP, IN_FLIGHT)
            before = memory.memory_info().rss
            growth = []
            for _ in range(PARTS):
                report = await storm.rage((REQUESTS - WARM_UP) // PARTS, IN_FLIGHT)
                growth.append(memory.memory_info().rss - before)
            assert not report.wrong, (report.wrong[:5], report.codes)
            assert growth[-1] < GROWTH_BYTES_MAX, growth
            await until(lambda: report.ids <= rig.logger.records.keys(), 30)
            assert rig.logger.duplicates == 0
