"""What is read from the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.logger.outcomes import LoggedOutcome
from services.logger.records import Incarnation


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log: the bytes of a record, or an outcome."""

    position: int
    entry: bytes | LoggedOutcome


@dataclass(frozen=True, slots=True)
class Page:
    """Entries in order, the position to read on from, and the log's last position."""

    entries: Sequence[Entry]
    cursor: int
    head: int


@dataclass(frozen=True, slots=True)
class FoundPrediction:
    """A prediction: its record's bytes, its row there, and its outcome of the highest revision."""

    record: bytes
    row: int
    outcome: LoggedOutcome | None


@dataclass(frozen=True, slots=True)
class IncarnationLedger:
    """Account of one incarnation; what is neither logged nor quarantined is in a spool or on its way."""

    source: Incarnation
    highest_sequence: int
    logged: int
    quarantined: int
    duplicates: int
