"""The error of values: a field that is wrong whatever the state of the system."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """A field and what is wrong with it; the description never quotes more than 100 characters of input."""

    field: str
    description: str


class InvalidValue(ValueError):
    """One or more fields are wrong. Services answer it as INVALID_ARGUMENT with one violation per field."""

    def __init__(self, field: str, description: str, *more: Violation) -> None:
        self.violations: tuple[Violation, ...] = (Violation(field, description), *more)
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in self.violations))

    def within(self, prefix: str) -> InvalidValue:
        """The same faults, seen from a message that holds the value in the field `prefix`."""
        moved = [Violation(f"{prefix}.{v.field}" if v.field else prefix, v.description) for v in self.violations]
        return InvalidValue(moved[0].field, moved[0].description, *moved[1:])


class ExpectationsBroken(InvalidValue):
    """Rows break expectations of their group: one violation per expectation, with a count and samples."""


def quoted(value: object, limit: int = 60) -> str:
    """A short, printable form of untrusted input for messages."""
    text = ascii(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
