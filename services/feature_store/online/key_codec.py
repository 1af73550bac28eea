"""Keys of entities as bytes, for a key-value store.

A key is the group's id and then, key by key, a tag of the type and the value (texts with their length before them), so
that ('1', '23') and ('12', '3') stay apart. A key that would be longer than KEY_BYTES_MAX is a digest of itself; the
whole key then stands at the end of the row and is compared.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foresight.values import Column, DataType
from services.feature_store.groups import StoredGroup

# LMDB takes 511 bytes; what is longer than this is digested.
KEY_BYTES_MAX = 480
# Array operations pay for more keys than this.
FEW_KEYS_MAX = 16
_GROUP_ID = struct.Struct(">I")
GROUP_BYTES = _GROUP_ID.size
# Numbers that follow one another lie beside one another, so that they are written in a row.
_INT_KEY = struct.Struct(">cq")
_INT_KEYS = np.dtype([("tag", "S1"), ("value", ">i8")])
_TEXT_KEY = struct.Struct("<cH")
# What stands before short texts, by their length.
_TEXT_HEADS = [_TEXT_KEY.pack(b"s", length) for length in range(256)]
_DIGEST_TAG = b"\xff"


class KeyCodec:
    """Encodes and decodes keys of one group version."""

    def __init__(self, stored: StoredGroup) -> None:
        self.prefix = group_prefix(stored)
        self._fields = stored.group.entity_keys
        types = [key.type for key in self._fields]
        # None: keys of different lengths.
        self._fixed = None if DataType.STRING in types else _fixed_key_dtype(types)

    def keys(self, columns: tuple[Column, ...]) -> list[bytes | None]:
        """The whole key of each entity, before digesting; None where a part is NULL."""
        prefix = self.prefix
        return [None if entity is None else prefix + entity for entity in self.entities(columns)]

    def entities(self, columns: tuple[Column, ...]) -> list[bytes | None]:
        """The whole keys without the group: the same for all groups that have keys of these types in this order."""
        parts = [_ENCODINGS[column.type](column.values) for column in columns]
        entities: list[bytes | None] = list(map(b"".join, zip(*parts, strict=True))) if len(parts) > 1 else [*parts[0]]
        for column in columns:
            if column.valid is not None:
                for row in np.flatnonzero(~column.valid):
                    entities[row] = None
        return entities

    def stored_keys(self, entities: Sequence[bytes | None]) -> list[bytes | None]:
        """The keys under which the rows of entities are stored."""
        prefix = self.prefix
        if not all(entities):
            there = iter(self.stored_keys([entity for entity in entities if entity is not None]))
            return [None if entity is None else next(there) for entity in entities]
        stored: list[Any] = [prefix + entity for entity in entities if entity is not None]
        return list(map(stored_key, stored)) if self.may_be_digested(stored) else stored

    def columns(self, whole: Sequence[bytes]) -> tuple[Column, ...]:
        """The entities of whole keys, one column per key of the group."""
        values: list[list[Any]] = [[] for _ in self._fields]
        for key in whole:
            offset = _GROUP_ID.size
            for taken in values:
                value, offset = _read_key(key, offset)
                taken.append(value)
        fields = zip(self._fields, values, strict=True)
        return tuple(Column.build(field.name, field.type, taken) for field, taken in fields)

    def whole_keys(self, columns: tuple[Column, ...]) -> list[bytes]:
        """The whole keys of rows, which have no NULL in them."""
        if self._fixed is None:
            return [key for key in self.keys(columns) if key is not None]
        keys = np.zeros(len(columns[0]), self._fixed)
        keys["group"] = np.frombuffer(self.prefix, "V4")
        for i, column in enumerate(columns):
            keys[f"t{i}"] = b"i" if column.type is DataType.INT64 else b"b"
            keys[f"v{i}"] = column.values
        data, width = keys.tobytes(), keys.dtype.itemsize
        return [data[i : i + width] for i in range(0, len(data), width)]

    def may_be_digested(self, whole: Sequence[bytes]) -> bool:
        """Whether some of the whole keys are stored as digests."""
        return self._fixed is None and max(map(len, whole), default=0) > KEY_BYTES_MAX


def stored_key(whole: bytes) -> bytes:
    """The key under which a row is stored: the whole key, or the group's id and a digest of it."""
    if len(whole) <= KEY_BYTES_MAX:
        return whole
    return whole[: _GROUP_ID.size] + _DIGEST_TAG + hashlib.blake2b(whole, digest_size=32).digest()


def whole_key(stored: bytes, row: bytes) -> bytes:
    """The whole key of a stored key and its row."""
    if stored[_GROUP_ID.size : _GROUP_ID.size + 1] != _DIGEST_TAG:
        return stored
    # The digest stands for a key that is longer than what it would have been stored under; it ends the row.
    for start in range(len(row) - KEY_BYTES_MAX - 1, -1, -1):
        if row.startswith(stored[: _GROUP_ID.size], start) and stored_key(row[start:]) == stored:
            return row[start:]
    raise ValueError("a row does not have the key under which it is stored")


def group_prefix(stored: StoredGroup) -> bytes:
    """What all stored keys of a group begin with."""
    return _GROUP_ID.pack(stored.id)


def _fixed_key_dtype(types: Sequence[DataType]) -> np.dtype[Any]:
    parts: list[Any] = [("group", "V4")]
    for i, type in enumerate(types):
        parts += [(f"t{i}", "S1"), (f"v{i}", ">i8" if type is DataType.INT64 else "?")]
    return np.dtype(parts)


def _int_keys(values: NDArray[Any]) -> list[bytes]:
    if len(values) <= FEW_KEYS_MAX:
        return [_INT_KEY.pack(b"i", value) for value in values.tolist()]
    keys = np.empty(len(values), _INT_KEYS)
    keys["tag"], keys["value"] = b"i", values
    data, width = keys.tobytes(), keys.dtype.itemsize
    return [data[i : i + width] for i in range(0, len(data), width)]


def _bool_keys(values: NDArray[Any]) -> list[bytes]:
    return [b"b\x01" if value else b"b\x00" for value in values.tolist()]


def _text_keys(values: NDArray[Any]) -> list[bytes]:
    texts = values.tolist()
    # Texts have no NUL, so that all of them can be encoded at once.
    encoded = "\0".join(texts).encode().split(b"\0")
    if len(encoded) != len(texts):
        encoded = [text.encode() for text in texts]
    if max(map(len, encoded)) < len(_TEXT_HEADS):
        return [_TEXT_HEADS[len(text)] + text for text in encoded]
    return [_TEXT_KEY.pack(b"s", len(text)) + text for text in encoded]


def _read_key(key: bytes, offset: int) -> tuple[Any, int]:
    """The part of a whole key that begins at an offset, and where the next one begins."""
    match key[offset : offset + 1]:
        case b"i":
            return _INT_KEY.unpack_from(key, offset)[1], offset + _INT_KEY.size
        case b"b":
            return key[offset + 1] == 1, offset + 2
    start = offset + _TEXT_KEY.size
    end = start + _TEXT_KEY.unpack_from(key, offset)[1]
    return key[start:end].decode(), end


_ENCODINGS: dict[DataType, Callable[[NDArray[Any]], list[bytes]]] = {
    DataType.INT64: _int_keys,
    DataType.BOOL: _bool_keys,
    DataType.STRING: _text_keys,
}
