"""What a pipeline's function returns, in a form that can be sent twice: what comes in parts goes through a file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from foresight.client.frames import DELETED, EVENT_TIME, KNOWN_AT, to_table
from foresight.values import FeatureGroup, InvalidValue


@contextlib.contextmanager
def sendable(rows: Any, group: FeatureGroup) -> Iterator[tuple[pa.Table | Path, int]]:
    """Rows for a group, with the group's types where they are known, and how many there are.

    `rows`: what `Client.write` takes, or None. What comes in parts (an iterator, a reader) is written to a temporary
    file first, and the table is a view of it, valid inside of the block: memory holds one part at a time, the function
    is through before anything is sent, and a lost connection costs no second run. Raises InvalidValue.
    """
    fields = (*group.entity_keys, EVENT_TIME, *group.features, KNOWN_AT, DELETED)
    if isinstance(rows, Path):
        yield rows, _rows_of_file(rows)
    elif isinstance(rows, Iterator):
        with _in_file((to_table(part, fields) for part in rows), _no_rows(group)) as table:
            yield table, table.num_rows
    else:
        table = _no_rows(group) if rows is None else to_table(rows, fields)
        yield table, table.num_rows


@contextlib.contextmanager
def _in_file(parts: Iterator[pa.Table], empty: pa.Table) -> Iterator[pa.Table]:
    first = next(parts, empty)
    with tempfile.TemporaryDirectory(prefix="foresight-rows-") as folder:
        file = Path(folder, "rows.arrow")
        with pa.ipc.new_file(str(file), first.schema) as writer:
            writer.write_table(first)
            for number, part in enumerate(parts, 2):
                writer.write_table(_like(part, first.schema, number))
        with pa.memory_map(str(file)) as mapped:
            yield pa.ipc.open_file(mapped).read_all()


def _like(part: pa.Table, schema: pa.Schema, number: int) -> pa.Table:
    """The table with the columns of the first one, in their order."""
    if set(part.column_names) != set(schema.names):
        different = ", ".join(sorted(set(part.column_names) ^ set(schema.names)))
        raise InvalidValue("data", f"has other columns in table {number} than in the first: {different}")
    part = part.select(schema.names)
    if part.schema.types != schema.types:
        raise InvalidValue("data", f"has other types in table {number} than in the first")
    return part.cast(schema)


def collect(rows: Any, group: FeatureGroup) -> pa.Table:
    """Rows for a group as one table in memory: for what is made of one batch of messages."""
    fields = (*group.entity_keys, EVENT_TIME, *group.features, KNOWN_AT, DELETED)
    if isinstance(rows, Iterator):
        return together([to_table(part, fields) for part in rows], group)
    return _no_rows(group) if rows is None else to_table(rows, fields)


def together(tables: Sequence[pa.Table], group: FeatureGroup) -> pa.Table:
    """Tables one after the other; a column that one lacks is NULL there. Raises InvalidValue for types that differ."""
    if not tables:
        return _no_rows(group)
    try:
        return pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InvalidValue("data", f"has tables that do not fit together: {error}") from None


def _no_rows(group: FeatureGroup) -> pa.Table:
    """Without `known_at` and `deleted`: nothing is asserted."""
    return to_table([], (*group.entity_keys, EVENT_TIME, *group.features))


def _rows_of_file(path: Path) -> int:
    from pyarrow import parquet

    try:
        return int(parquet.read_metadata(path).num_rows)
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidValue("data", f"{path.name} cannot be read as a Parquet file: {error}") from None
