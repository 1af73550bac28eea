"""A fake Foresight and a client of it, whose retries take no time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from foresight.client import Client
from foresight.client.connection import Connection, Retry, Target
from tests.wire.client.fake_foresight import FakeForesight, Gateway


@dataclass
class Pauses:
    """A clock that only sleeping moves."""

    now: float = 0.0
    all: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.all.append(seconds)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """A running gateway; its state folder is what `--state` takes."""
    running = Gateway(tmp_path)
    yield running
    running.stop()


@pytest.fixture
def fake(gateway: Gateway) -> FakeForesight:
    """The services behind the gateway."""
    return gateway.fake


@pytest.fixture
def pauses() -> Pauses:
    """The pauses that the client made."""
    return Pauses()


@pytest.fixture
def client(gateway: Gateway, pauses: Pauses) -> Iterator[Client]:
    """A client of the gateway, over mutual TLS."""
    retry = Retry(30.0, clock=lambda: pauses.now, sleep=pauses.sleep, jitter=lambda: 1.0)
    with Client(connection=Connection.open(Target.local(gateway.state), retry)) as opened:
        yield opened
