"""Whether transforms treat each row by itself, tried on example rows: whole, in another order, and in parts.

Serving runs a transform on the rows of several requests at once, training on all rows there are, so the result for a
row must not depend on the others. A function that cannot be tried, because it refuses the examples, counts as one that
does not; so does one whose results differ in the last bit only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foresight.values import Column, DataType, Field

Apply = Callable[[Mapping[str, Column]], Sequence[Column]]

_VALUES: dict[DataType, list[Any]] = {
    DataType.INT64: [3, 1, 17, 2, 11, 7, 23, 5],
    DataType.FLOAT64: [3.25, 0.1, 17.5, 2.75, 11.125, 0.7, 23.3, 5.5],
    DataType.BOOL: [True, False, False, True, True, False, True, False],
    DataType.STRING: ["b", "a", "jfk", "B", "lax", "a", "Zz", "jfk"],
    DataType.TIMESTAMP: [1_772_366_400_000_000 + hours * 3_600_000_000 for hours in (3, 1, 17, 2, 11, 7, 230, 5)],
}
_ROWS = len(_VALUES[DataType.INT64])
# Rows of the example that are NULL in the second try; the first has none.
_NULL_ROWS = (2, 5)
_ORDER = (5, 2, 7, 0, 3, 6, 1, 4)
_CUTS = ((0, 3), (3, _ROWS), *((row, row + 1) for row in range(_ROWS)))


def are_row_wise(apply: Apply, inputs: Sequence[Field]) -> bool:
    """Whether `apply` gives each example row the same bytes in any company; `inputs` are the fields that it takes."""
    for null_rows in ((), _NULL_ROWS):
        columns = {f.name: _example(f, shift, null_rows) for shift, f in enumerate(inputs)}
        try:
            whole = apply(columns)
            orders = [_ORDER, *(tuple(range(start, stop)) for start, stop in _CUTS)]
            for rows in orders:
                taken = apply({name: column.take(rows) for name, column in columns.items()})
                if not all(a.take(rows).equals(b) for a, b in zip(whole, taken, strict=True)):
                    return False
        except Exception:  # noqa: BLE001 - the functions are the user's own and may raise anything
            return False
    return True


def _example(field: Field, shift: int, null_rows: Sequence[int]) -> Column:
    """Rows of a field, in another order for each `shift`, so that inputs differ from one another."""
    if field.type is DataType.FLOAT_VECTOR:
        numbers = _VALUES[DataType.FLOAT64]
        values: list[Any] = [[numbers[(row + i) % _ROWS] for i in range(field.dimension)] for row in range(_ROWS)]
    else:
        values = _VALUES[field.type]
    shifted = values[shift % _ROWS :] + values[: shift % _ROWS]
    rows = [None if row in null_rows else value for row, value in enumerate(shifted)]
    return Column.build(field.name, field.type, rows, field.dimension)
