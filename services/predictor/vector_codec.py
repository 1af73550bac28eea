"""Feature vectors from the bytes of the feature store's answer.

Answers for one view and so many entities differ in their values only, as long as nothing is missing, see
`foresight.wire.vector_bytes`. What an answer had beside its values is remembered by view; where the next one has the
same, its values are taken from between as they are. Whatever is different is read by protobuf: a feature, or all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foresight.feature_store.v1 import online_pb2
from foresight.values import Column, DataType, FeatureStatus, Field
from foresight.values.instants import MICROS_MAX, MICROS_MIN
from foresight.wire import decode_column
from foresight.wire.column_bytes import delimited
from foresight.wire.vector_bytes import FEATURE, ROWS, VECTORS, VIEW, FeatureFrame, feature_frames
from services.predictor.vectors import FeatureValues, SourceRows, Vectors
from services.predictor.versions import VersionRef

# Views whose answers are remembered, and frames of features that are kept, about 200 bytes each; beyond, all are
# forgotten.
VIEWS_MAX = 1_024
FRAMES_MAX = 65_536
# A length has at most 5 digits of 7 bits.
_LENGTH_BITS_MAX = 35
_PRESENT = bytes([FeatureStatus.PRESENT])


class VectorReader:
    """Reads answers."""

    def __init__(self) -> None:
        self._known: dict[VersionRef, _Known] = {}
        # By what is known and the number of entities.
        self._frames: dict[tuple[_Known, int], list[FeatureFrame | None]] = {}
        self._kept = 0

    def read(self, view: VersionRef, entities: int, answer: bytes) -> Vectors:
        """The vectors of a GetFeatureVectorsResponse for so many entities. Raises DecodeError and InvalidValue."""
        known = self._known.get(view)
        if known is not None:
            vectors = known.read(entities, self._frames_of(known, entities), answer)
            if vectors is not None:
                return vectors
        message = online_pb2.GetFeatureVectorsResponse.FromString(answer).vectors
        vectors = decode_vectors(message)
        if len(self._known) >= VIEWS_MAX:
            self._known.clear()
        self._known[view] = _Known(message, vectors)
        return vectors

    def _frames_of(self, known: _Known, entities: int) -> list[FeatureFrame | None]:
        frames = self._frames.get((known, entities))
        if frames is None:
            frames = known.frames(entities)
            self._kept += 1 + len(frames)
            if self._kept > FRAMES_MAX:
                self._frames.clear()
                self._kept = 1 + len(frames)
            self._frames[known, entities] = frames
        return frames


def decode_vectors(message: online_pb2.FeatureVectors) -> Vectors:
    """The vectors of a message. Raises InvalidValue."""
    return Vectors(
        tuple(_decode_feature(feature) for feature in message.features),
        tuple(_decode_source(rows) for rows in message.rows),
        message.applied_commit,
    )


class _Known:
    """What the last answer for a view that protobuf read whole had beside its values."""

    def __init__(self, message: online_pb2.FeatureVectors, vectors: Vectors) -> None:
        self._view = delimited(VIEW, message.view.SerializeToString())
        self._fields = [values.column.field for values in vectors.features]
        self._features = [(f, feature.source) for f, feature in zip(self._fields, message.features, strict=True)]
        self._sources = len(vectors.sources)

    def frames(self, entities: int) -> list[FeatureFrame | None]:
        """What an answer has around the values of so many entities."""
        return feature_frames(self._features, entities)

    def read(self, entities: int, frames: Sequence[FeatureFrame | None], answer: bytes) -> Vectors | None:
        """The vectors of an answer; None when it is not of this shape."""
        field = _field(answer, 0, VECTORS)
        if field is None or field[1] != len(answer) or not answer.startswith(self._view, field[0]):
            return None
        at = field[0] + len(self._view)
        found: list[bytes | FeatureValues] = []
        for frame in frames:
            if frame is not None and answer.startswith(frame.before, at):
                start = at + len(frame.before)
                end = start + frame.size
                if answer.startswith(frame.after, end):
                    found.append(answer[start:end])
                    at = end + len(frame.after)
                    continue
            field = _field(answer, at, FEATURE)
            if field is None:
                return None
            start, at = field
            found.append(_decode_feature(online_pb2.FeatureValues.FromString(answer[start:at])))
        sources = []
        for _ in range(self._sources):
            field = _field(answer, at, ROWS)
            if field is None:
                return None
            start, at = field
            sources.append(_decode_source(online_pb2.SourceRows.FromString(answer[start:at])))
        rest = online_pb2.FeatureVectors.FromString(answer[at:])
        if rest.features or rest.rows or rest.HasField("view"):
            return None
        features = self._values(entities, found)
        return None if features is None else Vectors(features, tuple(sources), rest.applied_commit)

    def _values(self, entities: int, found: Sequence[bytes | FeatureValues]) -> tuple[FeatureValues, ...] | None:
        """The features, of which bytes are values that are all there; None when a value must not be there."""
        present = _PRESENT * entities
        # All numbers are checked at once, in memory that the columns then share.
        numbers = [
            data
            for data, field in zip(found, self._fields, strict=True)
            if isinstance(data, bytes) and field.type is DataType.FLOAT64
        ]
        matrix = np.frombuffer(bytearray().join(numbers), np.float64).reshape(-1, entities)
        if not np.isfinite(matrix).all():
            return None
        rows = iter(matrix)
        features: list[FeatureValues] = []
        for data, field in zip(found, self._fields, strict=True):
            if isinstance(data, FeatureValues):
                features.append(data)
                continue
            values = next(rows) if field.type is DataType.FLOAT64 else _array(data, field)
            if values is None:
                return None
            features.append(FeatureValues(Column(field.name, field.type, values), present))
        return tuple(features)


def _array(data: bytes, field: Field) -> NDArray[Any] | None:
    """The values of a field of fixed width; None when there is one that no value of its type has."""
    if field.type is DataType.BOOL:
        return np.frombuffer(bytearray(data), np.bool_) if max(data) <= 1 else None
    if field.type is DataType.TIMESTAMP:
        instants = np.frombuffer(bytearray(data), np.int64)
        return instants if instants.min() >= MICROS_MIN and instants.max() <= MICROS_MAX else None
    vectors = np.frombuffer(bytearray(data), np.float32)
    return vectors.reshape(-1, field.dimension) if np.isfinite(vectors).all() else None


def _field(data: bytes, at: int, tag: bytes) -> tuple[int, int] | None:
    """Where the content of a field of bytes starts and ends, if one with this tag begins there."""
    if not data.startswith(tag, at):
        return None
    at += len(tag)
    size = shift = 0
    while at < len(data) and shift < _LENGTH_BITS_MAX:
        digit = data[at]
        at += 1
        size |= (digit & 0x7F) << shift
        if digit < 0x80:
            return (at, at + size) if at + size <= len(data) else None
        shift += 7
    return None


def _decode_feature(message: online_pb2.FeatureValues) -> FeatureValues:
    return FeatureValues(decode_column(message.column, "features"), message.statuses)


def _decode_source(message: online_pb2.SourceRows) -> SourceRows:
    return SourceRows(
        VersionRef(message.group.name, message.group.version),
        tuple(message.event_time_micros),
        tuple(message.commits),
        tuple(message.erased_commits),
    )
