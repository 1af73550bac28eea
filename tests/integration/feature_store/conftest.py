"""A running feature store per test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.runtime.settings import DatabaseSettings
from tests.conftest import MakeDatabase
from tests.integration.feature_store.rig import LogInMemory, Store, running_store, state_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A state folder."""
    with state_folder() as made:
        yield made


@pytest.fixture
def log() -> LogInMemory:
    """The log that the store follows."""
    return LogInMemory()


@pytest.fixture
def settings(postgres_url: MakeDatabase) -> DatabaseSettings:
    """An empty database."""
    return postgres_url("feature_store")


@pytest.fixture
async def store(settings: DatabaseSettings, folder: Path, log: LogInMemory) -> AsyncIterator[Store]:
    """A feature store on an empty database."""
    async with running_store(settings, folder, log=log) as made:
        yield made
