"""The rows of a group as they are described: its keys, `event_time` and features, without tombstones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from foresight.tables import arrow_type, column_to_arrow
from foresight.values import DataType, FeatureGroup, Field
from services.feature_store.statistics.targets import described_columns

_EVENT_TIME = Field("event_time", DataType.TIMESTAMP)


def described_schema(group: FeatureGroup) -> pa.Schema:
    """Names and types of the columns."""
    fields = {f.name: f for f in (*group.fields, _EVENT_TIME)}
    return pa.schema([(name, arrow_type(fields[name])) for name in described_columns(group)])


def described_batches(group: FeatureGroup, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows of batches with more columns, or fewer: a feature that is not there reads its default, or NULL."""
    schema = described_schema(group)
    for batch in batches:
        names = set(batch.schema.names)
        if "deleted" in names and pc.any(batch["deleted"]).as_py():
            batch = batch.filter(pc.invert(batch["deleted"]))
        arrays = [
            _as(batch[field.name], field.type) if field.name in names else _missing(group, field, batch.num_rows)
            for field in schema
        ]
        if batch.num_rows:
            yield pa.record_batch(arrays, schema=schema)


def _as(array: pa.Array, type: pa.DataType) -> pa.Array:
    return array if array.type == type else array.cast(type)


def _missing(group: FeatureGroup, field: pa.Field, rows: int) -> pa.Array:
    default = group.defaults.get(field.name)
    if default is None:
        return pa.nulls(rows, field.type)
    one = column_to_arrow(default)
    return one.take(pa.repeat(pa.scalar(0), rows))
