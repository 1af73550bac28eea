"""A digest of a table's content that depends on nothing else, taken batch by batch.

The digest is the SHA-256 of: a mark of this format, the number of rows, and for each column in order its name, the
name of its type, and the SHA-256 of each of its parts. The parts of a column are one byte per row for NULL or not; its
values with zeros where NULL (integers, floats and instants as little-endian bytes); for texts their lengths and their
UTF-8; for lists their lengths and the parts of their items. Batches, chunking, offsets, the layout of text (string,
large_string, view, dictionary), bits behind NULLs and the bits of a NaN do not matter.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foresight.values import InvalidValue
from services.feature_store.tables.conformance import is_text, one_array


class ContentDigest:
    """The digest of rows that come in batches, all with one schema. Raises InvalidValue for types not carried."""

    def __init__(self, schema: pa.Schema) -> None:
        self._columns = [(field.name, _Column(field.type, field.name)) for field in schema]
        self._rows = 0

    def update(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Takes the next rows."""
        self._rows += rows.num_rows
        for (_, digest), column in zip(self._columns, rows.columns, strict=True):
            digest.update(one_array(column) if isinstance(column, pa.ChunkedArray) else column)

    def hexdigest(self) -> str:
        """64 hex digits for the rows so far."""
        digest = hashlib.sha256(b"foresight table 2" + _length(self._rows))
        for name, column in self._columns:
            for text in (name.encode(), column.token.encode()):
                digest.update(_length(len(text)) + text)
            for part in column.parts():
                digest.update(part)
        return digest.hexdigest()


def content_sha256(table: pa.Table) -> str:
    """SHA-256 of a table's content, 64 hex digits. Raises InvalidValue for a type that cannot be carried."""
    digest = ContentDigest(table.schema)
    digest.update(table)
    return digest.hexdigest()


def check_carried(schema: pa.Schema) -> None:
    """Raises InvalidValue when a column has a type that the platform does not carry."""
    for field in schema:
        _token(field.type, field.name)


class _Column:
    """The parts of one column."""

    def __init__(self, type: pa.DataType, name: str) -> None:
        self.token = _token(type, name)
        self._type = _plain(type)
        self._validity = hashlib.sha256()
        self._lengths = hashlib.sha256()
        self._values = hashlib.sha256()
        self._items = _Column(self._type.value_type, name) if _is_list(self._type) else None

    def update(self, array: pa.Array) -> None:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        valid = np.asarray(array.is_valid()).astype(np.uint8)
        self._validity.update(valid.data)
        type = array.type
        if pa.types.is_null(type):
            return
        if is_text(type):
            # Joined from the values, not from the buffers, so that what lies behind NULLs is left out.
            texts = array.cast(pa.large_string()).fill_null("")
            self._lengths.update(np.asarray(pc.binary_length(texts)).astype("<i8").data)
            self._values.update(_joined(texts))
        elif self._items is not None:
            present = array.drop_null()
            self._lengths.update(np.asarray(pc.list_value_length(present)).astype("<i8").data)
            self._items.update(present.flatten())
        else:
            self._values.update(_fixed_width(array).data)

    def parts(self) -> list[bytes]:
        own = [part.digest() for part in (self._validity, self._lengths, self._values)]
        return own + (self._items.parts() if self._items is not None else [])


def _fixed_width(array: pa.Array) -> NDArray[Any]:
    type = array.type
    if pa.types.is_boolean(type):
        return np.asarray(array.fill_null(False).cast(pa.uint8()))
    if pa.types.is_floating(type):
        values = np.array(array.cast(pa.float64()).fill_null(0.0))
        values[np.isnan(values)] = np.nan
        return values.astype("<f8")
    if pa.types.is_temporal(type):
        array = array.cast(pa.int32() if type.bit_width == 32 else pa.int64())
    wide = pa.uint64() if pa.types.is_unsigned_integer(array.type) else pa.int64()
    return np.asarray(array.cast(wide).fill_null(0)).astype("<u8" if wide == pa.uint64() else "<i8")


def _joined(texts: pa.Array) -> Any:
    """The UTF-8 of all texts, one after the other."""
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return b""
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(data)[int(bounds[0]) : int(bounds[-1])]


def _length(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _is_list(type: pa.DataType) -> bool:
    return bool(pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type))


def _is_item(type: pa.DataType) -> bool:
    """Whether lists of them are carried. Arrow cannot take rows of lists of text views, and ends the process over lists
    of nothing but NULL in Parquet."""
    return not (_is_list(type) or pa.types.is_string_view(type) or pa.types.is_null(type))


def _plain(type: pa.DataType) -> pa.DataType:
    return type.value_type if pa.types.is_dictionary(type) else type


def _token(type: pa.DataType, name: str) -> str:
    if pa.types.is_dictionary(type) and not _is_list(type.value_type):
        type = type.value_type
    if is_text(type):
        return "text"
    if _is_list(type) and _is_item(_plain(type.value_type)):
        return f"list of {_token(type.value_type, name)}"
    if (
        pa.types.is_null(type)
        or pa.types.is_boolean(type)
        or pa.types.is_integer(type)
        or pa.types.is_floating(type)
        or pa.types.is_timestamp(type)
        or pa.types.is_date(type)
        or pa.types.is_time(type)
        or pa.types.is_duration(type)
    ):
        return str(type)
    raise InvalidValue(f"arrow.{name[:63]}", f"has the type {str(type)[:60]}, which tables here do not carry")
