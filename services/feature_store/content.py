"""A digest of a table's content that depends on nothing else.

The bytes hashed are, for each column in order: its name, the name of its type, the number of rows, one byte per row
for NULL or not, and its values with zeros where NULL; integers, floats and instants as little-endian bytes, texts as
their lengths and then their UTF-8, lists as their lengths and then their items. Chunking, offsets, the layout of text
(string, large_string, view, dictionary), bits behind NULLs and the bits of a NaN do not matter.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foresight.values import InvalidValue
from services.feature_store.conformance import is_text, one_array


def content_sha256(table: pa.Table) -> str:
    """SHA-256 of a table's content, 64 hex digits. Raises InvalidValue for a type that cannot be carried."""
    digest = hashlib.sha256(b"foresight table 1")
    for name, column in zip(table.column_names, table.columns, strict=True):
        array = one_array(column)
        _text(digest, name)
        _column(digest, array, name)
    return digest.hexdigest()


def check_carried(table: pa.Table) -> None:
    """Raises InvalidValue when a column has a type that the platform does not carry."""
    for field in table.schema:
        _token(field.type, field.name)


def _column(digest: Any, array: pa.Array, name: str) -> None:
    _text(digest, _token(array.type, name))
    digest.update(np.int64(len(array)).astype("<i8").tobytes())
    valid = np.asarray(array.is_valid()).astype(np.uint8)
    digest.update(valid.tobytes())
    type = array.type
    if pa.types.is_null(type):
        return
    if is_text(type):
        # Joined from the values, not from the buffers, so that what lies behind NULLs is left out.
        texts = array.cast(pa.large_string()).fill_null("")
        digest.update(np.asarray(pc.binary_length(texts)).astype("<i8").tobytes())
        digest.update(_joined(texts))
        return
    if _is_list(type):
        present = array.drop_null()
        digest.update(np.asarray(pc.list_value_length(present)).astype("<i8").tobytes())
        _column(digest, present.flatten(), name)
        return
    digest.update(_fixed_width(array))


def _fixed_width(array: pa.Array) -> bytes:
    type = array.type
    if pa.types.is_boolean(type):
        return np.asarray(array.fill_null(False).cast(pa.uint8())).tobytes()
    if pa.types.is_floating(type):
        values = np.array(array.cast(pa.float64()).fill_null(0.0))
        values[np.isnan(values)] = np.nan
        return values.astype("<f8").tobytes()
    if pa.types.is_temporal(type):
        array = array.cast(pa.int32() if type.bit_width == 32 else pa.int64())
    wide = pa.uint64() if pa.types.is_unsigned_integer(array.type) else pa.int64()
    return np.asarray(array.cast(wide).fill_null(0)).astype("<u8" if wide == pa.uint64() else "<i8").tobytes()


def _joined(texts: pa.Array) -> Any:
    """The UTF-8 of all texts, one after the other."""
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return b""
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(data)[int(bounds[0]) : int(bounds[-1])]


def _text(digest: Any, text: str) -> None:
    data = text.encode()
    digest.update(np.int64(len(data)).astype("<i8").tobytes())
    digest.update(data)


def _is_list(type: pa.DataType) -> bool:
    return bool(pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type))


def _token(type: pa.DataType, name: str) -> str:
    if pa.types.is_dictionary(type):
        return _token(type.value_type, name)
    if is_text(type):
        return "text"
    if _is_list(type) and not _is_list(type.value_type):
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
