"""Keys and conditions of a query as SQL.

Bulk reads go through COPY, which takes no parameters, so that values are written into the statement: numbers, bools and
instants by their type, texts as `U&'...'` literals in which everything but letters, digits and a few harmless marks is
an escaped code point. Neither a quote nor a backslash of a caller ever reaches a statement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foresight.values import Column, DataType, FeatureGroup
from foresight.values.instants import instant_from_micros
from services.feature_store.postgres.row_tables import key_expressions
from services.feature_store.reads.queries import Condition, Operator

# Inert between quotes; everything else is escaped.
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 ,.:_-")
_SQL_TYPES = {
    DataType.INT64: "bigint",
    DataType.FLOAT64: "double precision",
    DataType.BOOL: "boolean",
    DataType.STRING: "text",
    DataType.TIMESTAMP: "timestamptz",
}
_COMPARISONS = {
    Operator.EQUAL: "=",
    Operator.NOT_EQUAL: "<>",
    Operator.LESS: "<",
    Operator.AT_MOST: "<=",
    Operator.GREATER: ">",
    Operator.AT_LEAST: ">=",
}


def text_sql(text: str) -> str:
    """A text as a literal; safe whatever it holds."""
    return "U&'" + "".join(c if c in _PLAIN else f"\\+{ord(c):06X}" for c in text) + "'"


def value_sql(column: Column, row: int) -> str:
    """A value that is not NULL as a typed literal."""
    return f"{text_sql(_plain_text(column.type)(column.values[row]))}::{_SQL_TYPES[column.type]}"


def array_sql(column: Column) -> str:
    """The values of a column without NULLs as an array."""
    plain = _plain_text(column.type)
    quoted = (plain(value).replace("\\", "\\\\").replace('"', '\\"') for value in column.values.tolist())
    return text_sql("{" + ",".join(f'"{value}"' for value in quoted) + "}") + f"::{_SQL_TYPES[column.type]}[]"


def conditions_sql(conditions: Sequence[Condition], expressions: Mapping[str, str]) -> list[str]:
    """The conditions, each as one expression; `expressions` says what stands for a column."""
    return [_condition_sql(condition, expressions[condition.column]) for condition in conditions]


def keys_join_sql(group: FeatureGroup, keys: Sequence[Column]) -> str:
    """A join of `r` with the keys that are asked for, each once, in the order of the group's; the key index fits it."""
    if not keys:
        return ""
    asked = list(dict.fromkeys(zip(*(column.values.tolist() for column in keys), strict=True)))
    distinct = [
        Column.build(column.name, column.type, values)
        for column, values in zip(keys, zip(*asked, strict=True), strict=True)
    ]
    names = [f"k{i}" for i in range(len(keys))]
    equal = [f"r.{name} = asked.{name}" for name in names]
    # The index holds hashes of texts.
    pairs = zip(key_expressions(group.entity_keys, "r."), key_expressions(group.entity_keys, "asked."), strict=True)
    equal += [f"{mine} = {theirs}" for mine, theirs in pairs if mine.startswith("hash")]
    arrays = ", ".join(array_sql(column) for column in distinct)
    return f" JOIN unnest({arrays}) AS asked ({', '.join(names)}) ON {' AND '.join(equal)}"


def _condition_sql(condition: Condition, expression: str) -> str:
    if condition.operator is Operator.IS_NULL:
        return f"{expression} IS NULL"
    if condition.operator is Operator.NOT_NULL:
        return f"{expression} IS NOT NULL"
    assert condition.values is not None
    if condition.operator is Operator.IN:
        return f"{expression} = ANY ({array_sql(condition.values)})"
    return f"{expression} {_COMPARISONS[condition.operator]} {value_sql(condition.values, 0)}"


def _plain_text(type: DataType) -> Callable[[Any], str]:
    """What makes the text of a value that PostgreSQL reads back exactly."""
    match type:
        case DataType.STRING:
            return str
        case DataType.BOOL:
            return lambda value: "t" if value else "f"
        case DataType.FLOAT64:
            return lambda value: repr(float(value))
        case DataType.TIMESTAMP:
            return lambda value: instant_from_micros(int(value)).isoformat()
        case _:
            return lambda value: str(int(value))
