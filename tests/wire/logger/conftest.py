"""A logger for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.conftest import MakeDatabase
from tests.integration.logger.rig import Logger, running_logger


@pytest_asyncio.fixture
async def logger(postgres_url: MakeDatabase) -> AsyncIterator[Logger]:
    """A logger on a fresh database."""
    async with running_logger(postgres_url("logger")) as running:
        yield running
