"""Feature pipelines that the stack runs by itself."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime

from deploy.local import LocalStack
from foresight.client import Client, RunState, Trigger
from tests.e2e.local_stack.calls import eventually
from tests.e2e.local_stack.tides import GROUP, SECOND


def test_a_pipeline_goes_on_when_its_worker_is_killed_and_leaves_no_gap(stack: LocalStack) -> None:
    with Client(state=stack.state) as client:

        def has_come_to(instant: datetime) -> bool:
            position = client.pipeline("tides").position
            return bool(position) and datetime.fromisoformat(position) > instant

        eventually(lambda: has_come_to(datetime.now(UTC) - 2 * SECOND))
        before = stack.pid("pipelines")
        os.kill(before, signal.SIGKILL)
        killed_at = datetime.now(UTC)
        stack.wait_restarted("pipelines", before)
        eventually(lambda: has_come_to(killed_at + SECOND), within_s=60)
        times = client.read(GROUP.name, output="arrow")["event_time"].to_pylist()
        assert times == [times[0] + number * SECOND for number in range(len(times))]
        runs = client.pipeline_runs("tides", 1_000)
        assert {run.trigger for run in runs} == {Trigger.SCHEDULE}
        assert runs[0].state in (RunState.RUNNING, RunState.SUCCEEDED)
