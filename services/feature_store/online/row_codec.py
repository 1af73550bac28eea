"""Rows and keys of a group as bytes, for a key-value store.

A key is the group's id and then, key by key, a tag of the type and the value (texts with their length before them), so
that ('1', '23') and ('12', '3') stay apart. A key that would be longer than KEY_BYTES_MAX is a digest of itself; the
whole key then stands at the end of the row and is compared.

A row is: layout, flags, event time, commit, the number of features, where the texts begin, one bit per feature for
"not NULL", the features of fixed width (texts as their length), the texts, and the whole key if it is digested. All
numbers in rows are little-endian. Features are only ever added, at the end: a row with fewer of them than the group has
reads the defaults of the others, and one with more, written by a process that knows a newer state of the group, is read
without those.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from operator import add
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foresight.tables import arrow_type, column_from_arrow
from foresight.values import Column, DataType, FeatureGroup, Field
from services.feature_store.groups import StoredGroup
from services.feature_store.online.store import FoundRow, FoundRows

# LMDB takes 511 bytes; what is longer than this is digested.
KEY_BYTES_MAX = 480
LAYOUT = 2
_DELETED, _DIGESTED = 1, 2
_GROUP_ID = struct.Struct(">I")
GROUP_BYTES = _GROUP_ID.size
_HEADER = struct.Struct("<BBqQHI")
_SHAPE = struct.Struct("<HI")
_SHAPE_OFFSET = 18
_VERSION = struct.Struct("<qQ")
# Numbers that follow one another lie beside one another, so that they are written in a row.
_INT_KEY = struct.Struct(">cq")
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
_HEAD_DTYPE = np.dtype(
    [
        ("layout", "u1"),
        ("flags", "u1"),
        ("time", "<i8"),
        ("commit", "<u8"),
        ("features", "<u2"),
        ("texts_at", "<u4"),
    ]
)
CODECS_MAX = 4_096


class EncodedRows(NamedTuple):
    """Bytes of rows: of each its whole key, the key under which it is stored, and the row."""

    whole_keys: list[bytes]
    keys: list[bytes]
    rows: list[bytes]


class RowCodec:
    """Encodes and decodes keys and rows of one state of a group version."""

    def __init__(self, stored: StoredGroup) -> None:
        self._prefix = _GROUP_ID.pack(stored.id)
        self._group: FeatureGroup = stored.group
        features = stored.group.features
        self._count = len(features)
        self._count_bytes = _SHAPE.pack(self._count, 0)[:2]
        self._shape = _Shape(features, self._count)
        # Rows with another number of features, by that number.
        self._shapes: dict[int, _Shape] = {}
        parts: list[Any] = [("head", f"V{_HEADER.size}"), ("bitmap", f"V{self._shape.bitmap_bytes}")]
        parts += [
            (f"f{i}", ("<f4", (f.dimension,)) if f.dimension else _DTYPES[_FORMATS[f.type]])
            for i, f in enumerate(features)
        ]
        self._dtype = np.dtype(parts)
        self._defaults = tuple(_default(stored.group, feature) for feature in features)
        key_types = [key.type for key in stored.group.entity_keys]
        self._key_writers = [_KEY_WRITERS[type] for type in key_types]
        self._key_dtype = None if DataType.STRING in key_types else _fixed_key_dtype(key_types)

    # Keys

    def keys(self, columns: tuple[Column, ...]) -> list[bytes | None]:
        """The whole key of each entity, before digesting; None where a part is NULL."""
        prefix = self._prefix
        return [None if entity is None else prefix + entity for entity in self.entities(columns)]

    def entities(self, columns: tuple[Column, ...]) -> list[bytes | None]:
        """The whole keys without the group: the same for all groups that have keys of these types in this order."""
        writers = self._key_writers
        if len(columns) == 1:
            entities: list[bytes | None] = list(map(writers[0], columns[0].values.tolist()))
        else:
            parts = [list(map(w, c.values.tolist())) for w, c in zip(writers, columns, strict=True)]
            entities = list(map(b"".join, zip(*parts, strict=True)))
        for column in columns:
            if column.valid is not None:
                for row in np.flatnonzero(~column.valid):
                    entities[row] = None
        return entities

    def stored_keys(self, entities: Sequence[bytes | None]) -> list[bytes | None]:
        """The keys under which the rows of entities are stored."""
        prefix = self._prefix
        if self._key_dtype is not None:
            return [None if entity is None else prefix + entity for entity in entities]
        return [None if entity is None else stored_key(prefix + entity) for entity in entities]

    def key_columns(self, whole: Sequence[bytes]) -> tuple[Column, ...]:
        """The entities of whole keys, one column per key of the group."""
        values: list[list[Any]] = [[] for _ in self._group.entity_keys]
        for key in whole:
            offset = _GROUP_ID.size
            for taken in values:
                value, offset = _read_key(key, offset)
                taken.append(value)
        fields = zip(self._group.entity_keys, values, strict=True)
        return tuple(Column.build(field.name, field.type, taken) for field, taken in fields)

    # Rows

    def encode(self, rows: pa.RecordBatch) -> EncodedRows:
        """The bytes of rows with keys, features, `event_time`, `commit` and `deleted`."""
        n = rows.num_rows
        key_columns = tuple(column_from_arrow(rows[f.name], f) for f in self._group.entity_keys)
        # Stored rows have no NULL keys.
        whole = self._whole_keys(key_columns)
        fixed, texts = self._fixed_part(rows)
        data, width = fixed.tobytes(), fixed.dtype.itemsize
        encoded = [data[i : i + width] for i in range(0, n * width, width)]
        if texts:
            encoded = [b"".join(parts) for parts in zip(encoded, *texts, strict=True)]
        if self._key_dtype is not None or max(map(len, whole), default=0) <= KEY_BYTES_MAX:
            return EncodedRows(whole, whole, encoded)
        stored = [stored_key(key) for key in whole]
        for i, key in enumerate(whole):
            if stored[i] is not key:
                row = bytearray(encoded[i] + key)
                row[1] |= _DIGESTED
                encoded[i] = bytes(row)
        return EncodedRows(whole, stored, encoded)

    def _whole_keys(self, columns: tuple[Column, ...]) -> list[bytes]:
        if self._key_dtype is None:
            return [key for key in self.keys(columns) if key is not None]
        keys = np.zeros(len(columns[0]), self._key_dtype)
        keys["group"] = np.frombuffer(self._prefix, "V4")
        for i, column in enumerate(columns):
            keys[f"t{i}"] = b"i" if column.type is DataType.INT64 else b"b"
            keys[f"v{i}"] = column.values
        data, width = keys.tobytes(), keys.dtype.itemsize
        return [data[i : i + width] for i in range(0, len(data), width)]

    def _fixed_part(self, rows: pa.RecordBatch) -> tuple[NDArray[Any], list[list[bytes]]]:
        """The structured array of everything of fixed width, and the bytes of each text column."""
        n = rows.num_rows
        fixed = np.zeros(n, self._dtype)
        head = np.zeros(n, _HEAD_DTYPE)
        head["layout"] = LAYOUT
        head["flags"] = np.where(rows["deleted"].to_numpy(zero_copy_only=False), _DELETED, 0)
        head["time"] = np.asarray(rows["event_time"].cast(pa.int64()))
        head["commit"] = np.asarray(rows["commit"])
        head["features"], head["texts_at"] = self._count, self._dtype.itemsize
        fixed["head"] = head.view(f"V{_HEADER.size}")
        bits = np.zeros((n, self._shape.bitmap_bytes * 8), np.uint8)
        texts: list[list[bytes]] = []
        for i, feature in enumerate(self._group.features):
            array = rows[feature.name]
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
        fixed["bitmap"] = packed.view(f"V{self._shape.bitmap_bytes}")[:, 0]
        return fixed, texts

    def decode_all(self, rows: Sequence[bytes | None], entities: Sequence[bytes | None]) -> FoundRows:
        """The rows of stored bytes, one per entity."""
        if all(rows):
            found = self._decode_whole(rows)
            if found is not None:
                return found
        prefix = self._prefix
        pairs = zip(rows, entities, strict=True)
        decoded = [None if row is None or e is None else self.decode(row, prefix + e) for row, e in pairs]
        return FoundRows.of(decoded, self._count)

    def _decode_whole(self, rows: Sequence[Any]) -> FoundRows | None:
        """Rows with all features, neither deleted nor digested, column by column; None if there are others."""
        shape, count = self._shape, self._count_bytes
        for row in rows:
            if row[_SHAPE_OFFSET : _SHAPE_OFFSET + 2] != count:
                return None
        _, flags, times, commits, _, texts_at, bitmaps, *values = map(
            list, zip(*map(shape.unpack_from, rows), strict=True)
        )
        if any(flags):
            return None
        if not shape.plain:
            for i in shape.strings:
                ends = list(map(add, texts_at, values[i]))
                values[i] = [row[start:end].decode() for row, start, end in zip(rows, texts_at, ends, strict=True)]
                texts_at = ends
            for i, vector in shape.vectors:
                values[i] = list(map(list, map(vector.unpack, values[i])))
        whole = bitmaps.count(shape.all_present) == len(bitmaps)
        if not whole:
            for i, bitmap in enumerate(bitmaps):
                present = int.from_bytes(bitmap, "little")
                if present != shape.all_valid:
                    for position, column in enumerate(values):
                        if not present >> position & 1:
                            column[i] = None
        return FoundRows(times, commits, values, whole=whole)

    def decode(self, row: bytes, whole_key: bytes) -> FoundRow | None:
        """A row of stored bytes; None when they are of another key with the same digest."""
        whole = row[_SHAPE_OFFSET : _SHAPE_OFFSET + 2] == self._count_bytes
        shape = self._shape if whole else self._shape_of(row)
        _, flags, time, commit, _, texts_at, bitmap, *values = shape.unpack_from(row)
        if flags & _DIGESTED and not row.endswith(whole_key):
            return None
        if not shape.plain:
            offset = texts_at
            for i in shape.strings:
                end = offset + values[i]
                values[i] = row[offset:end].decode()
                offset = end
            for i, vector in shape.vectors:
                values[i] = list(vector.unpack(values[i]))
        present = int.from_bytes(bitmap, "little")
        if present & shape.all_valid != shape.all_valid:
            values = [v if present >> i & 1 else None for i, v in enumerate(values)]
        if not whole:
            values += self._defaults[len(values) :]
        return FoundRow(time, commit, bool(flags & _DELETED), tuple(values))

    def _shape_of(self, row: bytes) -> _Shape:
        count, _ = _SHAPE.unpack_from(row, _SHAPE_OFFSET)
        shape = self._shapes.get(count)
        if shape is None:
            shape = self._shapes[count] = _Shape(self._group.features, count)
        return shape


class _Shape:
    """How rows with `count` features are read by a group that knows of `features`."""

    def __init__(self, features: Sequence[Field], count: int) -> None:
        known = features[:count]
        self.bitmap_bytes = (count + 7) // 8
        self.all_valid = (1 << len(known)) - 1
        formats = [_FORMATS.get(f.type) or f"{4 * f.dimension}s" for f in known]
        row = struct.Struct(f"<BBqQHI{self.bitmap_bytes}s{''.join(formats)}")
        self.unpack_from = row.unpack_from
        self.all_present = self.all_valid.to_bytes(self.bitmap_bytes, "little")
        self.plain = all(f.type not in (DataType.STRING, DataType.FLOAT_VECTOR) for f in known)
        self.strings = [i for i, f in enumerate(known) if f.type is DataType.STRING]
        self.vectors = [(i, struct.Struct(f"<{f.dimension}f")) for i, f in enumerate(known) if f.dimension]


class RowCodecs:
    """The codecs of groups, each made once; beyond CODECS_MAX they start anew."""

    def __init__(self) -> None:
        # By the group's id: the group as it was asked for last, and its codec.
        self._last: dict[int, tuple[FeatureGroup, RowCodec]] = {}
        # The features of a group version only grow, so their number names its state.
        self._codecs: dict[tuple[int, int], RowCodec] = {}

    def of(self, stored: StoredGroup) -> RowCodec:
        """The codec of a group."""
        last = self._last.get(stored.id)
        if last is not None and last[0] is stored.group:
            return last[1]
        if len(self._codecs) >= CODECS_MAX:
            self._codecs.clear()
            self._last.clear()
        state = stored.id, len(stored.group.features)
        codec = self._codecs.get(state)
        if codec is None:
            codec = self._codecs[state] = RowCodec(stored)
        self._last[stored.id] = stored.group, codec
        return codec


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


def version_of(row: bytes) -> tuple[int, int]:
    """(event time, commit) of stored bytes: the greater one is the later row."""
    time, commit = _VERSION.unpack_from(row, _VERSION_OFFSET)
    return time, commit


def latest_per_key(keys: Sequence[bytes], rows: pa.RecordBatch) -> dict[bytes, int]:
    """Position of the latest row of each key."""
    latest = dict(zip(keys, range(len(keys)), strict=True))
    if len(latest) < len(keys):
        order: list[int] = np.lexsort((rows["commit"], rows["event_time"].cast(pa.int64()))).tolist()
        # The last one of a key stays.
        latest = {keys[i]: i for i in order}
    return latest


def _default(group: FeatureGroup, feature: Field) -> Any:
    """What rows read that were written before the group had the feature."""
    default = group.defaults.get(feature.name)
    if default is None or not default.is_valid(0):
        return None
    return default.values[0] if feature.type is DataType.STRING else default.values[0].tolist()


def _fixed_key_dtype(types: Sequence[DataType]) -> np.dtype[Any]:
    parts: list[Any] = [("group", "V4")]
    for i, type in enumerate(types):
        parts += [(f"t{i}", "S1"), (f"v{i}", ">i8" if type is DataType.INT64 else "?")]
    return np.dtype(parts)


def _int_key(value: int) -> bytes:
    return _INT_KEY.pack(b"i", value)


def _bool_key(value: bool) -> bytes:
    return b"b\x01" if value else b"b\x00"


def _text_key(value: str) -> bytes:
    data = value.encode()
    return _TEXT_KEY.pack(b"s", len(data)) + data


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


_KEY_WRITERS: dict[DataType, Any] = {
    DataType.INT64: _int_key,
    DataType.BOOL: _bool_key,
    DataType.STRING: _text_key,
}
