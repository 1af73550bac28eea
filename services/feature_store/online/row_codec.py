"""Rows of a group as bytes, for a key-value store. Of keys see `key_codec.py`.

A row is: layout, flags, event time, commit, the number of features, where the texts begin, one bit per feature for
"not NULL", the features of fixed width (texts as their length), the texts, and the whole key if it is digested. All
numbers in rows are little-endian. Features are only ever added, at the end: a row with fewer of them than the group has
reads the defaults of the others, and one with more, written by a process that knows a newer state of the group, is read
without those.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from operator import add
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foresight.tables import arrow_type, column_from_arrow
from foresight.values import DataType, FeatureGroup, Field
from services.feature_store.groups import StoredGroup
from services.feature_store.online.key_codec import KeyCodec, stored_key
from services.feature_store.online.store import FoundRow, FoundRows

LAYOUT = 2
_DELETED, _DIGESTED = 1, 2
_HEADER = struct.Struct("<BBqQHI")
_SHAPE = struct.Struct("<HI")
_SHAPE_OFFSET = 18
_VERSION = struct.Struct("<qQ")
_VERSION_OFFSET = 2
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
    """Encodes and decodes rows of one state of a group version; `key` does so for its keys."""

    def __init__(self, stored: StoredGroup) -> None:
        self.key = KeyCodec(stored)
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

    def encode(self, rows: pa.RecordBatch) -> EncodedRows:
        """The bytes of rows with keys, features, `event_time`, `commit` and `deleted`."""
        n = rows.num_rows
        key_columns = tuple(column_from_arrow(rows[f.name], f) for f in self._group.entity_keys)
        # Stored rows have no NULL keys.
        whole = self.key.whole_keys(key_columns)
        fixed, texts = self._fixed_part(rows)
        data, width = fixed.tobytes(), fixed.dtype.itemsize
        encoded = [data[i : i + width] for i in range(0, n * width, width)]
        if texts:
            encoded = [b"".join(parts) for parts in zip(encoded, *texts, strict=True)]
        if not self.key.may_be_digested(whole):
            return EncodedRows(whole, whole, encoded)
        stored = [stored_key(key) for key in whole]
        for i, key in enumerate(whole):
            if stored[i] is not key:
                row = bytearray(encoded[i] + key)
                row[1] |= _DIGESTED
                encoded[i] = bytes(row)
        return EncodedRows(whole, stored, encoded)

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
        prefix = self.key.prefix
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
