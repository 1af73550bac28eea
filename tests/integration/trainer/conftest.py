"""A trainer for each test; its worker, which takes a second to load scikit-learn, is shared."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.trainer.executor import WorkerExecutor
from tests.conftest import MakeDatabase
from tests.integration.trainer.rig import Trainer, running_trainer


@pytest.fixture(scope="session")
def executor() -> Iterator[WorkerExecutor]:
    """One warm worker."""
    running = WorkerExecutor()
    running.start()
    yield running
    running.close()


@pytest_asyncio.fixture
async def trainer(postgres_url: MakeDatabase, tmp_path: Path, executor: WorkerExecutor) -> AsyncIterator[Trainer]:
    """A trainer on a fresh database."""
    async with running_trainer(postgres_url("trainer"), tmp_path, executor) as running:
        yield running
