"""Strategies for fields and columns."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
from hypothesis import strategies as st

from foresight.values import Column, DataType
from foresight.values.instants import MICROS_MAX, MICROS_MIN

# NFC, no NUL, at most 4,096 bytes.
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Mn", "Mc"], exclude_characters="\0"), max_size=12
).map(lambda t: unicodedata.normalize("NFC", t))
SCALARS: dict[DataType, st.SearchStrategy[Any]] = {
    DataType.INT64: st.integers(-(2**63), 2**63 - 1),
    DataType.FLOAT64: st.floats(allow_nan=False, allow_infinity=False),
    DataType.BOOL: st.booleans(),
    DataType.STRING: texts,
    DataType.TIMESTAMP: st.integers(MICROS_MIN, MICROS_MAX),
}
names = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)


@st.composite
def columns(draw: st.DrawFn, rows: int | None = None) -> Column:
    """A column of any type, with NULLs, also of no rows."""
    type = draw(st.sampled_from(list(DataType)))
    n = draw(st.integers(0, 6)) if rows is None else rows
    dimension = draw(st.integers(1, 4)) if type is DataType.FLOAT_VECTOR else 0
    if type is DataType.FLOAT_VECTOR:
        floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
        values: st.SearchStrategy[Any] = st.lists(floats, min_size=dimension, max_size=dimension)
    else:
        values = SCALARS[type]
    rows_drawn = draw(st.lists(st.none() | values, min_size=n, max_size=n))
    return Column.build(draw(names), type, rows_drawn, dimension)


def same(one: Column, two: Column) -> bool:
    """Whether two columns agree in name, NULLs and bytes, and hold zeros where they are NULL."""
    return one.name == two.name and one.equals(two) and repr(_raw(one)) == repr(_raw(two))


def _raw(column: Column) -> tuple[Any, Any]:
    valid = None if column.valid is None else column.valid.tolist()
    return np.asarray(column.values).tolist(), valid
