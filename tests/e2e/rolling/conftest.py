"""One stack with several processes for all tests that leave it running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.local import LocalStack
from tests.e2e.rolling.restarting import several_processes


@pytest.fixture(scope="package")
def stack() -> Iterator[LocalStack]:
    with several_processes() as running:
        yield running
