"""Rows as they come from the feature store, made ready for models: only what is needed, and of the right types.

The store has applied the view's policies: a missing feature is its default, or NULL. One whose policy is FAIL is NULL,
too: offline there is no single prediction to fail.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from foresight.tables import arrow_type, column_from_arrow
from foresight.values import Column, Field
from services.runtime.errors import FailedPrecondition


def select(table: pa.Table, fields: Iterable[Field], of: str) -> pa.Table:
    """The table's columns of these fields, with exactly their Arrow types.

    Raises FailedPrecondition, naming the first, for one that is missing or of another type; `of` names the table.
    """
    arrays: dict[str, pa.ChunkedArray] = {}
    for field in fields:
        if field.name not in table.column_names:
            raise FailedPrecondition(f"{of} has no {field.name}", field=field.name)
        array, wanted = table[field.name], arrow_type(field)
        if array.type != wanted:
            if not _is_text(array.type) or not pa.types.is_string(wanted):
                raise FailedPrecondition(f"{field.name} of {of} is not {field.type.value}", field=field.name)
            array = array.cast(wanted)
        arrays[field.name] = array
    return pa.table(arrays)


def labelled(table: pa.Table, label: Field) -> pa.Table:
    """The rows whose label is known."""
    column = table[label.name]
    return table.filter(column.is_valid()) if column.null_count else table


def columns(table: pa.Table, fields: Iterable[Field]) -> dict[str, Column]:
    """Columns by name of a table that `select` made."""
    return {f.name: column_from_arrow(table[f.name], f) for f in fields}


def _is_text(type: pa.DataType) -> bool:
    if pa.types.is_dictionary(type):
        type = type.value_type
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))
