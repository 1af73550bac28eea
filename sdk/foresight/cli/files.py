"""Tables in files: .csv, .parquet and .jsonl (one JSON object per line), read with the types that are wanted.

In CSV an empty cell, NA, NULL and NaN are missing, unless quoted. Instants are ISO 8601 with a time zone.
"""

from __future__ import annotations

import contextlib
import csv as text_tables
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import typer

from foresight.client import DataType, Field, InvalidValue
from foresight.client.frames import to_table
from foresight.tables import arrow_type

SUFFIXES = (".csv", ".parquet", ".jsonl")
# What is read at once of a file that is read in pieces.
_PIECE_ROWS = 65_536
_PIECE_BYTES = 8 << 20
_WRONG_CELL = re.compile(r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error to ([^:]+): (.*)")
_MISSING = ["", "NA", "N/A", "NULL", "null", "NaN", "nan"]


def read_file(path: Path, fields: Iterable[Field], *, event_time: str = "event_time") -> pa.Table:
    """The table of a file, with the columns in `fields` of their types and the column `event_time` under that name.

    Raises BadParameter for a file that cannot be read, InvalidValue naming a column that has another type.
    """
    known = _known(fields, event_time)
    with _reading(path):
        return _typed(_READERS[path.suffix.lower()][0](path, known), path, known, event_time)


def read_pieces(path: Path, fields: Iterable[Field], *, event_time: str = "event_time") -> Iterator[pa.Table]:
    """As `read_file`, piece by piece, for files that do not fit into memory; all pieces have the same columns."""
    known = _known(fields, event_time)
    with _reading(path):
        for table in _READERS[path.suffix.lower()][1](path, known):
            yield _typed(table, path, known, event_time)


def _known(fields: Iterable[Field], event_time: str) -> dict[str, Field]:
    known = {field.name: field for field in fields}
    if event_time != "event_time" and "event_time" in known:
        known[event_time] = Field(event_time, DataType.TIMESTAMP)
    return known


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    if path.suffix.lower() not in _READERS:
        raise typer.BadParameter(f"{path.name} is not one of {', '.join(SUFFIXES)}")
    try:
        yield
    except OSError as error:
        raise typer.BadParameter(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InvalidValue(path.name, "is not text in UTF-8") from None


def _typed(table: pa.Table, path: Path, known: dict[str, Field], event_time: str) -> pa.Table:
    """The table with the types that are wanted, and the column `event_time` under that name."""
    for name in table.column_names:
        field = known.get(name)
        if field is not None and field.type is DataType.TIMESTAMP and pa.types.is_string(table.schema.field(name).type):
            position = table.column_names.index(name)
            table = table.set_column(position, name, _instants(table.column(name), name))
    table = to_table(table, known.values())
    if event_time == "event_time":
        return table
    check_columns(table, path, event_time)
    if "event_time" in table.column_names:
        table = table.drop_columns(["event_time"])
    return table.rename_columns(["event_time" if name == event_time else name for name in table.column_names])


def check_rows(table: pa.Table, path: Path) -> None:
    """Raises InvalidValue when the table of a file is empty."""
    if table.num_rows == 0:
        raise InvalidValue(path.name, "has no rows")


def check_columns(table: pa.Table, path: Path, *names: str, hint: str = "") -> None:
    """Raises InvalidValue unless the table of a file has every column named; `hint` says what to do."""
    for name in names:
        if name not in table.column_names:
            found = ", ".join(table.column_names)
            raise InvalidValue(name, f"is not a column of {path.name}, which has {found}" + (hint and f"; {hint}"))


def _read_csv(path: Path, known: dict[str, Field]) -> pa.Table:
    from pyarrow import csv

    try:
        return csv.read_csv(path, convert_options=_csv_options(known))
    except pa.ArrowInvalid as error:
        raise _wrong_csv(path, _first_line(error)) from None


def _csv_options(known: dict[str, Field]) -> Any:
    from pyarrow import csv

    # Instants as text: Arrow would take those without a zone for UTC.
    types = {
        name: pa.string() if field.type is DataType.TIMESTAMP else arrow_type(field)
        for name, field in known.items()
        if field.type is not DataType.FLOAT_VECTOR
    }
    return csv.ConvertOptions(
        column_types=types,
        null_values=_MISSING,
        true_values=["true", "True", "TRUE", "1"],
        false_values=["false", "False", "FALSE", "0"],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )


def _csv_pieces(path: Path, known: dict[str, Field]) -> Iterator[pa.Table]:
    from pyarrow import csv

    try:
        reading = csv.ReadOptions(block_size=_PIECE_BYTES)
        with csv.open_csv(path, read_options=reading, convert_options=_csv_options(known)) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        raise _wrong_csv(path, _first_line(error)) from None


def _wrong_csv(path: Path, text: str) -> InvalidValue:
    """What Arrow says of a CSV file, with the column's name instead of its number counted from 0."""
    if (cell := _WRONG_CELL.match(text)) is None:
        return InvalidValue(path.name, f"is not a table of the wanted types: {text}")
    position, type, reason = cell.groups()
    with path.open(encoding="utf-8", newline="") as lines:
        names = next(text_tables.reader(lines))
    return InvalidValue(names[int(position)], f"{reason} in {path.name} is not of type {type}".removeprefix("invalid "))


def _first_line(error: Exception) -> str:
    """Text that a terminal can show, also of an error that quotes bytes of a file."""
    return "".join(character if character.isprintable() else "·" for character in str(error).split("\n", 1)[0])


def _read_parquet(path: Path, known: dict[str, Field]) -> pa.Table:
    from pyarrow import parquet

    try:
        return parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise InvalidValue(path.name, f"is not a Parquet file: {_first_line(error)}") from None


def _parquet_pieces(path: Path, known: dict[str, Field]) -> Iterator[pa.Table]:
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(_PIECE_ROWS):
                yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        raise InvalidValue(path.name, f"is not a Parquet file: {_first_line(error)}") from None


def _read_jsonl(path: Path, known: dict[str, Field]) -> pa.Table:
    return _json_table(list(_json_lines(path)), known)


def _jsonl_pieces(path: Path, known: dict[str, Field]) -> Iterator[pa.Table]:
    # Any line may be the first with a column.
    names = dict.fromkeys(name for row in _json_lines(path) for name in row)
    rows = _json_lines(path)
    while some := list(itertools.islice(rows, _PIECE_ROWS)):
        yield _json_table([{name: row.get(name) for name in names} for row in some], known)


def _json_table(rows: list[dict[str, Any]], known: dict[str, Field]) -> pa.Table:
    # Instants are still text here.
    return to_table(rows, [field for field in known.values() if field.type is not DataType.TIMESTAMP])


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InvalidValue(path.name, f"line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise InvalidValue(path.name, f"line {number} is not a JSON object")
            yield row


def _instants(texts: pa.ChunkedArray, name: str) -> pa.Array:
    values: list[datetime | None] = []
    for text in texts.to_pylist():
        try:
            instant = None if text is None else datetime.fromisoformat(text)
        except ValueError:
            raise InvalidValue(name, f"{text[:60]!r} is not an instant such as 2013-03-01T00:00:00Z") from None
        if instant is not None and instant.tzinfo is None:
            raise InvalidValue(name, f"{text!r} has no time zone; add Z for UTC, or an offset such as +01:00")
        values.append(None if instant is None else instant.astimezone(UTC))
    return pa.array(values, pa.timestamp("us", "UTC"))


_READERS: dict[
    str,
    tuple[
        Callable[[Path, dict[str, Field]], pa.Table],
        Callable[[Path, dict[str, Field]], Iterator[pa.Table]],
    ],
] = {
    ".csv": (_read_csv, _csv_pieces),
    ".parquet": (_read_parquet, _parquet_pieces),
    ".jsonl": (_read_jsonl, _jsonl_pieces),
}
