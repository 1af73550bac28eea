"""Tables into files: .csv, .parquet and .jsonl (one JSON object per line), also of more rows than fit into memory.

A file is there once it is whole: it is written beside its place, and renamed.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import typer

from foresight.cli.files import SUFFIXES
from foresight.client.frames import Progress

# Takes the next rows of a file.
_Write = Callable[[pa.RecordBatch], None]


def check_suffix(path: Path) -> None:
    """Raises BadParameter for a file that cannot be written, by its suffix."""
    if path.suffix.lower() not in _WRITERS:
        raise typer.BadParameter(f"{path.name} is not one of {', '.join(SUFFIXES)}")


def write_file(table: pa.Table, path: Path) -> None:
    """Writes a table; the suffix says how. Raises BadParameter for another suffix or when it cannot be written."""
    write_batches(table.schema, table.to_batches(), path)


def write_batches(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], path: Path, progress: Progress | None = None
) -> int:
    """Writes rows as they come, and answers how many they were; see `write_file`. The file is there once it is whole.

    `progress` hears ("downloading", rows so far).
    """
    check_suffix(path)
    part = path.with_name(f".{path.name}.part")
    rows = 0
    try:
        with _WRITERS[path.suffix.lower()](schema, part) as write:
            for batch in batches:
                write(batch)
                rows += batch.num_rows
                if progress is not None:
                    progress("downloading", rows)
        part.replace(path)
    except OSError as error:
        raise typer.BadParameter(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return rows


@contextlib.contextmanager
def _csv_writer(schema: pa.Schema, path: Path) -> Iterator[_Write]:
    from pyarrow import csv

    fields = [pa.field(f.name, pa.string()) if pa.types.is_nested(f.type) else f for f in schema]
    with csv.CSVWriter(path, pa.schema(fields)) as writer:

        def write(batch: pa.RecordBatch) -> None:
            columns = [_as_text(column) if pa.types.is_nested(column.type) else column for column in batch.columns]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)))

        yield write


@contextlib.contextmanager
def _parquet_writer(schema: pa.Schema, path: Path) -> Iterator[_Write]:
    from pyarrow import parquet

    writer = parquet.ParquetWriter(path, schema)
    try:
        yield writer.write_batch
        writer.close()
    finally:
        # Its own end, when it is collected, must not write once more after a failure.
        writer.is_open = False


@contextlib.contextmanager
def _jsonl_writer(schema: pa.Schema, path: Path) -> Iterator[_Write]:
    with path.open("w", encoding="utf-8") as lines:

        def write(batch: pa.RecordBatch) -> None:
            for row in json_rows(pa.Table.from_batches([batch])):
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")

        yield write


def json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table as JSON has them."""
    return [{name: _json_value(value) for name, value in row.items()} for row in table.to_pylist()]


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_text(column: pa.Array) -> pa.Array:
    return pa.array([None if value is None else json.dumps(value) for value in column.to_pylist()], pa.string())


# The whole of a file, and its pieces.
_WRITERS: dict[str, Callable[[pa.Schema, Path], contextlib.AbstractContextManager[_Write]]] = {
    ".csv": _csv_writer,
    ".parquet": _parquet_writer,
    ".jsonl": _jsonl_writer,
}
