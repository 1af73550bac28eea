"""Vectors as bytes are the message that protobuf would write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from foresight.feature_store.v1 import online_pb2
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType, FeatureGroup, FeatureStatus, FeatureView, Field, ViewFeature, ViewSource
from services.feature_store.groups import StoredGroup
from services.feature_store.online.vectors import FeatureValues, FeatureVectors, SourceRows
from services.feature_store.servicers.vector_bytes import FRAMES_MAX, VectorWriter
from tests.unit.wire.plain import column_message, longer_columns, repeated

VIEW = FeatureView("judged", Field("label", DataType.BOOL), (ViewSource("one", (ViewFeature("f"),)),), version=3)
GROUPS = [
    StoredGroup(
        number, FeatureGroup(name, (Field("id", DataType.INT64),), (Field("f", DataType.INT64),), version=number)
    )
    for number, name in ((1, "one"), (2, "two"))
]
ROWS = [1, 2, 17, 64, 200]
MISSING = [FeatureStatus.NULL, FeatureStatus.NOT_FOUND, FeatureStatus.EXPIRED, FeatureStatus.FUTURE]


@st.composite
def feature_vectors(draw: st.DrawFn, features: list[Any], rows: int) -> FeatureVectors:
    """Vectors of features with columns as given, whatever is missing where these are NULL."""
    made = []
    for column, source in features:
        present = np.ones(rows, np.bool_) if column.valid is None else column.valid
        why = draw(st.sampled_from(MISSING))
        made.append(
            FeatureValues(column.field, column.values, bytes(1 if there else why for there in present.tolist()), source)
        )
    numbers = st.lists(st.sampled_from([0, 1, 300, 2**40]), min_size=rows, max_size=rows)
    sources = [
        SourceRows(
            group,
            np.array(draw(numbers), np.int64) - 7,
            np.array(draw(numbers), np.uint64),
            draw(st.just(()) | numbers),
        )
        for group in GROUPS
    ]
    return FeatureVectors(VIEW, made, sources, draw(st.sampled_from([0, 7, 2**33])))


def plain(vectors: FeatureVectors) -> bytes:
    """The message, value by value."""
    message = online_pb2.GetFeatureVectorsResponse()
    into = message.vectors
    into.view.name, into.view.version = vectors.view.name, vectors.view.version
    into.applied_commit = vectors.applied_commit
    for feature in vectors.features:
        added = into.features.add(statuses=feature.statuses, source=feature.source)
        present = np.array([status == FeatureStatus.PRESENT for status in feature.statuses])
        valid = None if present.all() else present
        column = Column(feature.field.name, feature.field.type, feature.values, valid)
        added.column.CopyFrom(column_message(column))
    for rows in vectors.rows:
        into.rows.add(
            group=types_pb2.VersionRef(name=rows.group.group.name, version=rows.group.group.version),
            event_time_micros=rows.event_time_us.tolist(),
            commits=rows.commits.tolist(),
            erased_commits=rows.erased_commits,
        )
    return message.SerializeToString()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_vectors_are_written_as_protobuf_writes_them(data: st.DataObject) -> None:
    """Of every type, whatever is missing; one writer for answers of one view that differ in rows and values."""
    writer = VectorWriter()
    few = [data.draw(longer_columns(rows=7)).renamed(name) for name in ("a", "b", "c" * 63)]
    for rows in data.draw(st.lists(st.sampled_from(ROWS), min_size=1, max_size=3)):
        order = data.draw(st.permutations(range(7)))
        features = [(repeated(column.take(order), rows), i % 2) for i, column in enumerate(few)]
        vectors = data.draw(feature_vectors(features, rows))
        assert writer.message(vectors) == plain(vectors)
        assert writer.message(vectors) == plain(vectors)


def test_what_answers_have_in_common_is_forgotten_beyond_a_bound() -> None:
    """More numbers of entities than are remembered, twice; and a view that takes another's place."""
    writer = VectorWriter()
    ones = [Column(f"f{i}", DataType.FLOAT64, np.ones(1)) for i in range(6_000)]
    for entities in [*range(1, FRAMES_MAX // 6_000 + 3), 1, 2]:
        values = [FeatureValues(c.field, repeated(c, entities).values, b"\1" * entities, 0) for c in ones]
        vectors = FeatureVectors(VIEW, values, [SourceRows(GROUPS[0], *_zeros(entities))], 1)
        written = writer.message(vectors)
    assert written == plain(vectors)
    assert sum(len(frames.features) for frames in writer._frames.values()) <= FRAMES_MAX
    for name in ("other", "another"):
        other = FeatureVectors(replace(VIEW, name=name), [], [SourceRows(GROUPS[0], *_zeros(1))], 1)
        assert writer.message(other) == plain(other)


def _zeros(entities: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    return np.zeros(entities, np.int64), np.zeros(entities, np.uint64)
