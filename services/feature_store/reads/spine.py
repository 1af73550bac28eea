"""Spines: the rows that a point-in-time join or a training dataset starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from foresight.tables import arrow_type
from foresight.values import FeatureView, Field
from services.feature_store.tables.conformance import conform, one_array
from services.feature_store.tables.content import check_carried
from services.feature_store.tables.row_source import RowSource, TableRows
from services.feature_store.writes.row_tables import EVENT_TIME, Faults


@dataclass(frozen=True, slots=True, eq=False)
class Spine:
    """A checked spine. `rows` has all its columns in their order; entity keys, `event_time`, request features and
    the label, if it is there, have their fields' Arrow types; the others are as they came, dictionaries decoded."""

    rows: RowSource

    def columns(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns, batch by batch."""
        rows = self.rows
        if isinstance(rows, _TypedRows):
            return rows.columns(names)
        return (batch.select(list(names)) for batch in rows.batches())


def check_spine(rows: RowSource, view: FeatureView, *, labelled: bool) -> Spine:
    """The spine with exact types, gone through batch by batch. `labelled`: the label has to be there, in every row.

    Blocks. Raises InvalidValue with every fault found.
    """
    check_carried(rows.schema)
    names = rows.schema.names
    faults = Faults()
    made = {f.name for f in view.features} - {f.name for f in view.request_features}
    for name in names:
        if name in made:
            faults.add(f"arrow.{name}", "has the name of a feature that the view makes")
        if labelled and name == "split":
            faults.add("arrow.split", "is the column that says which split a row is in")
    known = {f.name: f for f in (*view.entity_keys, EVENT_TIME, *view.request_features)}
    if labelled or view.label.name in names:
        known[view.label.name] = view.label
    for name in known:
        if name not in names:
            faults.add(f"arrow.{name}", "is missing")
    required = {"event_time", view.label.name} if labelled else {"event_time"}
    present = {name: field for name, field in known.items() if name in names}
    if isinstance(rows, TableRows):
        columns = dict(zip(names, (one_array(column) for column in rows.table.columns), strict=True))
        _conform_all(columns, present, required, faults)
        faults.raise_any()
        return Spine(TableRows(pa.table(columns)))
    _check_batches(rows, present, required, faults)
    faults.raise_any()
    return Spine(_TypedRows(rows, present))


@dataclass(frozen=True, slots=True, eq=False)
class _TypedRows:
    """Checked rows, given their types as they are read."""

    rows: RowSource
    fields: dict[str, Field]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(
            [
                (f.name, arrow_type(self.fields[f.name]) if f.name in self.fields else _plain(f.type))
                for f in self.rows.schema
            ]
        )

    @property
    def num_rows(self) -> int:
        return self.rows.num_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        return self.columns(self.schema.names)

    def columns(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([self.schema.field(name) for name in names])
        for batch in self.rows.batches():
            columns = (pa.chunked_array([batch.column(name)]) for name in names)
            arrays = [
                conform(column, self.fields[f.name]) if f.name in self.fields else one_array(column)
                for f, column in zip(schema, columns, strict=True)
            ]
            yield pa.record_batch(arrays, schema=schema)


def _conform_all(columns: dict[str, pa.Array], fields: dict[str, Field], required: set[str], faults: Faults) -> None:
    """Gives each known column its type, in place."""
    for name, field in fields.items():
        columns[name] = faults.conform(pa.chunked_array([columns[name]]), field, nulls=name not in required)


def _check_batches(rows: RowSource, fields: dict[str, Field], required: set[str], faults: Faults) -> None:
    """Adds what is wrong with any batch."""
    for batch in rows.batches():
        for name, field in fields.items():
            faults.conform(batch.column(name), field, nulls=name not in required)


def _plain(type: pa.DataType) -> pa.DataType:
    return type.value_type if pa.types.is_dictionary(type) else type
