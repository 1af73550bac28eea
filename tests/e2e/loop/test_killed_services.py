"""Any one process may be killed under load: it comes back, clients go on, and the ledger balances."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from deploy.local import LocalStack
from examples.first_steps import service
from foresight.client import Client

CLIENTS = 4


def _ask_until(stop: threading.Event, stack: LocalStack) -> list[str]:
    """Asks and tells outcomes without a pause; every id that was answered."""
    answered: list[str] = []
    with Client(state=stack.state, retry_s=60) as client:
        while not stop.is_set():
            ids = service.ask(client)
            answered += ids
            client.record_outcomes(values=[True, False], observed_at=[datetime.now(UTC)] * 2, prediction_ids=ids)
    return answered


@pytest.mark.parametrize("program", ["predictor", "logger", "feature_store", "trainer", "postgres", "gateway"])
def test_no_answered_prediction_is_lost_when_a_process_is_killed(stack: LocalStack, program: str) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(_ask_until, stop, stack) for _ in range(CLIENTS)]
        try:
            for _ in range(2):
                stop.wait(0.5)
                pid = stack.pid(program)
                os.kill(pid, signal.SIGKILL)
                stack.wait_restarted(program, pid)
            stop.wait(0.5)
        finally:
            stop.set()
        answered = [prediction_id for asked in asking for prediction_id in asked.result()]
    with Client(state=stack.state, retry_s=60) as client:
        client.wait_ingested(timeout_s=60)
        log = client.predictions("late_orders", view="late_orders")
        ledger = client.ledger()
    assert len(answered) == len(set(answered)) > 0
    assert log["prediction_id"].is_unique
    assert set(answered) <= set(log["prediction_id"])
    known = log.set_index("prediction_id").loc[answered, "late"]
    assert known.notna().all()
    for row in ledger:
        assert row.logged + row.quarantined + row.spooled == row.highest_sequence, row
