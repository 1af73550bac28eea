"""The last values that this replica served, for features whose policy is LAST_KNOWN.

Per view and entity keys one entry; per such feature the value of the last row that was PRESENT, with the row's event
time and commit. Views without the policy cost nothing and leave nothing here.

- A value stands in for one that is NULL, EXPIRED, FUTURE or UNAVAILABLE. NOT_FOUND means that the entity was deleted or
  forgotten: the values of that source are dropped, and nothing stands in.
- It is used only when its row is earlier than the event time of the request (or of that very time, where the feature
  store itself has served it so: some groups are strict) and not older than the feature's maximal age; an age equal to
  it is still fresh.
- It is used only within `keep_s` after the feature store last showed that its row is there. So what was forgotten
  while the feature store is away, or about an entity that nobody asks about, is not served for longer than that.
- Answers may overtake one another: one from an earlier applied commit changes nothing.

Bounds: `rows_max` entries and about `bytes_max` bytes, as counted here; those that were not used for longest go first.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from foresight.values import Column, DataType, FeatureStatus
from services.predictor.plans import ViewPlan
from services.predictor.vectors import FeatureValues, KnownValues, SourceRows, Vectors

ROWS_MAX = 100_000
BYTES_MAX = 64 << 20
KEEP_S = 600.0
# An entry with its key and its place in the order, without the texts in its key; and what is kept of one feature.
ENTRY_BYTES = 420
VALUE_BYTES = 240
_PRESENT, _NOT_FOUND = int(FeatureStatus.PRESENT), int(FeatureStatus.NOT_FOUND)
_NOT_REPLACED = (_PRESENT, _NOT_FOUND)
_ALL_PRESENT = bytes([_PRESENT])

_Key = tuple[Any, ...]


class _Value:
    """A value, its row's event time and commit, the earliest event time it was served at, when it was seen last."""

    __slots__ = ("at", "bytes", "commit", "seen", "since", "value")

    def __init__(self, value: Any, at: int, commit: int, since: int, seen: float) -> None:
        self.value = value
        self.at = at
        self.commit = commit
        self.since = since
        self.seen = seen
        self.bytes = VALUE_BYTES + _bytes_of(value)


class _Entry:
    """What is known of one entity in one view: a value or None per remembered feature, as of an applied commit."""

    __slots__ = ("applied_commit", "values")

    def __init__(self, features: int) -> None:
        self.applied_commit = 0
        self.values: list[_Value | None] = [None] * features


class LastKnown:
    """The values of one replica; used by one event loop. `evicted` is told how many entries had to make room."""

    def __init__(
        self,
        *,
        rows_max: int = ROWS_MAX,
        bytes_max: int = BYTES_MAX,
        keep_s: float = KEEP_S,
        now: Callable[[], float] = time.monotonic,
        evicted: Callable[[int], None] = lambda entries: None,
    ) -> None:
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._keep_s = keep_s
        self._now = now
        self._evicted = evicted
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def observe(
        self, plan: ViewPlan, keys: Sequence[Column], event_time_micros: Sequence[int], vectors: Vectors
    ) -> Vectors:
        """Remembers an answer of the feature store; the same vectors, with what is known where they lack a value."""
        if not plan.remembered:
            return vectors
        now = self._now()
        lacking = any(vectors.features[i].statuses.strip(_ALL_PRESENT) for i in plan.remembered)
        found: list[list[_Value | None]] = []
        # Row by row, so that each finds what it would find if it were asked alone.
        for row, key in enumerate(_keys_of(plan, keys)):
            self._learn(plan, key, row, event_time_micros[row], vectors, now)
            if lacking:
                found.append(self._find(plan, key, row, event_time_micros[row], vectors, now))
            self._make_room()
        return _filled(plan, vectors, found) if lacking else vectors

    def recall(self, plan: ViewPlan, keys: Sequence[Column], event_time_micros: Sequence[int]) -> Vectors:
        """The vectors of a feature store that does not answer: all UNAVAILABLE, with what is known of the entities."""
        vectors = unavailable(plan, len(event_time_micros))
        if not plan.remembered:
            return vectors
        now = self._now()
        found = [
            self._find(plan, key, row, event_time_micros[row], vectors, now)
            for row, key in enumerate(_keys_of(plan, keys))
        ]
        return _filled(plan, vectors, found)

    def _learn(self, plan: ViewPlan, key: _Key, row: int, asked_at: int, vectors: Vectors, now: float) -> None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            if vectors.applied_commit < entry.applied_commit:
                return
            entry.applied_commit = vectors.applied_commit
        for position, index in enumerate(plan.remembered):
            feature, source = vectors.features[index], vectors.sources[plan.features[index].source]
            status = feature.statuses[row]
            value = entry.values[position] if entry is not None else None
            if status == _NOT_FOUND:
                if entry is not None and value is not None:
                    self._put(entry, position, None)
                continue
            at, commit = source.event_time_micros[row], source.commits[row]
            if value is not None and value.at == at and value.commit == commit:
                # The row is there, whether or not it may be served at this event time.
                value.seen = now
                if status == _PRESENT and asked_at < value.since:
                    value.since = asked_at
            elif status == _PRESENT:
                if entry is None:
                    entry = self._entries[key] = _Entry(len(plan.remembered))
                    entry.applied_commit = vectors.applied_commit
                    self.bytes += _entry_bytes(key, entry)
                self._put(entry, position, _Value(_raw(feature.column, row), at, commit, asked_at, now))

    def _put(self, entry: _Entry, position: int, value: _Value | None) -> None:
        before = entry.values[position]
        self.bytes += (value.bytes if value is not None else 0) - (before.bytes if before is not None else 0)
        entry.values[position] = value

    def _find(
        self, plan: ViewPlan, key: _Key, row: int, asked_at: int, vectors: Vectors, now: float
    ) -> list[_Value | None]:
        """What may stand in for missing values of a row, by remembered feature."""
        entry = self._entries.get(key)
        if entry is None:
            return [None] * len(plan.remembered)
        self._entries.move_to_end(key)
        return [
            value
            if value is not None
            and vectors.features[index].statuses[row] not in _NOT_REPLACED
            and self._usable(value, asked_at, plan.features[index].last_known_max_age_us, now)
            else None
            for index, value in zip(plan.remembered, entry.values, strict=True)
        ]

    def _usable(self, value: _Value, asked_at: int, age_max_us: int, now: float) -> bool:
        earlier = value.at < asked_at or value.since <= asked_at
        return earlier and asked_at - value.at <= age_max_us and now - value.seen <= self._keep_s

    def _make_room(self) -> None:
        """Lets go of what was not used for longest."""
        gone = 0
        while self._entries and (len(self._entries) > self._rows_max or self.bytes > self._bytes_max):
            key, entry = self._entries.popitem(last=False)
            self.bytes -= _entry_bytes(key, entry) + sum(v.bytes for v in entry.values if v is not None)
            gone += 1
        if gone:
            self._evicted(gone)


def unavailable(plan: ViewPlan, rows: int) -> Vectors:
    """The vectors of so many rows when the feature store does not answer."""
    statuses = bytes([FeatureStatus.UNAVAILABLE]) * rows
    nothing = [0] * rows
    return Vectors(
        tuple(FeatureValues(Column.nulls(planned.field, rows), statuses) for planned in plan.features),
        tuple(SourceRows(group, nothing, nothing) for group in plan.groups),
    )


def _filled(plan: ViewPlan, vectors: Vectors, found: Sequence[Sequence[_Value | None]]) -> Vectors:
    """The vectors with known values beside those that lack one; `found` by row, then by remembered feature."""
    features = list(vectors.features)
    for index, known in zip(plan.remembered, zip(*found, strict=True), strict=True):
        if any(value is not None for value in known):
            features[index] = replace(features[index], known=_known(features[index].column, known))
    return replace(vectors, features=tuple(features))


def _keys_of(plan: ViewPlan, keys: Sequence[Column]) -> list[_Key]:
    """The keys of entries, one per row: the view and all of its entity keys.

    Not those of each source alone: which they are is for the feature store to know.
    """
    view = str(plan.ref)
    return [(view, *row) for row in zip(*(key.to_list() for key in keys), strict=True)]


def _known(column: Column, found: Sequence[_Value | None]) -> KnownValues:
    """Known values as a column like another one."""
    values = np.zeros_like(column.values)
    if column.type is DataType.STRING:
        values[:] = ""
    for row, value in enumerate(found):
        if value is not None:
            values[row] = value.value
    valid = np.array([value is not None for value in found], np.bool_)
    return KnownValues(
        Column(column.name, column.type, values, valid),
        [0 if value is None else value.at for value in found],
        [0 if value is None else value.commit for value in found],
    )


def _raw(column: Column, row: int) -> Any:
    """A value as the column's array holds it, apart from the array."""
    value = column.values[row]
    if column.type is DataType.FLOAT_VECTOR:
        return value.copy()
    return value if isinstance(value, str) else value.item()


def _bytes_of(value: Any) -> int:
    return 112 + int(value.nbytes) if isinstance(value, np.ndarray) else sys.getsizeof(value)


def _entry_bytes(key: _Key, entry: _Entry) -> int:
    return ENTRY_BYTES + 8 * len(entry.values) + sum(sys.getsizeof(part) for part in key[1:])
