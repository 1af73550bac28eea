"""Statistics as Arrow tables, one row per column: the form that is kept, and the one that is answered.

Values of several types meet in one column, so minimum, maximum and top values are texts: integers in digits, floats
as the shortest text that reads as the same float, `true` and `false`, instants in ISO 8601 (UTC), texts as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from foresight.values import InvalidValue
from foresight.values.instants import instant_from_micros, micros_from_instant
from services.feature_store.statistics.comparison import ColumnComparison
from services.feature_store.statistics.description import ColumnStatistics, Statistics, TextLengths, Value

_NUMBERS = pa.list_(pa.float64())
_COUNTS = pa.list_(pa.int64())
_TEXTS = pa.list_(pa.string())
_HEAD = (
    ("column", pa.string()),
    ("type", pa.string()),
    ("rows", pa.int64()),
    ("nulls", pa.int64()),
    ("distinct", pa.int64()),
    ("min", pa.string()),
    ("max", pa.string()),
    ("mean", pa.float64()),
    ("standard_deviation", pa.float64()),
)
_TAIL = (
    ("histogram_edges", _NUMBERS),
    ("histogram_counts", _COUNTS),
    ("top_values", _TEXTS),
    ("top_counts", _COUNTS),
    ("length_min", pa.int64()),
    ("length_max", pa.int64()),
    ("length_mean", pa.float64()),
)
_KEPT = pa.schema([*_HEAD, ("ranks", _NUMBERS), *_TAIL])
_ANSWERED = pa.schema([*_HEAD, ("quantiles", _NUMBERS), *_TAIL])
_COMPARED = pa.schema(
    [
        ("column", pa.string()),
        ("type", pa.string()),
        ("reference_rows", pa.int64()),
        ("current_rows", pa.int64()),
        ("null_share_change", pa.float64()),
        ("mean_change", pa.float64()),
        ("population_stability_index", pa.float64()),
        ("kolmogorov_smirnov", pa.float64()),
        ("new_values_share", pa.float64()),
    ]
)


def answer_table(statistics: Statistics) -> pa.Table:
    """What GetStatistics answers."""
    rows = []
    for column in statistics.columns:
        shown = column.shown_values()
        row = _row(column, [value for value, _ in shown], [count for _, count in shown])
        rows.append(row | {"quantiles": list(column.quantiles)})
    return pa.Table.from_pylist(rows, _ANSWERED)


def comparison_table(compared: Sequence[ColumnComparison]) -> pa.Table:
    """What CompareStatistics answers."""
    return pa.Table.from_pylist([{name: getattr(row, name) for name in _COMPARED.names} for row in compared], _COMPARED)


def dump_statistics(statistics: Statistics) -> bytes:
    """The form that is kept."""
    rows = [_row(c, c.top_values, c.top_counts) | {"ranks": list(c.ranks)} for c in statistics.columns]
    schema = _KEPT.with_metadata({"rows": str(statistics.rows)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
    return bytes(sink.getvalue())


def load_statistics(data: bytes) -> Statistics:
    """The statistics of what `dump_statistics` made."""
    with pa.ipc.open_stream(data) as reader:
        rows = int(reader.schema.metadata[b"rows"])
        return Statistics(rows, tuple(_column(row) for row in reader.read_all().to_pylist()))


def _row(column: ColumnStatistics, top_values: Sequence[Value], top_counts: Sequence[int]) -> dict[str, Any]:
    lengths = column.lengths
    return {
        "column": column.name,
        "type": column.type,
        "rows": column.rows,
        "nulls": column.nulls,
        "distinct": column.distinct,
        "min": _text(column.minimum, column.type),
        "max": _text(column.maximum, column.type),
        "mean": column.mean,
        "standard_deviation": column.standard_deviation,
        "histogram_edges": list(column.histogram_edges),
        "histogram_counts": list(column.histogram_counts),
        "top_values": [_text(value, column.type) for value in top_values],
        "top_counts": list(top_counts),
        "length_min": None if lengths is None else lengths.minimum,
        "length_max": None if lengths is None else lengths.maximum,
        "length_mean": None if lengths is None else lengths.mean,
    }


def _column(row: dict[str, Any]) -> ColumnStatistics:
    lengths = None
    if row["length_mean"] is not None:
        lengths = TextLengths(row["length_min"], row["length_max"], row["length_mean"])
    type = row["type"]
    return ColumnStatistics(
        name=row["column"],
        type=type,
        rows=row["rows"],
        nulls=row["nulls"],
        distinct=row["distinct"],
        minimum=None if row["min"] is None else _value(row["min"], type),
        maximum=None if row["max"] is None else _value(row["max"], type),
        mean=row["mean"],
        standard_deviation=row["standard_deviation"],
        ranks=tuple(row["ranks"]),
        histogram_edges=tuple(row["histogram_edges"]),
        histogram_counts=tuple(row["histogram_counts"]),
        top_values=tuple(_value(text, type) for text in row["top_values"]),
        top_counts=tuple(row["top_counts"]),
        lengths=lengths,
    )


def _text(value: Value | None, type: str) -> str | None:
    match value:
        case None:
            return None
        case bool():
            return "true" if value else "false"
        case int() if type == "timestamp":
            try:
                return instant_from_micros(value).isoformat().replace("+00:00", "Z")
            except InvalidValue:
                # Beyond the years that instants have: microseconds, as they are.
                return str(value)
        case float():
            return repr(value)
    return str(value)


def _value(text: str, type: str) -> Value:
    if type == "string":
        return text
    if type == "bool":
        return text == "true"
    if type == "timestamp":
        return int(text) if text.lstrip("-").isdigit() else micros_from_instant(datetime.fromisoformat(text))
    return int(text) if type.startswith(("int", "uint")) else float(text)
