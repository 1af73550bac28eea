"""Rows of a group as bytes, for a key-value store. Of keys see `key_codec.py`.

A row is: layout, flags, event time, commit, the number of features, where the texts begin, one bit per feature for
"not NULL", the features of fixed width (texts as their length), the texts, and the whole key if it is digested. All
numbers in rows are little-endian. Features are only ever added, at the end: a row with fewer of them than the group has
reads the defaults of the others, and one with more, written by a process that knows a newer state of the group, is read
without those.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foresight.tables import arrow_type, column_from_arrow
from foresight.values import Column, DataType, FeatureGroup, Field
from services.feature_store.groups import StoredGroup
from services.feature_store.online.key_codec import KeyCodec, stored_key
from services.feature_store.online.store import FoundColumn, FoundRows

LAYOUT = 2
_DELETED, _DIGESTED = 1, 2
# Never stored: stands for an entity without a row.
_ABSENT = 4
_FLAGS_OFFSET = 1
_HEADER = struct.Struct("<BBqQHI")
_SHAPE = struct.Struct("<HI")
_SHAPE_OFFSET = 18
_VERSION = struct.Struct("<qQ")
_VERSION_OFFSET = 2
_LENGTH = struct.Struct("<I")
_DTYPES = {
    DataType.INT64: "<i8",
    DataType.FLOAT64: "<f8",
    DataType.BOOL: "?",
    DataType.STRING: "<u4",
    DataType.TIMESTAMP: "<i8",
}
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
        self._layout = layout = _Layout(features)
        # By the number of features that rows of another state have.
        self._added: dict[int, _Added] = {}
        parts: list[Any] = [("head", f"V{_HEADER.size}"), ("bitmap", f"V{layout.bitmap_bytes}")]
        self._dtype = np.dtype([*parts, *zip(layout.names, map(_format, features), strict=True)])
        head = _HEADER.pack(LAYOUT, _ABSENT, 0, 0, self._count, layout.width)
        self._absent = head + bytes(layout.width - len(head))

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
                row[_FLAGS_OFFSET] |= _DIGESTED
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
        bits = np.zeros((n, self._layout.bitmap_bytes * 8), np.uint8)
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
        fixed["bitmap"] = packed.view(f"V{self._layout.bitmap_bytes}")[:, 0]
        return fixed, texts

    def decode_all(self, rows: Sequence[bytes | None], entities: Sequence[bytes | None]) -> FoundRows:
        """The rows of stored bytes, one per entity."""
        stored: list[Any] = list(rows) if all(rows) else [row or self._absent for row in rows]
        found = self._found(stored)
        if found is None:
            found = self._found([self._conformed(*pair) for pair in zip(stored, entities, strict=True)])
            assert found is not None
        return found

    def is_of(self, row: bytes, whole_key: bytes) -> bool:
        """Whether a row is that of a key; the other has the same digest."""
        return not row[_FLAGS_OFFSET] & _DIGESTED or row.endswith(whole_key)

    def _found(self, rows: Sequence[bytes]) -> FoundRows | None:
        """Rows that have this state's features, and no key at their end; None if there are others."""
        layout = self._layout
        width = layout.width
        fixed = b"".join([row[:width] for row in rows] if layout.texts else rows)
        if len(fixed) != len(rows) * width:
            return None
        records: NDArray[Any] = np.ndarray(len(rows), layout.dtype, fixed)
        flags = records["flags"]
        marked = bool(flags.any())
        # A row's header says how long it is, so that each row begins where the one before it says that it ends.
        whole = bool((records["shape"] == layout.shape).all())
        if (not whole and (records["features"] != self._count).any()) or (marked and (flags & _DIGESTED).any()):
            return None
        gone = (flags & (_DELETED | _ABSENT)).astype(np.bool_) if marked else None
        columns = _RowColumns(layout, records, rows, whole)
        return FoundRows(records["time"], records["commit"], columns, gone=gone, whole=whole)

    def _conformed(self, row: bytes, entity: bytes | None) -> bytes:
        """A row as if it had been written in this state of the group, without a key at its end."""
        flags = row[_FLAGS_OFFSET]
        if flags & _DIGESTED:
            if entity is None or not row.endswith(self.key.prefix + entity):
                return self._absent
            row = row[:_FLAGS_OFFSET] + bytes([flags & ~_DIGESTED]) + row[_FLAGS_OFFSET + 1 :]
        count, texts_at = _SHAPE.unpack_from(row, _SHAPE_OFFSET)
        if count != self._count:
            row = self._with_all_features(row, count, texts_at)
        # Whatever follows the texts is never looked at.
        return row if self._layout.texts else row[: self._layout.width]

    def _with_all_features(self, row: bytes, count: int, texts_at: int) -> bytes:
        """A row of another state: with the defaults of features added since, without those that are not known here."""
        bitmap_bytes = (count + 7) // 8
        added = self._added.get(count)
        if added is None:
            added = self._added[count] = _Added(self._group, count)
        present = (
            int.from_bytes(row[_HEADER.size : _HEADER.size + bitmap_bytes], "little") & added.known | added.present
        )
        start = _HEADER.size + bitmap_bytes
        end = texts_at
        for offset in added.lengths:
            end += _LENGTH.unpack_from(row, start + offset)[0]
        return b"".join(
            (
                row[:_SHAPE_OFFSET],
                _SHAPE.pack(self._count, self._layout.width),
                present.to_bytes(self._layout.bitmap_bytes, "little"),
                row[start : start + added.known_bytes],
                added.fixed,
                row[texts_at:end],
                added.texts,
            )
        )


class _Layout:
    """Where everything of fixed width is in a row with these features; `texts` are the positions of texts."""

    def __init__(self, features: Sequence[Field]) -> None:
        count = len(features)
        self.bitmap_bytes = (count + 7) // 8
        self.texts = [i for i, f in enumerate(features) if f.type is DataType.STRING]
        self.names = [f"f{i}" for i in range(count)]
        shape_bytes = _SHAPE.size + self.bitmap_bytes
        names = ["flags", "time", "commit", "features", "shape", "bitmap", *self.names]
        formats: list[Any] = ["u1", "<i8", "<u8", "<u2", ("u1", (shape_bytes,)), ("u1", (self.bitmap_bytes,))]
        offsets = [_FLAGS_OFFSET, _VERSION_OFFSET, _VERSION_OFFSET + 8, _SHAPE_OFFSET, _SHAPE_OFFSET, _HEADER.size]
        end = _HEADER.size + self.bitmap_bytes
        for feature in features:
            offsets.append(end)
            formats.append(_format(feature))
            end += np.dtype(formats[-1]).itemsize
        self.width = end
        self.dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": end})
        every = ((1 << count) - 1).to_bytes(self.bitmap_bytes, "little")
        # What a row without NULLs has from the number of features to the end of the bits.
        self.shape = np.frombuffer(_SHAPE.pack(count, end) + every, np.uint8)


class _RowColumns:
    """The features of rows that conform to a layout, each decoded when it is asked for."""

    def __init__(self, layout: _Layout, records: NDArray[Any], rows: Sequence[bytes], whole: bool) -> None:
        self._layout = layout
        self._records = records
        self._rows = rows
        self._whole = whole
        self._made: dict[int, FoundColumn] = {}

    def __len__(self) -> int:
        return len(self._layout.names)

    def __getitem__(self, position: int) -> FoundColumn:
        made = self._made.get(position)
        if made is None:
            texts = position in self._layout.texts
            values = self._texts(position) if texts else self._records[self._layout.names[position]]
            made = self._made[position] = FoundColumn(values, self._valid(position))
        return made

    def _valid(self, position: int) -> NDArray[np.bool_] | None:
        if self._whole:
            return None
        valid = (self._records["bitmap"][:, position >> 3] >> (position & 7) & 1).astype(np.bool_)
        return None if valid.all() else valid

    def _texts(self, position: int) -> NDArray[Any]:
        layout, starts = self._layout, np.full(len(self._rows), self._layout.width, np.int64)
        for before in itertools.takewhile(lambda other: other < position, layout.texts):
            starts += self._records[layout.names[before]]
        ends = starts + self._records[layout.names[position]]
        bounds = zip(self._rows, starts.tolist(), ends.tolist(), strict=True)
        found = [row[start:end] for row, start, end in bounds]
        # Texts have no NUL, so that all of them can be decoded at once.
        texts = b"\0".join(found).decode().split("\0")
        if len(texts) != len(found):
            texts = [text.decode() for text in found]
        values = np.empty(len(texts), np.object_)
        values[:] = texts
        return values


class _Added:
    """What rows with `count` features read in a group that has others: its defaults, and nothing beyond its own.

    `known_bytes` of the fixed part are taken over, and the bits `known`; `lengths` are where in it the lengths of texts
    are. `present`, `fixed` and `texts` are those of the defaults.
    """

    def __init__(self, group: FeatureGroup, count: int) -> None:
        features = group.features
        self.known = (1 << min(count, len(features))) - 1
        self.known_bytes, self.lengths = 0, list[int]()
        for feature in features[:count]:
            if feature.type is DataType.STRING:
                self.lengths.append(self.known_bytes)
            self.known_bytes += np.dtype(_format(feature)).itemsize
        self.present, self.fixed, self.texts = 0, b"", b""
        for position, feature in enumerate(features[count:], count):
            default = group.defaults.get(feature.name)
            value = Column.nulls(feature, 1).values[0]
            if default is not None and default.is_valid(0):
                self.present |= 1 << position
                value = default.values[0]
            if feature.type is DataType.STRING:
                text = value.encode()
                self.texts += text
                value = len(text)
            self.fixed += np.asarray(value, np.dtype(_format(feature)).base).tobytes()


def _format(feature: Field) -> Any:
    """NumPy's type of what a row has of a feature at its place: of a text its length."""
    return ("<f4", (feature.dimension,)) if feature.dimension else _DTYPES[feature.type]


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
