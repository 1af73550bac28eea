"""The online store: the latest row per key of every group.

The latest row is the one with the greatest (event time, commit): a late batch never overwrites a newer row, and rows
may be applied in any order, twice, or by two processes at once. The store contains every commit up to its applied one,
and a look-up answers exactly what those commits have: rows and applied commit change together. One process applies
(see `applier.py`), any number read.

A store is derived from the offline rows: `replacement` makes it anew beside the one that serves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from foresight.values import Column, Field
from services.feature_store.groups import StoredGroup
from services.feature_store.tables.row_source import RowSource


class FoundRow(NamedTuple):
    """A row of a group. `values` has one Python value per feature of the group, None for NULL: int, float, bool, str,
    microseconds for a timestamp, a list of floats for a vector."""

    event_time_us: int
    commit: int
    deleted: bool
    values: tuple[Any, ...]


class FoundColumns(Protocol):
    """The features of rows that were found, each made when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> FoundColumn:
        """The values of a feature by its position in the group."""
        ...


class FoundColumn(NamedTuple):
    """Values of one feature: an array as in `Column`, with anything where there is none; `valid` None: all there."""

    values: NDArray[Any]
    valid: NDArray[np.bool_] | None


class FoundRows(Sequence[FoundRow | None]):
    """The rows found for n entities, in order, None where there is none; kept column by column, as they are used.

    `event_times_us` and `commits` are arrays (n,) with 0 where there is no row. `gone` is (n,) bool, true where there
    is none or a tombstone, and None when there is a row that counts everywhere. `columns` has the features of the
    group; when `whole`, none of them has a NULL.
    """

    __slots__ = ("columns", "commits", "event_times_us", "gone", "whole")

    def __init__(
        self,
        event_times_us: NDArray[np.int64],
        commits: NDArray[np.uint64],
        columns: FoundColumns,
        *,
        gone: NDArray[np.bool_] | None = None,
        whole: bool = False,
    ) -> None:
        self.event_times_us = event_times_us
        self.commits = commits
        self.columns = columns
        self.gone = gone
        self.whole = whole

    @classmethod
    def of(cls, rows: Sequence[FoundRow | None], features: Sequence[Field]) -> FoundRows:
        """The same of single rows of a group with these features."""
        gone = np.array([row is None or row.deleted for row in rows], np.bool_)
        return cls(
            np.array([0 if row is None else row.event_time_us for row in rows], np.int64),
            np.array([0 if row is None else row.commit for row in rows], np.uint64),
            [
                _column([None if row is None else row.values[position] for row in rows], feature)
                for position, feature in enumerate(features)
            ],
            gone=gone if gone.any() else None,
        )

    def __len__(self) -> int:
        return len(self.commits)

    @overload
    def __getitem__(self, index: int) -> FoundRow | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[FoundRow | None]: ...
    def __getitem__(self, index: int | slice) -> FoundRow | list[FoundRow | None] | None:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not self.commits[index]:
            return None
        deleted = self.gone is not None and bool(self.gone[index])
        columns = [self.columns[position] for position in range(len(self.columns))]
        values = tuple(
            None if valid is not None and not valid[index] else _python(values[index]) for values, valid in columns
        )
        return FoundRow(int(self.event_times_us[index]), int(self.commits[index]), deleted, values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def _column(found: Sequence[Any], feature: Field) -> FoundColumn:
    nulls = Column.nulls(feature, len(found))
    values, valid = nulls.values, np.array([value is not None for value in found], np.bool_)
    for i in np.flatnonzero(valid).tolist():
        values[i] = found[i]
    return FoundColumn(values, None if valid.all() else valid)


def _python(value: Any) -> Any:
    return value if isinstance(value, str) else value.tolist()


@dataclass(frozen=True, slots=True, eq=False)
class KeyQuery:
    """Entities of a group: one column per key of the group, in its order, all of the same length."""

    group: StoredGroup
    keys: tuple[Column, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CommittedRows:
    """Rows of one group from one or more commits: keys, features, `event_time`, `commit`, `deleted`."""

    group: StoredGroup
    rows: RowSource


@dataclass(frozen=True, slots=True)
class Lookup:
    """For each query one row per entity, None where there is no row or a part of the key is NULL."""

    found: list[FoundRows]
    applied_commit: int


class Progress(NamedTuple):
    """How far a store has come: the last commit applied and the last erasure carried out, 0 for none."""

    commit: int
    erasure: int


class AppliedRows(Protocol):
    """What takes rows. Raises Unavailable when it does not answer, LimitExceeded when it has no room."""

    async def apply(self, applied_commit: int, rows: Sequence[CommittedRows]) -> None:
        """Takes the rows of all commits after the applied one up to `applied_commit`, which becomes the applied one."""
        ...

    async def remove(self, group: StoredGroup, keys: tuple[Column, ...]) -> int:
        """Removes the rows of keys for good; answers how many there were. Repeating it is harmless."""
        ...

    def keys(self, group: StoredGroup) -> AsyncIterator[tuple[Column, ...]]:
        """The keys of a group that have rows, batch by batch, a column per key of the group. For whoever applies."""
        ...

    async def erased(self, erasure: int) -> None:
        """Notes that all erasures up to one were carried out."""
        ...

    async def progress(self) -> Progress:
        """How far it has come."""
        ...


class Replacement(AppliedRows, Protocol):
    """A store that is being built, which nobody reads yet."""

    async def take_over(self, catch_up: Callable[[], Awaitable[None]]) -> int:
        """Becomes the store that is read, at once for all processes; answers how many keys it has.

        `catch_up` brings it up to the last commit and the last erasure; the store that it replaces stands still while
        it is called for the last time, so that the applied commit never goes back.
        """
        ...


class OnlineStore(AppliedRows, Protocol):
    """Keeps the latest rows."""

    async def lookup(self, queries: Sequence[KeyQuery]) -> Lookup:
        """The latest rows of several groups, all as of one applied commit. Raises Unavailable."""
        ...

    async def applied_commit(self) -> int:
        """The last commit applied; 0 for an empty store. Raises Unavailable."""
        ...

    def replacement(self) -> AbstractAsyncContextManager[Replacement]:
        """An empty store beside this one, gone at the end unless it took over. Raises FailedPrecondition while
        another one is being built, by whatever process."""
        ...
