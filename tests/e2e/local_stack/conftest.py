"""One real stack for all tests that leave it running."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import LocalStack

# A module that is importable from the current folder only.
TRANSFORMS = "tests.e2e.local_stack.calls"


@pytest.fixture
def state() -> Iterator[Path]:
    """A fresh state folder."""
    folder = Path(tempfile.mkdtemp(prefix="fs-state-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="package")
def stack() -> Iterator[LocalStack]:
    folder = Path(tempfile.mkdtemp(prefix="fs-state-"))
    with LocalStack(folder, gateway_port=0, metrics_port=0, transform_modules=[TRANSFORMS]) as running:
        yield running
    shutil.rmtree(folder)
