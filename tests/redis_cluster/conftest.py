"""A cluster per session. These tests need a redis-server, named by FORESIGHT_REDIS_SERVER; `.ci/run` brings one."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.feature_store.config import RedisSettings
from tests.redis_cluster.nodes import ClusterNodes, running_cluster

PASSWORD = "of the cluster"
_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def nodes() -> Iterator[ClusterNodes]:
    """A running cluster."""
    with running_cluster(os.environ["FORESIGHT_REDIS_SERVER"], PASSWORD) as made:
        yield made


@pytest.fixture(scope="session")
def password_file() -> Iterator[Path]:
    """The file with the password of the cluster."""
    with tempfile.NamedTemporaryFile("w", suffix=".password") as file:
        file.write(PASSWORD + "\n")
        file.flush()
        yield Path(file.name)


@pytest.fixture
def settings(nodes: ClusterNodes, password_file: Path) -> RedisSettings:
    """Settings of a store that is empty."""
    return RedisSettings(urls=nodes.urls[:2], password_file=password_file, prefix=f"test-{next(_NUMBERS)}", buckets=16)
