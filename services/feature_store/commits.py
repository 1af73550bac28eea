"""Commits: accepted writes, ordered over all groups.

A commit's number is a watermark: once it is visible, no commit with a lower number can appear later, and
`committed_at` rises with the number. Rows are staged under a `write` number that says nothing about order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from foresight.values import check_name
from foresight.values.names import check_text
from foresight.values.pipelines import PositionMove
from services.feature_store.groups import StoredGroup
from services.feature_store.tables.row_source import RowSource
from services.runtime.errors import OutOfRange

WRITE_ID_BYTES_MAX = 128


@dataclass(frozen=True, slots=True)
class BrokenExpectation:
    """An expectation that `rows` rows broke; `samples` are some of them, for people."""

    name: str
    rows: int
    samples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """A published write. `duplicate`: it had been published by an earlier call with the same write id.

    Number 0: the write had no rows; it moved the position of a pipeline, at `committed_at`.
    """

    number: int
    committed_at: datetime
    rows: int
    duplicate: bool = False
    quarantined_rows: int = 0
    broken: tuple[BrokenExpectation, ...] = ()


@dataclass(frozen=True, slots=True)
class StagedRows:
    """Checked rows of one group that become one commit, or became one.

    `rows` has the group's keys and features by name and type, `event_time`, and optionally `known_at` and `deleted`;
    (key, event_time) is unique in it.
    """

    group: StoredGroup
    rows: RowSource


@dataclass(frozen=True, slots=True)
class WriteOrigin:
    """What a writer says about a write: an id that makes it repeatable, what made the rows, a pipeline's progress."""

    write_id: str = ""
    source: str = ""
    progress: PositionMove | None = None

    def __post_init__(self) -> None:
        if self.write_id:
            check_text(self.write_id, "write_id", WRITE_ID_BYTES_MAX)
        if self.source:
            check_name(self.source, "source")


@dataclass(frozen=True, slots=True)
class AcceptedRows:
    """What became of the rows of a write once all of them were checked."""

    rows: int
    latest_event_time: datetime | None
    # Digest of all rows, those that are kept apart among them; '' when nobody needs it.
    content: str = ""
    known_at_asserted: bool = False
    # Names of the expectations that all rows kept, and those that some broke.
    held: tuple[str, ...] = ()
    broken: tuple[BrokenExpectation, ...] = ()
    # The rows that are kept apart, with `broken`, the names of what they broke.
    quarantined: RowSource | None = field(default=None, compare=False)

    @property
    def quarantined_rows(self) -> int:
        """How many rows are kept apart."""
        return 0 if self.quarantined is None else self.quarantined.num_rows


class RowsToWrite(Protocol):
    """Rows on their way into a commit. Its methods block."""

    @property
    def schema(self) -> pa.Schema:
        """Names and types of what is stored."""
        ...

    @property
    def ready(self) -> bool:
        """Whether `accepted` has nothing left to check."""
        ...

    def accepted(self) -> Iterator[pa.RecordBatch]:
        """The rows that may be stored, checked as they are taken; ends early when some may not be written."""
        ...

    def finish(self) -> AcceptedRows:
        """What became of the rows, once `accepted` ended. Raises InvalidValue and others when they are refused."""
        ...

    def content(self) -> str:
        """The digest of all rows, without accepting them. Raises InvalidValue."""
        ...


@dataclass(frozen=True, slots=True)
class PublishedCommit:
    """What the commit log says about a commit; `write` marks its rows."""

    number: int
    write: int
    group_id: int
    rows: int


@dataclass(frozen=True, slots=True)
class CursorMove:
    """Progress of log reingestion, stored together with the rows that it brought."""

    before: int
    after: int
    predictions: int
    outcomes: int


class CursorMoved(Exception):
    """Another process reingested the same page first; nothing was written."""


def watermark(asked: int, last: int) -> int:
    """The commit up to which a read goes: `asked`, or the last one for 0. Raises OutOfRange beyond the last."""
    if asked > last:
        raise OutOfRange(f"commit {asked} does not exist yet; the last one is {last}")
    return asked or last
