"""Rows of a group as bytes, for a key-value store. Of keys see `key_codec.py`.

A row is: layout, flags, event time, commit, the number of features, where the texts begin, one bit per feature for
"not NULL", the features of fixed width (texts as their length), the texts, and the whole key if it is digested. All
numbers in rows are little-endian. Features are only ever added, at the end: a row with fewer of them than the group has
reads the defaults of the others, and one with more, written by a process that knows a newer state of the group, is read
without those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foresight.tables import arrow_type, column_from_arrow
from foresight.values import DataType, FeatureGroup
from services.feature_store.groups import StoredGroup
from services.feature_store.online.key_codec import KeyCodec, stored_key
from services.feature_store.online.row_layout import (
    FLAGS_OFFSET,
    HEADER,
    LENGTH,
    SHAPE,
    SHAPE_OFFSET,
    VERSION,
    VERSION_OFFSET,
    AddedFeatures,
    Layout,
    RowColumns,
    format_of,
)
from services.feature_store.online.store import FoundRows

LAYOUT = 2
_DELETED, _DIGESTED = 1, 2
# Never stored: stands for an entity without a row.
_ABSENT = 4
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
        self._layout = layout = Layout(features)
        # By the number of features that rows of another state have.
        self._added: dict[int, AddedFeatures] = {}
        parts: list[Any] = [("head", f"V{HEADER.size}"), ("bitmap", f"V{layout.bitmap_bytes}")]
        self._dtype = np.dtype([*parts, *zip(layout.names, map(format_of, features), strict=True)])
        head = HEADER.pack(LAYOUT, _ABSENT, 0, 0, self._count, layout.width)
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
                row[FLAGS_OFFSET] |= _DIGESTED
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
        fixed["head"] = head.view(f"V{HEADER.size}")
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
        return not row[FLAGS_OFFSET] & _DIGESTED or row.endswith(whole_key)

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
        columns = RowColumns(layout, records, rows, whole)
        return FoundRows(records["time"], records["commit"], columns, gone=gone, whole=whole)

    def _conformed(self, row: bytes, entity: bytes | None) -> bytes:
        """A row as if it had been written in this state of the group, without a key at its end."""
        flags = row[FLAGS_OFFSET]
        if flags & _DIGESTED:
            if entity is None or not row.endswith(self.key.prefix + entity):
                return self._absent
            row = row[:FLAGS_OFFSET] + bytes([flags & ~_DIGESTED]) + row[FLAGS_OFFSET + 1 :]
        count, texts_at = SHAPE.unpack_from(row, SHAPE_OFFSET)
        if count != self._count:
            row = self._with_all_features(row, count, texts_at)
        # Whatever follows the texts is never looked at.
        return row if self._layout.texts else row[: self._layout.width]

    def _with_all_features(self, row: bytes, count: int, texts_at: int) -> bytes:
        """A row of another state: with the defaults of features added since, without those that are not known here."""
        bitmap_bytes = (count + 7) // 8
        added = self._added.get(count)
        if added is None:
            added = self._added[count] = AddedFeatures(self._group, count)
        present = int.from_bytes(row[HEADER.size : HEADER.size + bitmap_bytes], "little") & added.known | added.present
        start = HEADER.size + bitmap_bytes
        end = texts_at
        for offset in added.lengths:
            end += LENGTH.unpack_from(row, start + offset)[0]
        return b"".join(
            (
                row[:SHAPE_OFFSET],
                SHAPE.pack(self._count, self._layout.width),
                present.to_bytes(self._layout.bitmap_bytes, "little"),
                row[start : start + added.known_bytes],
                added.fixed,
                row[texts_at:end],
                added.texts,
            )
        )


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
    time, commit = VERSION.unpack_from(row, VERSION_OFFSET)
    return time, commit


def latest_per_key(keys: Sequence[bytes], rows: pa.RecordBatch) -> dict[bytes, int]:
    """Position of the latest row of each key."""
    latest = dict(zip(keys, range(len(keys)), strict=True))
    if len(latest) < len(keys):
        order: list[int] = np.lexsort((rows["commit"], rows["event_time"].cast(pa.int64()))).tolist()
        # The last one of a key stays.
        latest = {keys[i]: i for i in order}
    return latest
