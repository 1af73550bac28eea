"""Records of the prediction log: opaque bytes with the index that the log needs of them.

What a prediction looks like is the predictor's matter; the log knows its id, its sequence number and its targets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from foresight.values import Column, InvalidValue
from foresight.values.names import check_text

PREDICTIONS_MAX = 1_024
SEQUENCE_MAX = 2**63 - 2
PREDICTION_ID = "prediction_id"

# Cuts rows start to stop (exclusive) out of a record's bytes.
Cut = Callable[[bytes, int, int], bytes]


@dataclass(frozen=True, slots=True, eq=False)
class RecordKeys:
    """What a record's predictions are found by: entity keys and `prediction_id`, n rows each; `served_at` in
    microseconds since the epoch."""

    columns: Mapping[str, Column]
    served_at: int


class RecordBytes(Protocol):
    """Reads and rewrites the bytes of records."""

    def cut(self, payload: bytes, start: int, stop: int) -> bytes:
        """The record of the rows start to stop (exclusive)."""
        ...

    def without(self, payload: bytes, rows: Collection[int]) -> tuple[bytes, list[int]]:
        """The record without some of its rows, and the offsets of all rows that it lacks now."""
        ...

    def keys(self, payload: bytes) -> RecordKeys:
        """What the record's predictions are found by."""
        ...

    def trace(self, key: Column) -> bytes:
        """Bytes that every record with this value of a key contains; empty when nothing is known."""
        ...

    def repeating(self, payload: bytes, prediction_id: str) -> bytes:
        """The record as one that repeats the record of a prediction."""
        ...


class Incarnation(NamedTuple):
    """One life of a replica's process; a tuple because every record's is looked up several times."""

    replica: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class LogRecord:
    """n predictions; prediction i has `prediction_ids[i]`, `targets[i]` and sequence number `first_sequence + i`."""

    source: Incarnation
    first_sequence: int
    prediction_ids: tuple[str, ...]
    targets: tuple[bytes, ...]
    deployment: str
    view: str
    view_version: int
    # Microseconds since the epoch.
    event_time: int
    payload: bytes
    # Of a named request: what its records have in common, see `named_requests`.
    name: bytes = b""
    # Microseconds since the epoch.
    served_at: int = 0

    def __post_init__(self) -> None:
        n = len(self.prediction_ids)
        if not 1 <= n <= PREDICTIONS_MAX:
            raise InvalidValue("prediction_ids", f"are {n}, not 1 to {PREDICTIONS_MAX}")
        if n > 1 and len(set(self.prediction_ids)) != n:
            raise InvalidValue("prediction_ids", "hold the same id twice")
        if not 1 <= self.first_sequence <= SEQUENCE_MAX - n:
            raise InvalidValue("first_sequence", "is not a number from 1 on")
        assert len(self.targets) == n

    @property
    def last_sequence(self) -> int:
        """Sequence number of the last prediction."""
        return self.first_sequence + len(self.prediction_ids) - 1

    def piece(self, start: int, stop: int, cut: Cut) -> LogRecord:
        """The record of the rows start to stop (exclusive), which keep their sequence numbers."""
        if start == 0 and stop == len(self.prediction_ids):
            return self
        return replace(
            self,
            first_sequence=self.first_sequence + start,
            prediction_ids=self.prediction_ids[start:stop],
            targets=self.targets[start:stop],
            payload=cut(self.payload, start, stop),
        )


@dataclass(frozen=True, slots=True)
class QuarantinedRange:
    """Sequence numbers, both ends included, whose record was damaged in the spool."""

    source: Incarnation
    first_sequence: int
    last_sequence: int
    reason: str

    def __post_init__(self) -> None:
        if not 1 <= self.first_sequence <= SEQUENCE_MAX:
            raise InvalidValue("first_sequence", "is not a number from 1 on")
        if not self.first_sequence <= self.last_sequence <= SEQUENCE_MAX:
            raise InvalidValue("last_sequence", "lies before first_sequence or is too large")
        check_text(self.reason, "reason")


@dataclass(frozen=True, slots=True)
class KnownPrediction:
    """Where and as what a prediction was logged."""

    source: Incarnation
    sequence: int
    target: bytes


@dataclass(slots=True)
class Sorted:
    """Arriving records without the predictions that are known."""

    fresh: list[LogRecord] = field(default_factory=list)
    duplicates: dict[Incarnation, int] = field(default_factory=dict)
    # Ids that came again with other content; the first content stays.
    reused: list[str] = field(default_factory=list)

    @property
    def appended(self) -> int:
        """Number of new predictions."""
        return sum(len(record.prediction_ids) for record in self.fresh)


def all_new(records: Sequence[LogRecord]) -> Sorted | None:
    """What `sort_out` answers where nothing is known, when no id comes twice among the records; None: some does.

    That is nearly always so, and seen without a look at each prediction.
    """
    ids = [i for record in records for i in record.prediction_ids]
    return Sorted(list(records)) if len(set(ids)) == len(ids) else None


def sort_out(records: Iterable[LogRecord], known: Mapping[str, KnownPrediction], cut: Cut) -> Sorted:
    """Keeps of every record the runs of rows whose prediction is new; a run has consecutive sequence numbers.

    An id that comes twice among the records counts as known the second time.
    """
    seen = dict(known)
    result = Sorted()
    for record in records:
        fresh_rows = []
        for row, prediction_id in enumerate(record.prediction_ids):
            arrived = KnownPrediction(record.source, record.first_sequence + row, record.targets[row])
            first = seen.setdefault(prediction_id, arrived)
            if first is arrived:
                fresh_rows.append(row)
                continue
            result.duplicates[record.source] = result.duplicates.get(record.source, 0) + 1
            if first != arrived:
                result.reused.append(prediction_id)
        result.fresh.extend(pieces(record, fresh_rows, cut))
    return result


def pieces(record: LogRecord, rows: Sequence[int], cut: Cut) -> list[LogRecord]:
    """The records of ascending rows of a record, one per run of consecutive sequence numbers."""
    return [record.piece(start, stop, cut) for start, stop in _runs(rows)]


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Maximal runs of consecutive numbers of an ascending sequence, as (start, stop)."""
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            yield rows[start], rows[i - 1] + 1
            start = i
