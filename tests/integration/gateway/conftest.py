"""One gateway for the module's tests; tests that stop a service wait until it is back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.gateway.rig import Rig, running_rig


@pytest.fixture(scope="package")
def shared_rig() -> Iterator[Rig]:
    with running_rig() as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    shared_rig.forget()
    return shared_rig
