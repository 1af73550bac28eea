"""One real stack with the service of the first steps in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import LocalStack
from examples.first_steps import service
from foresight.client import Client


@pytest.fixture(scope="package")
def empty_stack() -> Iterator[LocalStack]:
    """A running stack."""
    folder = Path(tempfile.mkdtemp(prefix="fs-loop-"))
    with LocalStack(folder / "state", gateway_port=0, metrics_port=0) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture(scope="package")
def stack(empty_stack: LocalStack) -> LocalStack:
    """A running stack that serves the deployment `late_orders`."""
    with Client(state=empty_stack.state) as client:
        service.build(client)
    return empty_stack
