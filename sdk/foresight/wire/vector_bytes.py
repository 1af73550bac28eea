"""What the bytes of feature vectors have around the values, alike for who writes them and who reads them.

Vectors of one view and so many entities differ in their values only, as long as these are of fixed width and all are
there: what stands between them is the same from one answer to the next, and is written and recognised as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from foresight.values import FeatureStatus, Field
from foresight.wire.column_bytes import column_head, delimited, tag, varint, width_of

# Tags of foresight.feature_store.v1.GetFeatureVectorsResponse, FeatureVectors and FeatureValues.
VECTORS = tag(1)
VIEW, FEATURE, ROWS, APPLIED_COMMIT = tag(1), tag(2), tag(3), b"\x20"
COLUMN, STATUSES, SOURCE = tag(1), tag(2), b"\x18"
_PRESENT = bytes([FeatureStatus.PRESENT])


class FeatureFrame(NamedTuple):
    """A feature of which all values are there: what stands before its values, their bytes, and what stands after."""

    before: bytes
    size: int
    after: bytes


def feature_frames(features: Iterable[tuple[Field, int]], entities: int) -> list[FeatureFrame | None]:
    """The frames of features and the sources that they are from, for so many entities; None: of no fixed width."""
    # What stands after is as long as the entities are many, and the same for all features of a source.
    ends: dict[int, bytes] = {}
    frames: list[FeatureFrame | None] = []
    for field, source in features:
        head = column_head(field.name, field.type, field.dimension, entities, COLUMN)
        if head is None:
            frames.append(None)
            continue
        after = ends.get(source)
        if after is None:
            after = ends[source] = feature_end(_PRESENT * entities, source)
        size = entities * width_of(field.type, field.dimension)
        frames.append(FeatureFrame(FEATURE + varint(len(head) + size + len(after)) + head, size, after))
    return frames


def feature_end(statuses: bytes, source: int) -> bytes:
    """What stands after the column of a feature."""
    return delimited(STATUSES, statuses) + (SOURCE + varint(source) if source else b"")
