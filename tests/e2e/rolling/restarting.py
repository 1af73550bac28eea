"""A stack with two predictors and two feature stores whose processes restart under load, and what must hold then."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.local import LocalStack
from examples.first_steps import service
from foresight.client import Client
from tests.e2e.rolling.traffic import attempts, traffic


@contextlib.contextmanager
def several_processes() -> Iterator[LocalStack]:
    """A stack with two of each that may be several, and the service of the first steps in it."""
    folder = Path(tempfile.mkdtemp(prefix="fs-roll-"))
    try:
        with LocalStack(folder / "state", gateway_port=0, metrics_port=0, predictors=2, feature_stores=2) as stack:
            with Client(state=stack.state) as client:
                service.build(client)
            yield stack
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def restarted_under_load(stack: LocalStack, rate: float, seconds: float, names: Sequence[str]) -> None:
    """Restarts these programs one after the other, once and for at least so long, at `rate` calls a second."""
    before = {name: stack.pid(name) for name in names}
    async with traffic(stack, rate) as load:
        await load.answered(10)
        started = time.monotonic()
        while True:
            for name in names:
                await asyncio.to_thread(stack.restart, name)
                await load.answered(10)
            if time.monotonic() - started >= seconds or load.failures:
                break
    after = {name: stack.pid(name) for name in names}
    assert not load.failures, (load.failures, attempts(stack))
    assert len(load.ids) == load.asked
    assert not set(before.values()) & set(after.values())
    with Client(state=stack.state) as client:
        await asyncio.to_thread(_check_ledger, client, load.ids)
    sys.stdout.write(f"{load.asked} calls answered; attempts at the gateway: {dict(attempts(stack))}\n")


def _check_ledger(client: Client, ids: Sequence[str]) -> None:
    """Every answer is in the log, once."""
    assert len(set(ids)) == len(ids)
    client.wait_ingested(60)
    rows = client.ledger()
    assert {row.replica for row in rows} == {"predictor-0", "predictor-1"}
    assert [row for row in rows if row.unaccounted or row.spooled or row.quarantined] == []
    logged = client.predictions("late_orders", view="late_orders")["prediction_id"].tolist()
    assert len(logged) == len(set(logged))
    assert set(ids) <= set(logged)
    assert len(ids) <= sum(row.logged for row in rows)
