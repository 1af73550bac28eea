"""Selections of rows of a group: for reading, for scoring, and as spines.

A query is checked twice: on its own when it is built, and against the group when that is known. `dump_spine_query`
gives canonical JSON for manifests; equal queries have equal text.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from foresight.values import Column, DataType, FeatureGroup, Field, InvalidValue, check_name
from foresight.values.errors import quoted
from foresight.values.instants import instant_from_micros, micros_from_instant
from services.feature_store.groups import Reference
from services.feature_store.reads.histories import ALL_TIMES, EventTimes
from services.feature_store.writes.row_tables import EVENT_TIME

KEYS_MAX = 100_000
CONDITIONS_MAX = 32
CONDITION_VALUES_MAX = 10_000
MAPPINGS_MAX = 1_024


class Operator(enum.IntEnum):
    """How a column is compared; the numbers are those of the wire enum. NULL fulfils IS_NULL only."""

    EQUAL = 1
    NOT_EQUAL = 2
    LESS = 3
    AT_MOST = 4
    GREATER = 5
    AT_LEAST = 6
    IN = 7
    IS_NULL = 8
    NOT_NULL = 9


_WITHOUT_VALUES = (Operator.IS_NULL, Operator.NOT_NULL)
_OF_EQUALITY = (Operator.EQUAL, Operator.NOT_EQUAL, Operator.IN)


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """A condition on one column; `values` has no NULLs, and is None for IS_NULL and NOT_NULL."""

    column: str
    operator: Operator
    values: Column | None = None

    def __post_init__(self) -> None:
        check_name(self.column, "where.column", reserved=True)
        count = 0 if self.values is None else len(self.values)
        most = 0 if self.operator in _WITHOUT_VALUES else CONDITION_VALUES_MAX if self.operator is Operator.IN else 1
        if not min(most, 1) <= count <= most:
            wanted = "no value" if not most else "one value" if most == 1 else f"1 to {most} values"
            raise InvalidValue(
                "where.values", f"of {self.column} has {count} values; {self.operator.name} takes {wanted}"
            )
        if self.values is not None and self.values.valid is not None:
            raise InvalidValue("where.values", f"of {self.column} has a NULL; compare with IS_NULL or NOT_NULL instead")

    def check_fits(self, fields: dict[str, Field]) -> None:
        """Raises InvalidValue when the group has no such column, or one of another type."""
        field = fields.get(self.column)
        if field is None:
            raise InvalidValue("where.column", f"{quoted(self.column)} is not a key, a feature or event_time")
        if self.values is None:
            return
        if field.type is DataType.FLOAT_VECTOR:
            raise InvalidValue("where.operator", f"{self.column} is a vector, which is compared with NULL only")
        if self.values.type is not field.type:
            raise InvalidValue("where.values", f"of {self.column} are {self.values.type.value}, not {field.type.value}")
        if field.type is DataType.BOOL and self.operator not in _OF_EQUALITY:
            raise InvalidValue("where.operator", f"{self.column} is a bool, which has no order")


@dataclass(frozen=True, slots=True, eq=False)
class GroupQuery:
    """Rows of a group; see the proto message of the same name.

    `keys` has one column per entity key of the group, row by row one key; () for all keys. The end of `times` is
    exclusive unless it says otherwise.
    """

    group: Reference
    times: EventTimes = ALL_TIMES
    keys: tuple[Column, ...] = ()
    where: tuple[Condition, ...] = ()
    latest_only: bool = False

    def __post_init__(self) -> None:
        first, end = self.times.first, self.times.end
        if first is not None and end is not None and first >= end:
            raise InvalidValue("from_event_time", "is not before to_event_time")
        if len(self.where) > CONDITIONS_MAX:
            raise InvalidValue("where", f"has {len(self.where)} conditions, more than {CONDITIONS_MAX}")
        if len({column.name for column in self.keys}) != len(self.keys):
            raise InvalidValue("keys", "name a column twice")
        if len({len(column) for column in self.keys}) > 1:
            raise InvalidValue("keys", "have columns of different lengths")
        for column in self.keys:
            if not 1 <= len(column) <= KEYS_MAX:
                raise InvalidValue("keys", f"are {len(column)}, not 1 to {KEYS_MAX}")
            if column.valid is not None:
                raise InvalidValue(f"keys[{column.name[:63]}]", "has a NULL; no row has such a key")

    def check_fits(self, group: FeatureGroup) -> None:
        """Raises InvalidValue for keys and conditions that are not the group's."""
        fields = {f.name: f for f in (*group.fields, EVENT_TIME)}
        for condition in self.where:
            condition.check_fits(fields)
        if not self.keys:
            return
        given = {column.name: column for column in self.keys}
        for name in given:
            if name not in {key.name for key in group.entity_keys}:
                raise InvalidValue("keys", f"{quoted(name)} is not a key of {group.name}")
        for key in group.entity_keys:
            if key.name not in given:
                raise InvalidValue("keys", f"{key.name} is missing; {group.name} needs all of its keys")
            if given[key.name].type is not key.type:
                raise InvalidValue(
                    f"keys[{key.name}]", f"is {given[key.name].type.value}, and {key.type.value} in {group.name}"
                )

    def key_columns(self, group: FeatureGroup) -> tuple[Column, ...]:
        """The keys in the order of the group's; () for all keys."""
        given = {column.name: column for column in self.keys}
        return tuple(given[key.name] for key in group.entity_keys) if given else ()


@dataclass(frozen=True, slots=True, eq=False)
class SpineQuery:
    """A spine made of rows of a group.

    `columns`: (column of the group, name in the spine). `at`: the event time of every spine row; rows after it are left
    out. Two queries are equal when their canonical JSON is.
    """

    query: GroupQuery
    columns: tuple[tuple[str, str], ...] = ()
    at: datetime | None = None

    def __post_init__(self) -> None:
        if len(self.columns) > MAPPINGS_MAX:
            raise InvalidValue("columns", f"are {len(self.columns)}, more than {MAPPINGS_MAX}")
        for column, name in self.columns:
            check_name(column, "columns.column", reserved=True)
            check_name(name, "columns.name", reserved=True)
        names = [name for _, name in self.columns]
        if len(set(names)) != len(names):
            raise InvalidValue("columns", "map two columns to the same name")
        if self.at is not None:
            micros_from_instant(self.at, "at")
            if "event_time" in names:
                raise InvalidValue("columns", "map a column to event_time, which `at` sets")
            first = self.query.times.first
            if first is not None and first > self.at:
                raise InvalidValue("at", "is before from_event_time")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SpineQuery) and dump_spine_query(self) == dump_spine_query(other)

    def __hash__(self) -> int:
        return hash(dump_spine_query(self))

    def pinned(self, version: int) -> SpineQuery:
        """The same query of an exact version of its group."""
        return replace(self, query=replace(self.query, group=Reference(self.query.group.name, version)))

    def spine_columns(self, group: FeatureGroup, wanted: Sequence[str]) -> list[tuple[str, str]]:
        """(column of the group, name in the spine) in the spine's order: keys, `event_time`, then what is mapped and
        what is `wanted` under its own name. Raises InvalidValue for what the group has not got."""
        known = [*(f.name for f in group.entity_keys), "event_time", *(f.name for f in group.features)]
        for column, _ in self.columns:
            if column not in known:
                raise InvalidValue("columns", f"{quoted(column)} is not a column of {group.name}")
        mapped, names = {column for column, _ in self.columns}, {name for _, name in self.columns}
        keys = {f.name for f in group.entity_keys}
        # A key under another name need not be there twice.
        own = [c for c in known if c not in names and ((c in keys and c not in mapped) or c in {"event_time", *wanted})]
        pairs = [*((c, c) for c in own), *self.columns]
        rank = {name: i for i, name in enumerate(known)}
        return sorted(pairs, key=lambda pair: (pair[1] != "event_time" and pair[0] not in keys, rank[pair[0]]))


def without_values(query: SpineQuery) -> SpineQuery:
    """The query without the keys and values that it names."""
    return replace(query, query=replace(query.query, keys=(), where=()))


def dump_spine_query(query: SpineQuery) -> str:
    """A query as canonical JSON; instants are microseconds since the epoch."""
    rows = query.query
    content = {
        "group": [rows.group.name, rows.group.version],
        "from_event_time_us": _dump_instant(rows.times.first),
        "to_event_time_us": _dump_instant(rows.times.end),
        "to_inclusive": rows.times.inclusive,
        "keys": [_dump_column(column) for column in rows.keys],
        "where": [
            {
                "column": condition.column,
                "operator": condition.operator.name,
                "values": None if condition.values is None else _dump_column(condition.values),
            }
            for condition in rows.where
        ],
        "latest_only": rows.latest_only,
        "columns": [list(pair) for pair in query.columns],
        "at_us": _dump_instant(query.at),
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def load_spine_query(text: str) -> SpineQuery:
    """The query of its JSON."""
    content = json.loads(text)
    return SpineQuery(
        query=GroupQuery(
            group=Reference(*content["group"]),
            times=EventTimes(
                _load_instant(content["from_event_time_us"]),
                _load_instant(content["to_event_time_us"]),
                content["to_inclusive"],
            ),
            keys=tuple(_load_column(column) for column in content["keys"]),
            where=tuple(
                Condition(
                    condition["column"],
                    Operator[condition["operator"]],
                    None if condition["values"] is None else _load_column(condition["values"]),
                )
                for condition in content["where"]
            ),
            latest_only=content["latest_only"],
        ),
        columns=tuple((column, name) for column, name in content["columns"]),
        at=_load_instant(content["at_us"]),
    )


def _dump_column(column: Column) -> dict[str, Any]:
    # Instants stay microseconds; JSON floats keep every bit.
    return {"name": column.name, "type": column.type.value, "values": column.values.tolist()}


def _load_column(content: dict[str, Any]) -> Column:
    return Column.build(content["name"], DataType(content["type"]), content["values"])


def _dump_instant(instant: datetime | None) -> int | None:
    return None if instant is None else micros_from_instant(instant)


def _load_instant(micros: int | None) -> datetime | None:
    return None if micros is None else instant_from_micros(micros)
