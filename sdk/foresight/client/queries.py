"""Selections of rows of a feature group: what to read, and spines made of rows.

    rows_of("weather", where=[("wind", ">", 10), ("origin", "in", ["JFK", "LGA"])], latest=True)

A condition is (column, operator, value). Operators: `=` (or `==`), `!=`, `<`, `<=`, `>`, `>=`, `in` with a list, and
`is null` and `is not null` without a value. NULL fulfils `is null` only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from foresight.client.frames import EVENT_TIME, to_table
from foresight.feature_store.v1 import query_pb2
from foresight.tables import column_from_arrow
from foresight.types.v1 import types_pb2
from foresight.values import Column, FeatureGroup, Field, InvalidValue
from foresight.values.errors import quoted
from foresight.wire import decode_column, decode_optional_instant, encode_column, encode_instant

Condition = tuple[str, str] | tuple[str, str, Any]

_OPERATORS: dict[str, query_pb2.Operator.ValueType] = {
    "=": query_pb2.OPERATOR_EQUAL,
    "==": query_pb2.OPERATOR_EQUAL,
    "!=": query_pb2.OPERATOR_NOT_EQUAL,
    "<": query_pb2.OPERATOR_LESS,
    "<=": query_pb2.OPERATOR_AT_MOST,
    ">": query_pb2.OPERATOR_GREATER,
    ">=": query_pb2.OPERATOR_AT_LEAST,
    "in": query_pb2.OPERATOR_IN,
    "is null": query_pb2.OPERATOR_IS_NULL,
    "is not null": query_pb2.OPERATOR_NOT_NULL,
}
OPERATORS = tuple(_OPERATORS)
_WITHOUT_VALUE = ("is null", "is not null")


@dataclass(frozen=True, slots=True, eq=False)
class RowsOf:
    """Rows of a group; make it with `rows_of`."""

    group: str
    version: int = 0
    where: tuple[Condition, ...] = ()
    keys: Any = None
    from_event_time: datetime | None = None
    to_event_time: datetime | None = None
    latest: bool = False
    columns: Mapping[str, str] | None = None
    at: datetime | None = None


def rows_of(
    group: str,
    *,
    version: int = 0,
    where: Iterable[Condition] = (),
    keys: Any = None,
    from_event_time: datetime | None = None,
    to_event_time: datetime | None = None,
    latest: bool = False,
    columns: Mapping[str, str] | None = None,
    at: datetime | None = None,
) -> RowsOf:
    """Rows of a group as a spine, such as what is to be scored; version 0 is the latest.

    `from_event_time <= event_time < to_event_time`. `keys`: only these, a DataFrame, a list of dicts or a dict of
    columns with all keys of the group. `where`: conditions that all hold, see the module. `latest`: only the latest
    row per key, to which the conditions are then applied; else every row that was not corrected later.
    `columns`: {column of the group: name in the spine}, e.g. {"arrived_late": "late"} for the view's label or
    {"departure": "event_time"}. `at`: the event time of every row, for "as of then"; later rows are left out.
    """
    return RowsOf(group, version, tuple(where), keys, from_event_time, to_event_time, latest, columns, at)


def encode_group_query(rows: RowsOf, describe: Callable[[str, int], FeatureGroup]) -> query_pb2.GroupQuery:
    """The message of a query. `describe` is asked for the group when values need its types. Raises InvalidValue."""
    query = query_pb2.GroupQuery(
        group=types_pb2.VersionRef(name=rows.group, version=rows.version),
        from_event_time=None if rows.from_event_time is None else encode_instant(rows.from_event_time),
        to_event_time=None if rows.to_event_time is None else encode_instant(rows.to_event_time),
        latest_only=rows.latest,
    )
    if rows.where or rows.keys is not None:
        group = describe(rows.group, rows.version)
        # What the types are of, should a newer version come meanwhile.
        query.group.version = group.version
        fields = {f.name: f for f in (*group.fields, EVENT_TIME)}
        query.where.extend(_encode_condition(condition, fields) for condition in rows.where)
        if rows.keys is not None:
            query.keys.extend(_encode_keys(rows.keys, group.entity_keys))
    return query


def encode_spine_query(rows: RowsOf, describe: Callable[[str, int], FeatureGroup]) -> query_pb2.SpineQuery:
    """The message of a spine made of rows of a group. Raises InvalidValue."""
    return query_pb2.SpineQuery(
        query=encode_group_query(rows, describe),
        columns=[query_pb2.ColumnMapping(column=column, name=name) for column, name in (rows.columns or {}).items()],
        at=None if rows.at is None else encode_instant(rows.at),
    )


def decode_spine_query(message: query_pb2.SpineQuery) -> RowsOf:
    """The rows that a message describes; keys are a dict of columns."""
    query = message.query
    keys = {column.name: column.to_list() for column in (decode_column(key, "keys") for key in query.keys)}
    return rows_of(
        query.group.name,
        version=query.group.version,
        where=[_decode_condition(condition) for condition in query.where],
        keys=keys or None,
        from_event_time=decode_optional_instant(
            query.HasField("from_event_time"), query.from_event_time, "from_event_time"
        ),
        to_event_time=decode_optional_instant(query.HasField("to_event_time"), query.to_event_time, "to_event_time"),
        latest=query.latest_only,
        columns={mapping.column: mapping.name for mapping in message.columns} or None,
        at=decode_optional_instant(message.HasField("at"), message.at, "at"),
    )


def _decode_condition(message: query_pb2.Condition) -> Condition:
    operator = next(sign for sign, number in _OPERATORS.items() if number == message.operator)
    if operator in _WITHOUT_VALUE:
        return message.column, operator
    values = decode_column(message.values, "where").to_list()
    return message.column, operator, values if operator == "in" else values[0]


def _encode_keys(keys: Any, fields: Sequence[Field]) -> list[types_pb2.Column]:
    table = to_table(keys, fields)
    if not table.num_rows:
        raise InvalidValue("keys", "are empty; leave them out for all keys")
    known = {field.name: field for field in fields}
    for name in table.column_names:
        if name not in known:
            raise InvalidValue("keys", f"{quoted(name)} is not a key of the group, which has {', '.join(known)}")
    for name in known:
        if name not in table.column_names:
            raise InvalidValue("keys", f"{name} is missing")
    return [encode_column(column_from_arrow(table[name], field)) for name, field in known.items()]


def _encode_condition(condition: Condition, fields: Mapping[str, Field]) -> query_pb2.Condition:
    if not isinstance(condition, tuple | list) or len(condition) not in (2, 3):
        raise InvalidValue("where", f"{quoted(condition)} is not (column, operator, value)")
    column, operator, *values = condition
    if operator not in _OPERATORS:
        raise InvalidValue("where", f"{quoted(operator)} is not one of {', '.join(_OPERATORS)}")
    field = fields.get(column)
    if field is None:
        raise InvalidValue("where", f"{quoted(column)} is not a column of the group, which has {', '.join(fields)}")
    message = query_pb2.Condition(column=column, operator=_OPERATORS[operator])
    if operator in _WITHOUT_VALUE:
        if values:
            raise InvalidValue("where", f"{column} {operator} takes no value")
        return message
    if not values or values[0] is None:
        raise InvalidValue("where", f"{column} {operator} needs a value; compare with NULL by `is null`")
    many = list(values[0]) if operator == "in" and not isinstance(values[0], str) else [values[0]]
    try:
        message.values.CopyFrom(encode_column(Column.build(column, field.type, many, field.dimension)))
    except InvalidValue as error:
        raise error.within("where") from None
    return message
