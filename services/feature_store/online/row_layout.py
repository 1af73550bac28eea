"""Where everything is in the bytes of a row, see `row_codec.py`, and the columns of many rows of one layout."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foresight.values import Column, DataType, FeatureGroup, Field
from services.feature_store.online.store import FoundColumn

# Layout, flags, event time, commit, the number of features, where the texts begin.
HEADER = struct.Struct("<BBqQHI")
FLAGS_OFFSET = 1
# Event time and commit.
VERSION = struct.Struct("<qQ")
VERSION_OFFSET = 2
# The number of features, and where the texts begin.
SHAPE = struct.Struct("<HI")
SHAPE_OFFSET = 18
# Of a text.
LENGTH = struct.Struct("<I")
_DTYPES = {
    DataType.INT64: "<i8",
    DataType.FLOAT64: "<f8",
    DataType.BOOL: "?",
    DataType.STRING: "<u4",
    DataType.TIMESTAMP: "<i8",
}


class Layout:
    """Where everything of fixed width is in a row with these features; `texts` are the positions of texts."""

    def __init__(self, features: Sequence[Field]) -> None:
        count = len(features)
        self.bitmap_bytes = (count + 7) // 8
        self.texts = [i for i, f in enumerate(features) if f.type is DataType.STRING]
        self.names = [f"f{i}" for i in range(count)]
        shape_bytes = SHAPE.size + self.bitmap_bytes
        names = ["flags", "time", "commit", "features", "shape", "bitmap", *self.names]
        formats: list[Any] = ["u1", "<i8", "<u8", "<u2", ("u1", (shape_bytes,)), ("u1", (self.bitmap_bytes,))]
        offsets = [FLAGS_OFFSET, VERSION_OFFSET, VERSION_OFFSET + 8, SHAPE_OFFSET, SHAPE_OFFSET, HEADER.size]
        end = HEADER.size + self.bitmap_bytes
        for feature in features:
            offsets.append(end)
            formats.append(format_of(feature))
            end += np.dtype(formats[-1]).itemsize
        self.width = end
        self.dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": end})
        every = ((1 << count) - 1).to_bytes(self.bitmap_bytes, "little")
        # What a row without NULLs has from the number of features to the end of the bits.
        self.shape = np.frombuffer(SHAPE.pack(count, end) + every, np.uint8)


class RowColumns:
    """The features of rows that conform to a layout, each decoded when it is asked for."""

    def __init__(self, layout: Layout, records: NDArray[Any], rows: Sequence[bytes], whole: bool) -> None:
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


class AddedFeatures:
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
            self.known_bytes += np.dtype(format_of(feature)).itemsize
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
            self.fixed += np.asarray(value, np.dtype(format_of(feature)).base).tobytes()


def format_of(feature: Field) -> Any:
    """NumPy's type of what a row has of a feature at its place: of a text its length."""
    return ("<f4", (feature.dimension,)) if feature.dimension else _DTYPES[feature.type]
