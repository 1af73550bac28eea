"""The storm of `tests/wire/predictor/storm`, two hundred thousand requests long, on a predictor in a process of its own."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from foresight.logger.v1 import prediction_log_pb2
from services.runtime.channel import open_channel
from tests.integration.predictor.test_predictor_process import predictor, serving
from tests.wire.predictor.rig import running_rig, until
from tests.wire.predictor.storm import Storm, deploy_all
from tests.wire.predictor.upstreams import Logger

REQUESTS = 200_000
WARM_UP = 20_000
PARTS = 9
IN_FLIGHT = 64
GROWTH_BYTES_MAX = 24 << 20


class CountingLogger(Logger):
    """Keeps the ids of what it is sent, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()

    async def AppendRecords(self, request: Any, context: Any) -> prediction_log_pb2.AppendRecordsResponse:
        for record in request.records:
            for prediction_id in record.prediction_ids:
                self.duplicates += prediction_id in self.ids
                self.ids.add(prediction_id)
        return prediction_log_pb2.AppendRecordsResponse()


@pytest.mark.timeout(3_600)
async def test_nothing_grows_and_no_answer_changes_over_two_hundred_thousand_requests() -> None:
    """Memory after the warm-up stays where it is, part by part; every answered prediction is logged once."""
    async with running_rig() as rig:
        logger = CountingLogger()
        await rig.stop("logger")
        rig.logger = logger
        await rig.start("logger")
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
            await until(lambda: report.ids <= logger.ids, 30)
            assert logger.duplicates == 0
