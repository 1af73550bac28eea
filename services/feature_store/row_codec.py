"""Rows and keys of a group as bytes, for a key-value store.

A key is the group's id and then, key by key, a tag of the type and the value (texts with their length before them), so
that ('1', '23') and ('12', '3') stay apart. A key that would be longer than KEY_BYTES_MAX is a digest of itself; the
whole key then stands at the end of the row and is compared.

A row is: layout, flags, event time, commit, one bit per feature for "not NULL", the features of fixed width (texts as
their length), the texts, and the whole key if it is digested. All numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foresight.tables import arrow_type, column_from_arrow
from foresight.values import Column, DataType, FeatureGroup
from services.feature_store.groups import StoredGroup
from services.feature_store.online import FoundRow

# LMDB takes 511 bytes; what is longer than this is digested.
KEY_BYTES_MAX = 480
LAYOUT = 1
_DELETED, _DIGESTED = 1, 2
_GROUP_ID = struct.Struct(">I")
_HEADER = struct.Struct("<BBqQ")
_VERSION = struct.Struct("<qQ")
_INT_KEY = struct.Struct("<cq")
_TEXT_KEY = struct.Struct("<cH")
_VERSION_OFFSET = 2
_DIGEST_TAG = b"\xff"
_FORMATS = {
    DataType.INT64: "q",
    DataType.FLOAT64: "d",
    DataType.BOOL: "?",
    DataType.STRING: "I",
    DataType.TIMESTAMP: "q",
}
_DTYPES = {"q": "<i8", "d": "<f8", "?": "?", "I": "<u4"}


class RowCodec:
    """Encodes and decodes keys and rows of one group version."""

    def __init__(self, stored: StoredGroup) -> None:
        self._prefix = _GROUP_ID.pack(stored.id)
        self._group: FeatureGroup = stored.group
        features = stored.group.features
        self._bitmap_bytes = (len(features) + 7) // 8
        self._all_valid = (1 << len(features)) - 1
        formats = [_FORMATS.get(f.type) or f"{4 * f.dimension}s" for f in features]
        self._row = struct.Struct(f"<BBqQ{self._bitmap_bytes}s{''.join(formats)}")
        self._plain = all(f.type not in (DataType.STRING, DataType.FLOAT_VECTOR) for f in features)
        self._strings = [i for i, f in enumerate(features) if f.type is DataType.STRING]
        self._vectors = [(i, struct.Struct(f"<{f.dimension}f")) for i, f in enumerate(features) if f.dimension]
        parts: list[Any] = [("head", f"V{_HEADER.size}"), ("bitmap", f"V{self._bitmap_bytes}")]
        parts += [
            (f"f{i}", _DTYPES[fmt] if f.dimension == 0 else ("<f4", (f.dimension,)))
            for i, (f, fmt) in enumerate(zip(features, formats, strict=True))
        ]
        self._dtype = np.dtype(parts)
        self._key_writers = [_KEY_WRITERS[key.type] for key in stored.group.entity_keys]

    # Keys

    def keys(self, columns: tuple[Column, ...]) -> list[bytes | None]:
        """The whole key of each entity, before digesting; None where a part is NULL."""
        prefix, writers = self._prefix, self._key_writers
        if len(columns) == 1:
            write = writers[0]
            keys: list[bytes | None] = [prefix + write(v) for v in columns[0].values.tolist()]
        else:
            parts = [list(map(w, c.values.tolist())) for w, c in zip(writers, columns, strict=True)]
            keys = [prefix + b"".join(part) for part in zip(*parts, strict=True)]
        for column in columns:
            if column.valid is not None:
                for row in np.flatnonzero(~column.valid):
                    keys[row] = None
        return keys

    # Rows

    def encode(self, rows: pa.Table) -> tuple[list[bytes], list[bytes]]:
        """Stored keys and rows of a table with keys, features, `event_time`, `commit` and `deleted`."""
        n = rows.num_rows
        key_columns = tuple(column_from_arrow(rows[f.name], f) for f in self._group.entity_keys)
        # Stored rows have no NULL keys.
        whole: list[bytes] = [key for key in self.keys(key_columns) if key is not None]
        assert len(whole) == n
        fixed, texts = self._fixed_part(rows)
        data, width = fixed.tobytes(), fixed.dtype.itemsize
        encoded = [data[i : i + width] for i in range(0, n * width, width)]
        if texts:
            encoded = [b"".join(parts) for parts in zip(encoded, *texts, strict=True)]
        stored = whole
        if max(map(len, whole), default=0) > KEY_BYTES_MAX:
            stored = [stored_key(key) for key in whole]
            for i, key in enumerate(whole):
                if stored[i] is not key:
                    row = bytearray(encoded[i] + key)
                    row[1] |= _DIGESTED
                    encoded[i] = bytes(row)
        return stored, encoded

    def _fixed_part(self, rows: pa.Table) -> tuple[NDArray[Any], list[list[bytes]]]:
        """The structured array of everything of fixed width, and the bytes of each text column."""
        n = rows.num_rows
        fixed = np.zeros(n, self._dtype)
        head = np.zeros(n, np.dtype([("layout", "u1"), ("flags", "u1"), ("time", "<i8"), ("commit", "<u8")]))
        head["layout"] = LAYOUT
        head["flags"] = np.where(_flat(rows["deleted"]).to_numpy(zero_copy_only=False), _DELETED, 0)
        head["time"] = np.asarray(_flat(rows["event_time"]).cast(pa.int64()))
        head["commit"] = np.asarray(_flat(rows["commit"]))
        fixed["head"] = head.view(f"V{_HEADER.size}")
        bits = np.zeros((n, self._bitmap_bytes * 8), np.uint8)
        texts: list[list[bytes]] = []
        for i, feature in enumerate(self._group.features):
            array = _flat(rows[feature.name])
            bits[:, i] = np.asarray(array.is_valid())
            if feature.type is DataType.STRING:
                filled = array.fill_null("")
                fixed[f"f{i}"] = np.asarray(pc.binary_length(filled))
                texts.append(filled.cast(pa.binary()).to_pylist())
            else:
                if array.type != arrow_type(feature):
                    array = array.cast(arrow_type(feature))
                fixed[f"f{i}"] = column_from_arrow(array, feature).values
        packed = np.packbits(bits, axis=1, bitorder="little")
        fixed["bitmap"] = packed.view(f"V{self._bitmap_bytes}")[:, 0]
        return fixed, texts

    def decode(self, row: bytes, whole_key: bytes) -> FoundRow | None:
        """The row of stored bytes; None when they are of another key with the same digest."""
        _, flags, time, commit, bitmap, *values = self._row.unpack_from(row)
        if flags & _DIGESTED and not row.endswith(whole_key):
            return None
        if not self._plain:
            offset = self._row.size
            for i in self._strings:
                end = offset + values[i]
                values[i] = row[offset:end].decode()
                offset = end
            for i, vector in self._vectors:
                values[i] = list(vector.unpack(values[i]))
        present = int.from_bytes(bitmap, "little")
        if present != self._all_valid:
            values = [v if present >> i & 1 else None for i, v in enumerate(values)]
        return FoundRow(time, commit, bool(flags & _DELETED), tuple(values))


def stored_key(whole: bytes) -> bytes:
    """The key under which a row is stored: the whole key, or the group's id and a digest of it."""
    if len(whole) <= KEY_BYTES_MAX:
        return whole
    return whole[: _GROUP_ID.size] + _DIGEST_TAG + hashlib.blake2b(whole, digest_size=32).digest()


def version_of(row: bytes) -> tuple[int, int]:
    """(event time, commit) of stored bytes: the greater one is the later row."""
    time, commit = _VERSION.unpack_from(row, _VERSION_OFFSET)
    return time, commit


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _int_key(value: int) -> bytes:
    return _INT_KEY.pack(b"i", value)


def _bool_key(value: bool) -> bytes:
    return b"b\x01" if value else b"b\x00"


def _text_key(value: str) -> bytes:
    data = value.encode()
    return _TEXT_KEY.pack(b"s", len(data)) + data


_KEY_WRITERS: dict[DataType, Any] = {
    DataType.INT64: _int_key,
    DataType.BOOL: _bool_key,
    DataType.STRING: _text_key,
}
