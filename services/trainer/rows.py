"""Rows as they come from the feature store, made ready for models: typed, with the view's defaults filled in.

Online, a missing feature whose policy is DEFAULT reaches the model as its default; so it does here. A missing one
whose policy is FAIL reaches it as NULL: offline there is no single prediction to fail.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from foresight.values import Column, FeatureView, Field
from foresight.wire import arrow_type, column_from_arrow
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


def with_defaults(table: pa.Table, view: FeatureView) -> pa.Table:
    """The table with the view's defaults in the place of NULL."""
    for source in view.sources:
        for feature in source.features:
            name = source.name_of(feature)
            if feature.default is None or name not in table.column_names:
                continue
            array = table[name]
            if array.null_count:
                value = pa.scalar(feature.default.python(0), array.type)
                filled = pc.if_else(array.is_valid(), array, value)
                table = table.set_column(table.column_names.index(name), name, filled)
    return table


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
