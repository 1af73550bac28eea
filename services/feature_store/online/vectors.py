"""Feature vectors: what the latest rows mean at the time of asking.

The online answer and its replay from offline rows go through the same `assemble`, so that they can only differ by the
rows that were found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from foresight.values import Column, DataType, FeatureStatus, FeatureView, Field, InvalidValue, micros_from_instant
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.online.store import FoundRows, KeyQuery, Lookup, OnlineStore
from services.feature_store.registry.registry import Registry
from services.feature_store.registry.view_plan import SourcePlan, ViewPlan
from services.runtime.errors import LimitExceeded, OutOfRange

ENTITIES_MAX = 1_024
# Of so few numbers Python finds the least faster than NumPy does.
FEW_ROWS_MAX = 32


@dataclass(frozen=True, slots=True, eq=False)
class FeatureValues:
    """Values of one feature for n entities: an array as in `Column`, with a zero where the status is not PRESENT.

    `statuses` has one FeatureStatus per entity; `source` is the position of the view's source.
    """

    field: Field
    values: NDArray[Any]
    statuses: bytes
    source: int

    @property
    def present(self) -> NDArray[np.bool_]:
        """For each entity whether it has a value."""
        present: NDArray[np.bool_] = np.frombuffer(self.statuses, np.uint8) == FeatureStatus.PRESENT
        return present


@dataclass(frozen=True, slots=True, eq=False)
class SourceRows:
    """Event time and commit of the row that a source gave each entity, also of one that does not count; 0 for none."""

    group: StoredGroup
    event_time_us: NDArray[np.int64]
    commits: NDArray[np.uint64]
    # In replays: the last commit up to which rows of each entity were erased, 0 for none; empty: all 0.
    erased_commits: Sequence[int] = ()


@dataclass(frozen=True, slots=True, eq=False)
class FeatureVectors:
    """Answer of an online read: every feature of the view that comes from a group, in its order."""

    view: FeatureView
    features: list[FeatureValues]
    rows: list[SourceRows]
    applied_commit: int


class RowHistory(Protocol):
    """Finds the rows that an online store had at an earlier applied commit, from offline rows."""

    async def lookup(self, queries: Sequence[KeyQuery], applied_commit: int) -> list[FoundRows]:
        """For each query the latest row per entity among the commits up to `applied_commit`."""
        ...

    async def last(self) -> int:
        """Number of the last commit."""
        ...


class ErasedEntities(Protocol):
    """Knows whose rows were erased."""

    async def erased_commits(self, stored: StoredGroup, keys: Sequence[Column]) -> list[int]:
        """For each key of a group the last commit up to which its rows were erased; 0: they never were."""
        ...


class VectorReader:
    """Answers feature vectors."""

    def __init__(self, registry: Registry, store: OnlineStore, history: RowHistory, erased: ErasedEntities) -> None:
        self._registry = registry
        self._store = store
        self._history = history
        self._erased = erased

    async def latest(
        self, view: Reference, keys: Mapping[str, Column], at: datetime | Sequence[int] | NDArray[np.int64]
    ) -> FeatureVectors:
        """The vectors at a time of asking, or each row at its own, in microseconds.

        Raises NotFound, InvalidValue for wrong keys or another number of times than rows, and LimitExceeded.
        """
        plan = await self._registry.plan(view)
        queries = _queries(plan, keys)
        if isinstance(at, datetime):
            return assemble(plan, await self._store.lookup(queries), micros_from_instant(at))
        rows = len(queries[0].keys[0]) if queries else 0
        if len(at) != rows:
            raise InvalidValue("event_time_micros", f"has {len(at)} instants for {rows} rows")
        return assemble(plan, await self._store.lookup(queries), np.asarray(at, np.int64))

    async def replay(
        self, view: Reference, keys: Mapping[str, Column], at: datetime, applied_commit: int
    ) -> FeatureVectors:
        """What `latest` answered when `applied_commit` was the applied one. Raises OutOfRange beyond the last."""
        if not view.version:
            raise InvalidValue("view.version", "is required: only one version can be replayed")
        plan = await self._registry.plan(view)
        queries = _queries(plan, keys)
        last = await self._history.last()
        if applied_commit > last:
            raise OutOfRange(f"commit {applied_commit} does not exist yet; the last one is {last}")
        found = await self._history.lookup(queries, applied_commit)
        vectors = assemble(plan, Lookup(found, applied_commit), micros_from_instant(at))
        erased = [await self._erased.erased_commits(query.group, query.keys) for query in queries]
        rows = [
            replace(found, erased_commits=until) if any(until) else found
            for found, until in zip(vectors.rows, erased, strict=True)
        ]
        return replace(vectors, rows=rows)


def assemble(plan: ViewPlan, lookup: Lookup, at_us: int | NDArray[np.int64]) -> FeatureVectors:
    """The vectors of the rows found, at one time or each at its own: statuses by the online rule, never shortened."""
    features: list[FeatureValues] = []
    rows: list[SourceRows] = []
    for index, (source, found) in enumerate(zip(plan.sources, lookup.found, strict=True)):
        rows.append(SourceRows(source.group, found.event_times_us, found.commits))
        marks = _statuses(source, found, at_us)
        statuses = bytes([FeatureStatus.PRESENT]) * len(found) if marks is None else marks.tobytes()
        for position, field in zip(source.positions, source.fields, strict=True):
            values, valid = found.columns[position]
            if marks is None and valid is None:
                features.append(FeatureValues(field, values, statuses, index))
            else:
                features.append(_feature(field, values, valid, np.frombuffer(statuses, np.uint8), index))
    return FeatureVectors(plan.view, features, rows, lookup.applied_commit)


def _feature(
    field: Field, values: NDArray[Any], valid: NDArray[np.bool_] | None, marks: NDArray[np.uint8], source: int
) -> FeatureValues:
    """A feature of rows that do not all count, or have NULLs."""
    if valid is not None:
        marks = np.where((marks == FeatureStatus.PRESENT) & ~valid, np.uint8(FeatureStatus.NULL), marks)
    served = values.copy()
    served[marks != FeatureStatus.PRESENT] = "" if field.type is DataType.STRING else 0
    return FeatureValues(field, served, marks.tobytes(), source)


def _statuses(source: SourcePlan, found: FoundRows, at_us: int | NDArray[np.int64]) -> NDArray[np.uint8] | None:
    """Which rows count, each at its time; a tombstone is no row whatever its time. None: all do."""
    times, gone, max_age = found.event_times_us, found.gone, source.max_age_us
    ahead = 1 if source.strict else 0
    earliest, latest = _bounds(times)
    soonest, last = (at_us, at_us) if isinstance(at_us, int) else _bounds(at_us)
    if gone is None and latest + ahead <= soonest and (max_age is None or last - earliest <= max_age):
        return None
    marks = np.full(len(times), FeatureStatus.PRESENT, np.uint8)
    if max_age is not None:
        marks[at_us - times > max_age] = FeatureStatus.EXPIRED
    marks[times + ahead > at_us] = FeatureStatus.FUTURE
    if gone is not None:
        marks[gone] = FeatureStatus.NOT_FOUND
    return marks


def _bounds(times: NDArray[np.int64]) -> tuple[int, int]:
    """The first and the last of at least one instant."""
    if len(times) > FEW_ROWS_MAX:
        return int(times.min()), int(times.max())
    few = times.tolist()
    return min(few), max(few)


def _queries(plan: ViewPlan, keys: Mapping[str, Column]) -> list[KeyQuery]:
    """One query per source. Raises InvalidValue unless there is exactly one column per entity key, of its type."""
    wanted = plan.view.entity_keys
    for key in wanted:
        column = keys.get(key.name)
        if column is None:
            raise InvalidValue("entity_keys", f"the key {key.name} is missing")
        if column.type is not key.type:
            raise InvalidValue(f"entity_keys[{key.name}]", f"is {column.type.value}, not {key.type.value}")
        if len(column) == 0:
            raise InvalidValue("entity_keys", "have no rows")
        if len(column) > ENTITIES_MAX:
            raise LimitExceeded(f"more than {ENTITIES_MAX} entities in one call", limit="entities")
    if len(keys) != len(wanted):
        extra = next(name for name in keys if name not in {key.name for key in wanted})
        raise InvalidValue(f"entity_keys[{extra[:63]}]", "is not an entity key of the view")
    columns = [keys[key.name] for key in wanted]
    return [KeyQuery(s.group, tuple(columns[i] for i in s.key_positions)) for s in plan.sources]
