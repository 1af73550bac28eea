"""Making items while those before them are used."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from services.feature_store.tables.lookahead import looked_ahead


def test_items_come_in_order() -> None:
    with looked_ahead(iter(range(1_000)), 3) as items:
        assert list(items) == list(range(1_000))


def test_a_failure_is_raised_where_the_item_would_be_taken() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise KeyError("no more")

    with looked_ahead(failing(), 3) as items:
        assert next(items) == 1
        with pytest.raises(KeyError):
            next(items)


def test_it_is_bounded_and_ends_with_its_block() -> None:
    """A maker that nobody takes from any more is stopped and waited for."""
    made: list[int] = []
    filled = threading.Event()

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            if len(made) == 4:
                filled.set()
            yield made[-1]

    before = threading.active_count()
    with looked_ahead(endless(), 2) as items:
        assert next(items) == 0
        assert filled.wait(10)
    assert len(made) <= 5
    assert threading.active_count() == before
