"""Feature vectors as the bytes of their message, which protobuf itself would write.

Messages of twelve features cost more to fill than the rows cost to be found. What answers for one view and so many
entities have in common is put together once.
"""

from __future__ import annotations

from foresight.types.v1 import types_pb2
from foresight.values import Column, FeatureStatus, FeatureView
from foresight.wire.column_bytes import column_bytes, delimited, packed_varints, tag, varint
from foresight.wire.vector_bytes import (
    APPLIED_COMMIT,
    COLUMN,
    FEATURE,
    ROWS,
    VECTORS,
    VIEW,
    feature_end,
    feature_frames,
)
from services.feature_store.online.vectors import FeatureValues, FeatureVectors, SourceRows

# Frames of features that are kept, about 200 bytes each.
FRAMES_MAX = 65_536
_GROUP, _EVENT_TIMES, _COMMITS, _ERASED = tag(1), tag(2), tag(3), tag(4)


class VectorWriter:
    """Writes vectors; beyond FRAMES_MAX what was kept is forgotten."""

    def __init__(self) -> None:
        # By the view's id and the number of entities.
        self._frames: dict[tuple[int, int], _Frames] = {}
        self._kept = 0

    def message(self, vectors: FeatureVectors) -> bytes:
        """The bytes of a message with the vectors in its field 1."""
        frames = self._of(vectors)
        parts = [frames.view]
        for feature, frame in zip(vectors.features, frames.features, strict=True):
            if frame is not None and feature.statuses == frames.present:
                parts += (frame.before, feature.values.tobytes(), frame.after)
            else:
                parts.append(_feature(feature))
        parts += map(_source, vectors.rows, frames.groups)
        if vectors.applied_commit:
            parts.append(APPLIED_COMMIT + varint(vectors.applied_commit))
        return b"".join((VECTORS, varint(sum(map(len, parts))), *parts))

    def _of(self, vectors: FeatureVectors) -> _Frames:
        entities = len(vectors.rows[0].commits) if vectors.rows else 0
        key = id(vectors.view), entities
        frames = self._frames.get(key)
        if frames is None or frames.of is not vectors.view:
            frames = _Frames(vectors, entities)
            self._kept += 1 + len(frames.features)
            if self._kept > FRAMES_MAX:
                self._frames.clear()
                self._kept = 1 + len(frames.features)
            self._frames[key] = frames
        return frames


class _Frames:
    """What vectors of one view for so many entities have in common; it keeps the view, so that its id stays its own."""

    def __init__(self, vectors: FeatureVectors, entities: int) -> None:
        self.of: FeatureView = vectors.view
        self.view = delimited(VIEW, _reference(vectors.view.name, vectors.view.version))
        self.present = bytes([FeatureStatus.PRESENT]) * entities
        self.features = feature_frames(((feature.field, feature.source) for feature in vectors.features), entities)
        groups = [rows.group.group for rows in vectors.rows]
        self.groups = [delimited(_GROUP, _reference(group.name, group.version)) for group in groups]


def _feature(feature: FeatureValues) -> bytes:
    field, statuses = feature.field, feature.statuses
    present = feature.present
    column = Column(field.name, field.type, feature.values, None if present.all() else present)
    return delimited(FEATURE, column_bytes(column, COLUMN) + feature_end(statuses, feature.source))


def _source(rows: SourceRows, group: bytes) -> bytes:
    parts = group + delimited(_EVENT_TIMES, rows.event_time_us.tobytes())
    parts += delimited(_COMMITS, packed_varints(rows.commits))
    if len(rows.erased_commits):
        parts += delimited(_ERASED, packed_varints(rows.erased_commits))
    return delimited(ROWS, parts)


def _reference(name: str, version: int) -> bytes:
    return types_pb2.VersionRef(name=name, version=version).SerializeToString()
