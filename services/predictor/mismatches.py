"""Differences between what was recorded of a prediction and what a replay gives."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from foresight.values import Column

TEXT_CHARACTERS_MAX = 200


class MismatchCause(enum.IntEnum):
    """What differs; the numbers are those of the wire enum."""

    DATA = 1
    EXPIRY = 2
    TRANSFORM = 3
    MODEL = 4
    TYPE = 5
    FORGOTTEN = 6


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One difference, with both values as text."""

    name: str
    cause: MismatchCause
    recorded: str
    replayed: str


def compare_columns(
    then: Sequence[Column], now: Sequence[Column], row: int, cause: MismatchCause
) -> Iterator[Mismatch]:
    """Differences of one row; another type is a cause of its own."""
    replayed = {c.name: c for c in now}
    for recorded in then:
        column = replayed.pop(recorded.name, None)
        if column is None:
            yield Mismatch(recorded.name, cause, _value_text(recorded, row), "absent")
        elif column.type is not recorded.type:
            yield Mismatch(recorded.name, MismatchCause.TYPE, recorded.type.value, column.type.value)
        elif not recorded.take([row]).equals(column.take([row])):
            yield Mismatch(recorded.name, cause, _value_text(recorded, row), _value_text(column, row))
    for column in replayed.values():
        yield Mismatch(column.name, cause, "absent", _value_text(column, row))


def short(text: str) -> str:
    """A text of at most TEXT_CHARACTERS_MAX."""
    return text if len(text) <= TEXT_CHARACTERS_MAX else text[: TEXT_CHARACTERS_MAX - 1] + "…"


def _value_text(column: Column, row: int) -> str:
    return short(repr(column.python(row)))
