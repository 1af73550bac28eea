"""Feature vectors as the feature store answers them: columns of n rows with a status per value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from foresight.values import Column
from services.predictor.versions import VersionRef


@dataclass(frozen=True, slots=True, eq=False)
class FeatureValues:
    """One feature: its values, NULL where the status is not PRESENT, and one FeatureStatus number per row."""

    column: Column
    statuses: bytes


@dataclass(frozen=True, slots=True, eq=False)
class SourceRows:
    """The rows that one source of the view gave: event times in microseconds and commits, 0 where there is none.

    `erased_commits`, in replays: rows of the entity up to this commit were erased; 0: none were. Empty: all 0.
    """

    group: VersionRef
    event_time_micros: Sequence[int]
    commits: Sequence[int]
    erased_commits: Sequence[int] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """All group features of a view in its order, one `SourceRows` per source, and the applied commit."""

    features: tuple[FeatureValues, ...] = ()
    sources: tuple[SourceRows, ...] = ()
    applied_commit: int = 0

    def take(self, rows: Sequence[int]) -> Vectors:
        """The vectors of these rows."""
        return Vectors(
            tuple(FeatureValues(f.column.take(rows), bytes(f.statuses[row] for row in rows)) for f in self.features),
            tuple(
                SourceRows(
                    s.group,
                    [s.event_time_micros[row] for row in rows],
                    [s.commits[row] for row in rows],
                    [s.erased_commits[row] for row in rows] if s.erased_commits else (),
                )
                for s in self.sources
            ),
            self.applied_commit,
        )


NO_VECTORS = Vectors()


class VectorSource(Protocol):
    """Where feature vectors come from."""

    async def vectors(
        self, view: VersionRef, keys: Sequence[Column], event_time_micros: Sequence[int], timeout_s: float
    ) -> Vectors:
        """The latest values, each row as of its own event time. Raises Unavailable."""
        ...

    async def replay(
        self, view: VersionRef, keys: Sequence[Column], event_time: datetime, applied_commit: int
    ) -> Vectors:
        """What `vectors` answered when the online store had applied the commit."""
        ...
