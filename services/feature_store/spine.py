"""Spines: the rows that a point-in-time join or a training dataset starts from."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from foresight.values import FeatureView
from services.feature_store.content import check_carried
from services.feature_store.row_tables import EVENT_TIME, Faults, check_size


@dataclass(frozen=True, slots=True, eq=False)
class Spine:
    """A checked spine. `table` has all its columns in their order; entity keys, `event_time`, request features and
    the label, if it is there, have their fields' Arrow types; the others are as they came."""

    table: pa.Table


def check_spine(table: pa.Table, view: FeatureView, *, labelled: bool) -> Spine:
    """The spine with exact types. `labelled`: the label has to be there, in every row.

    Raises InvalidValue with every fault found, LimitExceeded.
    """
    check_size(table)
    check_carried(table.schema)
    faults = Faults()
    made = {f.name for f in view.features} - {f.name for f in view.request_features}
    for name in table.column_names:
        if name in made:
            faults.add(f"arrow.{name}", "has the name of a feature that the view makes")
        if labelled and name == "split":
            faults.add("arrow.split", "is the column that says which split a row is in")
    known = {f.name: f for f in (*view.entity_keys, EVENT_TIME, *view.request_features)}
    if labelled or view.label.name in table.column_names:
        known[view.label.name] = view.label
    nullable = {f.name for f in (*view.entity_keys, *view.request_features)}
    if not labelled:
        nullable.add(view.label.name)
    columns = dict(zip(table.column_names, table.columns, strict=True))
    for name, field in known.items():
        if name in columns:
            columns[name] = faults.conform(columns[name], field, nulls=name in nullable)
        else:
            faults.add(f"arrow.{name}", "is missing")
    faults.raise_any()
    return Spine(pa.table(columns))
