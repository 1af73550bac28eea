"""Rows and keys of the online store, many at once, are what they are one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresight.tables import arrow_type
from foresight.values import Column, DataType, FeatureGroup, Field
from services.feature_store.groups import StoredGroup
from services.feature_store.online.key_codec import KEY_BYTES_MAX, KeyCodec
from services.feature_store.online.row_codec import RowCodec
from services.feature_store.online.store import FoundRow
from tests.unit.values.columns import SCALARS

NAMES = Field("name", DataType.STRING)
FEATURES = (
    Field("a", DataType.INT64),
    Field("b", DataType.STRING),
    Field("c", DataType.FLOAT_VECTOR, 3),
    Field("d", DataType.BOOL),
    Field("e", DataType.STRING),
    Field("f", DataType.FLOAT64),
    Field("g", DataType.TIMESTAMP),
    Field("h", DataType.STRING),
    Field("i", DataType.FLOAT_VECTOR, 2),
    Field("j", DataType.BOOL),
)
DEFAULTS = {
    "e": Column.build("e", DataType.STRING, ["é of old"]),
    "f": Column.build("f", DataType.FLOAT64, [-0.5]),
    "i": Column.build("i", DataType.FLOAT_VECTOR, [[1.0, 0.1]], 2),
    "j": Column.build("j", DataType.BOOL, [True]),
}
# With texts and without, as rows then have all the same length.
STATES = [(FEATURES, (2, 4, 6, 8, 10)), (tuple(f for f in FEATURES if f.type is not DataType.STRING), (1, 3, 5, 7))]
LONG = "x" * KEY_BYTES_MAX
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def value_of(feature: Field) -> st.SearchStrategy[Any]:
    """A value or NULL."""
    if feature.dimension:
        return st.none() | st.lists(floats, min_size=feature.dimension, max_size=feature.dimension)
    return st.none() | SCALARS[feature.type]


def codec_of(features: tuple[Field, ...], count: int) -> RowCodec:
    """The codec of a group that has the first few of the features."""
    known = {f.name for f in features[:count]}
    defaults = {name: column for name, column in DEFAULTS.items() if name in known}
    return RowCodec(StoredGroup(1, FeatureGroup("g", (NAMES,), features[:count], defaults=defaults, version=1)))


def encoded(codec: RowCodec, features: tuple[Field, ...], name: str, row: FoundRow) -> bytes:
    """The bytes of one row."""
    columns = {
        "name": pa.array([name]),
        **{f.name: pa.array([v], arrow_type(f)) for f, v in zip(features, row.values, strict=False)},
        "event_time": pa.array([row.event_time_us], pa.timestamp("us", "UTC")),
        "commit": pa.array([row.commit], pa.int64()),
        "deleted": pa.array([row.deleted]),
    }
    return codec.encode(pa.RecordBatch.from_pydict(columns)).rows[0]


@pytest.mark.parametrize(("features", "counts"), STATES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_rows_of_any_state_are_found_together(
    features: tuple[Field, ...], counts: tuple[int, ...], data: st.DataObject
) -> None:
    """Rows of more and of fewer features than the reader knows, tombstones, none at all, and keys that are digested."""
    codecs = {count: codec_of(features, count) for count in counts}
    mine = data.draw(st.sampled_from(counts))
    stored: list[bytes | None] = []
    names: list[str] = []
    expected: list[FoundRow | None] = []
    for i in range(data.draw(st.integers(1, 6))):
        count = data.draw(st.sampled_from([mine, *counts]))
        name = data.draw(st.sampled_from(["", f"n{i}", LONG, LONG + "1"]))
        values = [data.draw(value_of(f)) for f in features[:count]]
        row = FoundRow(data.draw(SCALARS[DataType.TIMESTAMP]), i + 1, data.draw(st.booleans()), tuple(values))
        read = [*values[:mine], *(_default(f) for f in features[count:mine])]
        there = data.draw(st.integers(0, 5)) > 0
        stored.append(encoded(codecs[count], features[:count], name, row) if there else None)
        # Another key with the same digest, were there one, has no row.
        asked = LONG + "2" if there and len(name) > KEY_BYTES_MAX and data.draw(st.booleans()) else name
        names.append(asked)
        expected.append(row._replace(values=tuple(read)) if there and asked == name else None)
    codec = codecs[mine]
    entities = codec.key.entities((Column.build("name", DataType.STRING, names),))
    assert [*codec.decode_all(stored, entities)] == expected
    for row_bytes, entity, one in zip(stored, entities, expected, strict=True):
        assert [*codec.decode_all([row_bytes], [entity])] == [one]
    many = codec.decode_all(stored * 20, entities * 20)
    assert [*many] == expected * 20
    for position, feature in enumerate(features[:mine]):
        assert many.columns[position].values.shape[0] == 20 * len(names)
        assert many.columns[position].values.dtype == Column.nulls(feature, 1).values.dtype


def _default(feature: Field) -> Any:
    default = DEFAULTS.get(feature.name)
    return None if default is None else default.to_list()[0]


@given(
    st.lists(st.tuples(*(st.none() | SCALARS[t] for t in (DataType.INT64, DataType.STRING, DataType.BOOL)))), st.data()
)
def test_keys_of_many_entities_are_those_of_each(entities: list[tuple[Any, ...]], data: st.DataObject) -> None:
    """Of every type, by themselves and together, NULL, too long or not; and they can be read back."""
    types = [(DataType.INT64, 0), (DataType.STRING, 1), (DataType.BOOL, 2)]
    chosen = data.draw(st.lists(st.sampled_from(types), min_size=1, max_size=3, unique=True))
    fields = tuple(Field(f"k{position}", type) for type, position in chosen)
    codec = KeyCodec(StoredGroup(7, FeatureGroup("g", fields, FEATURES[:1], version=1)))
    long = [(i, LONG[: data.draw(st.sampled_from([10, 300, KEY_BYTES_MAX]))] + str(i), i % 2 == 0) for i in range(3)]
    rows = (entities + long) * data.draw(st.sampled_from([1, 20]))
    columns = tuple(
        Column.build(f.name, f.type, [row[position] for row in rows])
        for f, (_, position) in zip(fields, chosen, strict=True)
    )
    together = codec.entities(columns)
    alone = [codec.entities(tuple(column.part(i, i + 1) for column in columns))[0] for i in range(len(rows))]
    assert together == alone
    assert codec.stored_keys(together) == [codec.stored_keys([entity])[0] for entity in alone]
    whole = [key for key in codec.keys(columns) if key is not None]
    there = np.flatnonzero([entity is not None for entity in together])
    if len(there):
        present = [column.take(there).part(0, len(there)) for column in columns]
        assert codec.whole_keys(tuple(present)) == whole
        assert [c.to_list() for c in codec.columns(whole)] == [c.to_list() for c in present]
