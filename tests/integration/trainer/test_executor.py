"""The worker: it is replaced when it dies, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest

from foresight.values import DataType, Field
from services.runtime.errors import Unavailable
from services.trainer.executor import open_executor
from services.trainer.tasks import FitTask
from tests.integration.trainer.rig import flights
from tests.unit.trainer.specifications import LOGISTIC, spec

ROWS = flights(1, blank=False).select(["wind", "distance", "late"])
INPUTS = (Field("wind", DataType.FLOAT64), Field("distance", DataType.FLOAT64))
LATE = Field("late", DataType.BOOL)
QUICK = FitTask(spec("naive_bayes.GaussianNB"), INPUTS, LATE, ROWS)
# Minutes of work.
ENDLESS = FitTask(spec("ensemble.RandomForestClassifier", n_estimators=1_000_000), INPUTS, LATE, ROWS)


def _running(pid: int | None) -> bool:
    return pid is not None and psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def _busy(pid: int) -> None:
    """Returns once the process has worked for a while."""
    process = psutil.Process(pid)
    started = process.cpu_times().user
    async with asyncio.timeout(30):
        while process.cpu_times().user < started + 0.1:
            await asyncio.sleep(0.01)


async def test_a_worker_that_dies_or_is_cancelled_is_replaced_and_calls_take_turns() -> None:
    async with open_executor() as executor:
        # Killed while idle: nobody notices.
        unused = executor.pid
        assert unused is not None
        os.kill(unused, signal.SIGKILL)
        async with asyncio.timeout(5):
            # Gone with all of its threads.
            while os.waitid(os.P_PID, unused, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                await asyncio.sleep(0.01)
        await executor.check(LOGISTIC)
        first = executor.pid
        assert first is not None

        # Killed in the middle of a fit: that call fails, the next one has a new worker.
        fitting = asyncio.create_task(executor.fit(ENDLESS, lambda _: None))
        await _busy(first)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(Unavailable):
            await fitting
        await executor.check(LOGISTIC)
        second = executor.pid
        assert second is not None
        assert second != first

        # Cancelled in the middle of a fit: the worker goes, a waiting call is served by the next one.
        fitting = asyncio.create_task(executor.fit(ENDLESS, lambda _: None))
        waiting = asyncio.create_task(executor.fit(QUICK, lambda _: None))
        await _busy(second)
        fitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fitting
        assert not _running(second)
        assert (await waiting).signature.inputs == INPUTS
        last = executor.pid
    assert not _running(last)
