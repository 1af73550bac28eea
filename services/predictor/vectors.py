"""Feature vectors as the feature store answers them: columns of n rows with a status per value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from foresight.values import Column
from services.predictor.versions import VersionRef


@dataclass(frozen=True, slots=True, eq=False)
class KnownValues:
    """What may stand in for missing values of a feature: NULL where nothing may.

    With the event time, in microseconds, and the commit of the row that each value comes from; 0 where there is none.
    """

    column: Column
    event_time_micros: Sequence[int]
    commits: Sequence[int]

    def take(self, rows: Sequence[int]) -> KnownValues:
        """Those of these rows."""
        return KnownValues(
            self.column.take(rows), [self.event_time_micros[row] for row in rows], [self.commits[row] for row in rows]
        )


@dataclass(frozen=True, slots=True, eq=False)
class FeatureValues:
    """One feature: its values, NULL where the status is not PRESENT, and one FeatureStatus number per row.

    `known`: last known values; None: there are none.
    """

    column: Column
    statuses: bytes
    known: KnownValues | None = None

    def take(self, rows: Sequence[int]) -> FeatureValues:
        """Those of these rows."""
        statuses = bytes(self.statuses[row] for row in rows)
        return FeatureValues(self.column.take(rows), statuses, self.known.take(rows) if self.known else None)


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
            tuple(feature.take(rows) for feature in self.features),
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
        """The latest values, each row as of its own event time. Raises Unavailable when there is no answer."""
        ...

    async def replay(
        self, view: VersionRef, keys: Sequence[Column], event_time: datetime, applied_commit: int
    ) -> Vectors:
        """What `vectors` answered when the online store had applied the commit."""
        ...
