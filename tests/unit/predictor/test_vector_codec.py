"""Answers of the feature store read by what the one before had beside its values are those that protobuf reads."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from foresight.feature_store.v1 import online_pb2
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType, FeatureStatus, InvalidValue
from services.predictor.vector_codec import FRAMES_MAX, VIEWS_MAX, VectorReader, decode_vectors
from services.predictor.vectors import Vectors
from services.predictor.versions import VersionRef
from tests.unit.values.columns import same
from tests.unit.wire.plain import column_message, longer_columns, repeated

FLOAT = DataType.FLOAT64
VIEW = VersionRef("judged", 3)
ROWS = [1, 2, 17, 64, 200]
STATUSES = [int(s) for s in FeatureStatus if s is not FeatureStatus.PRESENT]


def answer(columns: list[Column], rows: int, applied_commit: int = 7, commit: int = 300) -> bytes:
    """What the feature store answers: every second feature is of the second group; NULLs are what is missing."""
    response = online_pb2.GetFeatureVectorsResponse()
    message = response.vectors
    message.view.name, message.view.version = VIEW.name, VIEW.version
    message.applied_commit = applied_commit
    for i, column in enumerate(columns):
        present = [True] * rows if column.valid is None else column.valid.tolist()
        statuses = bytes(1 if there else STATUSES[row % len(STATUSES)] for row, there in enumerate(present))
        message.features.add(column=column_message(column), statuses=statuses, source=i % 2)
    for name in ("one", "two"):
        message.rows.add(
            group=types_pb2.VersionRef(name=name, version=1),
            event_time_micros=range(rows),
            commits=[commit + row for row in range(rows)],
        )
    return response.SerializeToString()


def whole(data: bytes) -> Vectors:
    """As protobuf reads it."""
    return decode_vectors(online_pb2.GetFeatureVectorsResponse.FromString(data).vectors)


def equal(one: Vectors, two: Vectors) -> bool:
    """Whether vectors are the same in every bit."""
    features = zip(one.features, two.features, strict=True)
    return (_sources(one), one.applied_commit) == (_sources(two), two.applied_commit) and all(
        a.statuses == b.statuses and same(a.column, b.column) for a, b in features
    )


def _sources(vectors: Vectors) -> list[object]:
    return [(s.group, s.event_time_micros, s.commits, s.erased_commits) for s in vectors.sources]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_one_answer_after_the_other_is_read_as_protobuf_reads_it(data: st.DataObject) -> None:
    """Of every type, with any number of entities, with and without missing values, also of another shape."""
    reader = VectorReader()
    few = [data.draw(longer_columns(rows=7)).renamed(name) for name in ("a", "b", "c")]
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.integers(0, 9)) == 0:
            few = few[1:] + few[:1]
        rows = data.draw(st.sampled_from(ROWS))
        order = data.draw(st.permutations(range(7)))
        columns = [repeated(column.take(order), rows) for column in few]
        if data.draw(st.booleans()):
            columns = [Column(c.name, c.type, c.values) for c in columns]
        given = answer(columns, rows, data.draw(st.sampled_from([0, 1, 2**40])), data.draw(st.sampled_from([0, 2**33])))
        read = reader.read(VIEW, rows, given)
        assert equal(read, whole(given))
        for feature in read.features:
            # Transforms may work in place.
            feature.column.values[0] = feature.column.values[-1]


@given(longer_columns(rows=3), longer_columns(rows=3), st.data())
def test_damaged_answers_are_read_as_protobuf_reads_them(one: Column, two: Column, data: st.DataObject) -> None:
    """Or refused as it refuses them."""
    good = answer([one.renamed("a"), two.renamed("b")], 3)
    reader = VectorReader()
    reader.read(VIEW, 3, good)
    at = data.draw(st.integers(0, len(good) - 1))
    byte = bytes([data.draw(st.integers(0, 255))])
    bad = data.draw(st.sampled_from([good[:at], good[:at] + byte + good[at + 1 :], good[:at] + byte + good[at:]]))
    try:
        expected = whole(bad)
    except (DecodeError, InvalidValue):
        with pytest.raises((DecodeError, InvalidValue)):
            reader.read(VIEW, 3, bad)
    else:
        read = reader.read(VIEW, 3, bad)
        assert equal(read, expected)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_number_that_is_none_is_refused_by_name(wrong: float) -> None:
    """Also where the answer before had the same shape."""
    reader, values = VectorReader(), np.zeros(20)
    reader.read(VIEW, 20, answer([Column("a", FLOAT, values)], 20))
    values[11] = wrong
    with pytest.raises(InvalidValue, match="a"):
        reader.read(VIEW, 20, answer([Column("a", FLOAT, values)], 20))


def test_what_is_remembered_is_bounded() -> None:
    """Views, and numbers of entities of each; whatever was forgotten is read all the same."""
    reader = VectorReader()
    for number in range(VIEWS_MAX + 2):
        data = answer([Column("a", FLOAT, np.ones(1))], 1)
        assert reader.read(VersionRef("view", number + 1), 1, data).features[0].column.values.tolist() == [1.0]
    assert len(reader._known) <= VIEWS_MAX
    ones = [Column(f"f{i}", FLOAT, np.ones(1)) for i in range(6_000)]
    for rows in [*range(1, FRAMES_MAX // 6_000 + 3), 1, 2]:
        data = answer([repeated(column, rows) for column in ones], rows)
        for _ in range(2):
            assert len(reader.read(VIEW, rows, data).features[-1].column) == rows
    assert sum(map(len, reader._frames.values())) <= FRAMES_MAX
