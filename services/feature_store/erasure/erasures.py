"""Erasures: which rows, predictions and datasets are about an entity, and how far it is forgotten.

An entity is named as groups name their keys. Its values are kept until nothing of it is left; after that only a salted
hash of them and the names remain, by which a repeated request, an online store that was away, and the replay of a
prediction recognise it.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from foresight.values import Column, DataType, FeatureGroup, FeatureView, InvalidValue, check_name
from foresight.values.features import KEY_TYPES, KEYS_MAX
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.logs.log_groups import PREDICTION_ID
from services.feature_store.reads.queries import SpineQuery
from services.feature_store.registry.lineage import Thing

# Ways in which the keys of one view may stand for an entity.
WAYS_MAX = 64


class Step(enum.IntEnum):
    """What is being done; each step may be repeated."""

    ONLINE = 1
    LOG = 2
    LOG_ROWS = 3
    ROWS = 4
    DATASETS = 5
    STATISTICS = 6
    DONE = 7

    @property
    def words(self) -> str:
        """The step for people."""
        return _WORDS[self]


_WORDS = {
    Step.ONLINE: "removing rows from the online store",
    Step.LOG: "removing predictions from the log",
    Step.LOG_ROWS: "removing predictions that came back from the log",
    Step.ROWS: "removing rows",
    Step.DATASETS: "removing training datasets",
    Step.STATISTICS: "removing statistics",
    Step.DONE: "done",
}


@dataclass(frozen=True, slots=True, eq=False)
class Entity:
    """Key values by the names that groups give their keys: one row per column, no NULL, ordered by name."""

    keys: tuple[Column, ...]

    @classmethod
    def of(cls, columns: Mapping[str, Column]) -> Entity:
        """The entity of a request. Raises InvalidValue."""
        if not 1 <= len(columns) <= KEYS_MAX:
            raise InvalidValue("entity_keys", f"are {len(columns)}, not 1 to {KEYS_MAX}")
        for name, column in columns.items():
            check_name(name, "entity_keys", reserved=True)
            if column.type not in KEY_TYPES:
                raise InvalidValue(
                    f"entity_keys[{name}]", f"is {column.type.value}; entity keys are int64, string or bool"
                )
            if len(column) != 1:
                raise InvalidValue(f"entity_keys[{name}]", f"has {len(column)} rows; one entity is forgotten at a time")
            if not column.is_valid(0):
                raise InvalidValue(f"entity_keys[{name}]", "is NULL; no row has such a key")
        return cls(tuple(columns[name] for name in sorted(columns)))

    @property
    def names(self) -> KeyNames:
        """Names and types of the keys."""
        return tuple((column.name, column.type) for column in self.keys)

    def hash(self, salt: bytes) -> bytes:
        """The salted hash of names and values."""
        return salted_hashes(salt, self.keys)[0]

    def dump(self) -> str:
        """The entity as JSON."""
        return json.dumps([[c.name, c.type.value, c.python(0)] for c in self.keys])

    @classmethod
    def load(cls, text: str) -> Entity:
        """The entity of its JSON."""
        return cls(tuple(Column.build(name, DataType(type), [value]) for name, type, value in json.loads(text)))


KeyNames = tuple[tuple[str, DataType], ...]


def dump_names(names: KeyNames) -> str:
    """Names of keys as JSON."""
    return json.dumps([[name, type.value] for name, type in names])


def load_names(text: str) -> KeyNames:
    """The names of their JSON."""
    return tuple((name, DataType(type)) for name, type in json.loads(text))


def salted_hashes(salt: bytes, columns: Sequence[Column]) -> list[bytes]:
    """A salted hash for each row of key columns that are ordered by name."""
    start = salt + json.dumps([[c.name, c.type.value] for c in columns]).encode()
    rows = zip(*(c.values.tolist() for c in columns), strict=True)
    return [hashlib.sha256(start + json.dumps(row).encode()).digest() for row in rows]


def entity_columns(names: KeyNames, columns: Iterable[Column]) -> tuple[Column, ...]:
    """The key columns that name entities, ordered by name."""
    there = {column.name: column for column in columns}
    return tuple(there[name] for name, _ in names)


def covers(group: FeatureGroup, names: KeyNames) -> bool:
    """Whether a group has all keys of an entity, with their types."""
    keys = {key.name: key.type for key in group.entity_keys}
    return all(keys.get(name) is type for name, type in names)


@dataclass(frozen=True, slots=True)
class WayInView:
    """One way in which keys of a view stand for an entity: (view key, name of the entity's key) by view key."""

    view: Reference
    pairs: tuple[tuple[str, str], ...]


def ways_in_view(view: FeatureView, groups: Mapping[Reference, FeatureGroup], names: KeyNames) -> list[WayInView]:
    """How keys of a view stand for an entity: as keys of one group that has them all, else as keys of several groups.

    `groups` are those of the view's sources. A key of the prediction itself counts too.
    """
    wanted = dict(names)
    by_id = wanted.pop(PREDICTION_ID, None)
    if by_id not in (None, DataType.STRING):
        return []
    types = {key.name: key.type for key in view.entity_keys}
    candidates: dict[str, set[str]] = {name: set() for name in wanted}
    whole: set[tuple[tuple[str, str], ...]] = set()
    for source in view.sources:
        group = groups[Reference(source.group, source.group_version)]
        filled = {
            key.name: source.view_key(key.name)
            for key in group.entity_keys
            if wanted.get(key.name) is key.type and types.get(source.view_key(key.name)) is key.type
        }
        for name, view_key in filled.items():
            candidates[name].add(view_key)
        if len(filled) == len(wanted):
            whole.add(tuple(sorted((view_key, name) for name, view_key in filled.items())))
    if not whole:
        choices = itertools.product(*(sorted(candidates[name]) for name in wanted))
        whole = {tuple(sorted(zip(choice, wanted, strict=True))) for choice in itertools.islice(choices, WAYS_MAX)}
    mine = () if by_id is None else ((PREDICTION_ID, PREDICTION_ID),)
    reference = Reference(view.name, view.version)
    return [WayInView(reference, (*mine, *pairs)) for pairs in sorted(whole)]


@dataclass(frozen=True, slots=True)
class ErasedRows:
    """Rows of a group that were removed; `first_commit` is the first commit that had one."""

    group: Reference
    group_id: int
    rows: int
    first_commit: int


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was done so far. `entity` is None once all is done; `commit` is the last one that loses rows."""

    number: int
    request_id: str
    requested_at: datetime
    finished_at: datetime | None
    commit: int
    step: Step
    names: KeyNames
    entity: Entity | None
    log_position: int = 0
    predictions: int = 0


@dataclass(frozen=True, slots=True)
class ErasureReport:
    """An erasure with what it removed. `datasets`: id and name. `affected`: models and deployments behind those."""

    erasure: Erasure
    rows: tuple[ErasedRows, ...]
    datasets: tuple[tuple[str, str], ...]
    affected: tuple[Thing, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Concerned:
    """Everything that an entity's keys are in.

    `groups`: those that have all of its keys. `ways`: how keys of views stand for it; `predictions` and `outcomes`: the
    groups that are filled from the logs of these views, where there are any.
    """

    groups: tuple[StoredGroup, ...]
    ways: tuple[WayInView, ...]
    entity_keys: Mapping[Reference, tuple[str, ...]]
    predictions: Mapping[Reference, StoredGroup]
    outcomes: Mapping[Reference, StoredGroup]

    def online(self) -> list[StoredGroup]:
        """The groups with rows online."""
        return [stored for stored in self.groups if not stored.group.derived]

    def columns_of(self, entity: Entity, view: Reference) -> list[dict[str, Any]]:
        """For each way the values that a row of the view's keys has when it is about the entity."""
        values = {column.name: column.python(0) for column in entity.keys}
        return [{mine: values[name] for mine, name in way.pairs} for way in self.ways if way.view == view]


def named_in(entity: Entity, spine: SpineQuery) -> bool:
    """Whether the query of a spine names the entity: among its keys, or in its conditions."""
    values = {column.name: column.python(0) for column in entity.keys}
    named = {column.name: column.to_list() for column in spine.query.keys if column.name in values}
    if len(named) == len(values) and tuple(values.values()) in zip(*(named[name] for name in values), strict=True):
        return True
    compared: dict[str, list[Any]] = {}
    for condition in spine.query.where:
        if condition.values is not None:
            compared.setdefault(condition.column, []).extend(condition.values.to_list())
    return all(value in compared.get(name, ()) for name, value in values.items())


def view_keys(entity: Entity, way: WayInView) -> tuple[Column, ...]:
    """The entity's values under the names that a view gives them."""
    mine = {column.name: column for column in entity.keys}
    return tuple(mine[name].renamed(view_key) for view_key, name in way.pairs)
