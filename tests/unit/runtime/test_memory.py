"""What the collector of cycles still looks at when a service is about to serve."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from services.runtime.memory import keep_what_is_there


class Ring:
    """Something that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def collector() -> Iterator[None]:
    """Is afterwards as it was."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.mark.usefixtures("collector")
def test_what_was_there_is_left_alone_and_what_comes_later_is_freed() -> None:
    """Garbage of before is gone first."""
    old = weakref.ref(Ring())
    keep_what_is_there()
    assert old() is None
    assert gc.get_freeze_count() > 1_000
    new = weakref.ref(Ring())
    gc.collect()
    assert new() is None
