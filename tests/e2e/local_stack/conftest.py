"""One real stack for all tests that leave it running."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import LocalStack
from foresight.client import Client
from tests.e2e.local_stack.tides import GROUP

# A module that is importable from the current folder only.
TRANSFORMS = "tests.e2e.local_stack.calls"
PIPELINES = "tests.e2e.local_stack.tides"


@pytest.fixture
def state() -> Iterator[Path]:
    """A fresh state folder."""
    folder = Path(tempfile.mkdtemp(prefix="fs-state-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="package")
def stack() -> Iterator[LocalStack]:
    folder = Path(tempfile.mkdtemp(prefix="fs-state-"))
    with LocalStack(
        folder, gateway_port=0, metrics_port=0, transform_modules=[TRANSFORMS], pipeline_modules=[PIPELINES]
    ) as running:
        with Client(state=running.state) as client:
            client.apply(GROUP)
        yield running
    shutil.rmtree(folder)
