"""Columns as Parquet keeps them: every type that tables here carry comes back with the type and the bits it had.

Parquet has no seconds, no dates in milliseconds and no lists of size zero, and its texts need no dictionary of ours:
such columns are stored under a type that it keeps exactly, and the file says which type they have. Layouts of text
and the names of list items may change, which nothing that reads a table sees.
"""

from __future__ import annotations

import base64
from collections.abc import Callable

import pyarrow as pa

SCHEMA_KEY = b"foresight.schema"


class StoredColumns:
    """The types of a table, and those it is stored with."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = pa.schema([pa.field(field.name, _plain(field.type)) for field in schema])
        types = [_stored(field.type) for field in self.schema]
        saved = base64.b64encode(self.schema.serialize().to_pybytes())
        self.stored = pa.schema(
            [pa.field(name, type) for name, type in zip(self.schema.names, types, strict=True)], {SCHEMA_KEY: saved}
        )

    @classmethod
    def of_file(cls, metadata: dict[bytes, bytes] | None) -> StoredColumns:
        """What the metadata of a file say. Raises ValueError or pa.ArrowException when they say nothing."""
        saved = base64.b64decode((metadata or {}).get(SCHEMA_KEY, b""), validate=True)
        if not saved:
            raise ValueError("the file does not say which types it holds")
        return cls(pa.ipc.read_schema(pa.BufferReader(saved)))

    def to_stored(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows under the stored types."""
        return _cast(rows, self.stored)

    def from_stored(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows under their own types. Raises pa.ArrowException for rows of other types."""
        return _cast(rows, self.schema)


def _cast(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    if rows.num_columns != len(schema):
        raise pa.ArrowInvalid("the number of columns differs")
    columns = [_as(column, field.type) for column, field in zip(rows.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _as(array: pa.Array, type: pa.DataType) -> pa.Array:
    if array.type == type:
        return array
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array if array.type == type else array.cast(type)


def _plain(type: pa.DataType) -> pa.DataType:
    """The type without dictionaries."""
    return _of_items(type, _plain) if not pa.types.is_dictionary(type) else _plain(type.value_type)


def _stored(type: pa.DataType) -> pa.DataType:
    if pa.types.is_date64(type) or (pa.types.is_timestamp(type) and type.unit == "s"):
        return pa.int64()
    if pa.types.is_time32(type) and type.unit == "s":
        return pa.int32()
    if pa.types.is_fixed_size_list(type) and not type.list_size:
        return pa.list_(_stored(type.value_type))
    return _of_items(type, _stored)


def _of_items(type: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The list type with the changed type of its items; other types as they are."""
    if pa.types.is_fixed_size_list(type):
        return pa.list_(change(type.value_type), type.list_size)
    if pa.types.is_large_list(type):
        return pa.large_list(change(type.value_type))
    return pa.list_(change(type.value_type)) if pa.types.is_list(type) else type
