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
def stack() -> Iterator[LocalStack]:
    """A running stack that serves the deployment `late_orders`."""
    folder = Path(tempfile.mkdtemp(prefix="fs-clients-"))
    with LocalStack(folder / "state", gateway_port=0, metrics_port=0) as running:
        with Client(state=running.state) as client:
            service.build(client)
        yield running
    shutil.rmtree(folder)
