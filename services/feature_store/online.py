"""The online store: the latest row per key of every group.

The latest row is the one with the greatest (event time, commit): a late batch never overwrites a newer row, and rows
may be applied in any order, or twice. The store contains every commit up to its applied one; rows and applied commit
change together. One process applies (see `applier.py`), any number read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from foresight.values import Column
from services.feature_store.groups import StoredGroup


class FoundRow(NamedTuple):
    """A row of a group. `values` has one Python value per feature of the group, None for NULL: int, float, bool, str,
    microseconds for a timestamp, a list of floats for a vector."""

    event_time_us: int
    commit: int
    deleted: bool
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class KeyQuery:
    """Entities of a group: one column per key of the group, in its order, all of the same length."""

    group: StoredGroup
    keys: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class CommittedRows:
    """Rows of one group from one or more commits: keys, features, `event_time`, `commit`, `deleted`."""

    group: StoredGroup
    rows: pa.Table


@dataclass(frozen=True, slots=True)
class Lookup:
    """For each query one row per entity, None where there is no row or a part of the key is NULL."""

    found: list[list[FoundRow | None]]
    applied_commit: int


class OnlineStore(Protocol):
    """Keeps the latest rows. Raises Unavailable when it does not answer."""

    async def apply(self, applied_commit: int, rows: Sequence[CommittedRows]) -> None:
        """Takes the rows of all commits after the applied one up to `applied_commit`, which becomes the applied one."""
        ...

    async def lookup(self, queries: Sequence[KeyQuery]) -> Lookup:
        """The latest rows of several groups, all as of one applied commit."""
        ...

    async def remove(self, group: StoredGroup, keys: tuple[Column, ...]) -> int:
        """Removes the rows of keys for good; answers how many there were. Repeating it is harmless."""
        ...

    async def applied_commit(self) -> int:
        """The last commit applied; 0 for an empty store."""
        ...
