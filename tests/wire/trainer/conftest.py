"""One trainer process for the module: its callers only send what it must refuse."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.conftest import PostgresServer
from tests.integration.trainer.process import TrainerProcess, trainer_process


@pytest.fixture(scope="package")
def trainer(postgres_server: PostgresServer) -> Iterator[TrainerProcess]:
    """A trainer whose feature store does not answer."""
    database = asyncio.run(postgres_server.create_database("trainer_wire"))
    with trainer_process(database) as running:
        yield running
