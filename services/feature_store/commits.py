"""Commits: accepted writes, ordered over all groups.

A commit's number is a watermark: once it is visible, no commit with a lower number can appear later, and
`committed_at` rises with the number. Rows are staged under a `write` number that says nothing about order.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from services.feature_store.groups import StoredGroup
from services.runtime.errors import OutOfRange


@dataclass(frozen=True, slots=True)
class Commit:
    """A published write. `duplicate`: it had been published by an earlier call with the same write id."""

    number: int
    committed_at: datetime
    rows: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class StagedRows:
    """Checked rows of one group that become one commit.

    `rows` has the group's keys and features by name and type, `event_time`, and optionally `known_at` and `deleted`;
    (key, event_time) is unique in it.
    """

    group: StoredGroup
    rows: pa.Table


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
