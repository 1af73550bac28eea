"""Loops that try again go on however long nothing answers: the wait is bounded, and so is what it is made of."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from services.feature_store.erasure import eraser
from services.feature_store.erasure.eraser import Eraser
from services.feature_store.logs import ingestion
from services.feature_store.logs.ingestion import LogIngestion
from services.feature_store.online import applier
from services.feature_store.online.applier import Applier
from services.runtime.backoff import backoff_s
from services.runtime.errors import Unavailable

# 2^1,100 is beyond all floats; at half a minute for each failure that is an outage of a night.
FAILURES = 1_100


class Away:
    """Whatever is asked of it does not answer; ends the task that asks once that was often enough."""

    def __init__(self) -> None:
        self._asked = itertools.count(1)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def asked(*_: Any) -> Any:
            if next(self._asked) > FAILURES:
                raise asyncio.CancelledError
            raise Unavailable("away")

        return asked


class Lease:
    """Is never taken."""

    poll_s = 0.0

    def __init__(self, away: Away) -> None:
        self.take = away.take

    async def release(self) -> None: ...


def now() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("loop", ["eraser", "ingestion", "applier"])
async def test_a_loop_outlives_an_outage_of_a_night(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (eraser, ingestion, applier):
        monkeypatch.setattr(module, "BACKOFF_S_MAX", 0.0, raising=False)
    away = cast(Any, Away())
    unused = cast(Any, None)
    runs: dict[str, Callable[[], Awaitable[None]]] = {
        "eraser": Eraser(away, unused, now).run,
        "ingestion": LogIngestion(unused, away, away, now, unused, unused).run,
        "applier": Applier(unused, unused, cast(Any, Lease(away)), unused).run,
    }
    with pytest.raises(asyncio.CancelledError):
        await runs[loop]()


def test_a_wait_doubles_up_to_its_bound() -> None:
    assert [backoff_s(n, 0.1, 5.0) for n in (0, 1, 2, 5, 6, 10**9)] == [0.1, 0.2, 0.4, 3.2, 5.0, 5.0]
