"""Files become tables of the wanted types, and nothing is guessed."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typer

from foresight.cli.files import check_columns, read_file, read_pieces
from foresight.cli.output_files import json_rows, write_file
from foresight.client import DataType, Field, InvalidValue
from foresight.client.frames import EVENT_TIME

NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)
FIELDS = (
    Field("tailnum", DataType.STRING),
    EVENT_TIME,
    Field("seats", DataType.INT64),
    Field("ratio", DataType.FLOAT64),
    Field("late", DataType.BOOL),
)
TABLE = pa.table(
    {
        "tailnum": ["0123", None, "NA"],
        "event_time": pa.array([NOON, NOON - timedelta(microseconds=1), None], pa.timestamp("us", "UTC")),
        "seats": pa.array([1, None, 2**53 + 1], pa.int64()),
        "ratio": [1.5, None, 2.0],
        "late": [True, None, False],
    }
)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_table_survives_each_kind_of_file(tmp_path: Path, suffix: str) -> None:
    """Texts that look like numbers stay texts, quoted ones that look missing too, and NULL stays NULL."""
    file = tmp_path / f"table{suffix}"
    write_file(TABLE, file)
    assert read_file(file, FIELDS).equals(TABLE)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_file_in_pieces_is_the_whole_file(tmp_path: Path, suffix: str) -> None:
    """All pieces have the same columns, also one that only the last rows have a value in."""
    file = tmp_path / f"table{suffix}"
    rows = 70_000
    table = pa.table(
        {
            "tailnum": [f"N{i}" for i in range(rows)],
            "hour": pa.array([i * 1_000_000 for i in range(rows)], pa.timestamp("us", "UTC")),
            "seats": pa.array([None] * (rows - 1) + [7], pa.int64()),
        }
    )
    write_file(table, file)
    pieces = list(read_pieces(file, FIELDS, event_time="hour"))
    assert len(pieces) == (1 if suffix == ".csv" else 2)
    assert pa.concat_tables(pieces).equals(read_file(file, FIELDS, event_time="hour"))


def test_missing_cells_of_csv_are_null_unless_quoted(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text('tailnum,seats\nNA,NA\n"NA",4\n,\nNULL,NaN\n')
    table = read_file(file, FIELDS)
    assert table["tailnum"].to_pylist() == [None, "NA", None, None]
    assert table["seats"].to_pylist() == [None, 4, None, None]


def test_instants_keep_their_moment_whatever_their_zone(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"event_time": "2013-03-01T07:00:00-05:00"}\n\n{"event_time": "2013-03-01T12:00:00Z"}\n')
    assert read_file(file, FIELDS)["event_time"].to_pylist() == [NOON, NOON]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_bytes_that_are_no_table_are_refused_in_printable_words(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"t{suffix}"
    file.write_bytes(b"a\x1b[31m\xf9,\xff\n\x80,1,2\n\x00")
    with pytest.raises(InvalidValue) as refused:
        read_file(file, FIELDS)
    assert str(refused.value).isprintable()


def test_another_column_can_be_the_event_time(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("landed,event_time\n2013-03-01T12:00:00Z,2000-01-01T00:00:00Z\n")
    table = read_file(file, FIELDS, event_time="landed")
    assert table.to_pylist() == [{"event_time": NOON}]
    with pytest.raises(InvalidValue, match=r"left: is not a column of t.csv, which has landed, event_time"):
        read_file(file, FIELDS, event_time="left")


def test_a_parquet_file_keeps_its_own_zone_only_when_it_has_one(tmp_path: Path) -> None:
    from pyarrow import parquet

    zone = timezone(timedelta(hours=5))
    parquet.write_table(pa.table({"event_time": [NOON.astimezone(zone)]}), tmp_path / "zoned.parquet")
    assert read_file(tmp_path / "zoned.parquet", FIELDS)["event_time"].to_pylist() == [NOON]
    parquet.write_table(pa.table({"event_time": [NOON.replace(tzinfo=None)]}), tmp_path / "naive.parquet")
    with pytest.raises(InvalidValue, match="event_time: has no time zone"):
        read_file(tmp_path / "naive.parquet", FIELDS)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", "event_time\n2013-03-01T12:00:00\n", "event_time: .*has no time zone"),
        ("t.csv", "event_time\nnoon\n", "event_time: 'noon' is not an instant"),
        ("t.csv", "seats\nmany\n", "seats: value 'many' in t.csv is not of type int64"),
        ("t.csv", "", "t.csv: "),
        ("t.parquet", "PAR", "t.parquet: is not a Parquet file"),
        ("t.jsonl", "{", "t.jsonl: line 1 is not JSON"),
        ("t.jsonl", "[1]", "t.jsonl: line 1 is not a JSON object"),
        ("t.jsonl", '{"seats": 1.5}', "seats: is int64"),
        ("t.jsonl", '{"late": "yes"}', "late: is bool, and the data has texts"),
    ],
)
def test_a_file_with_something_else_in_it_is_refused(tmp_path: Path, name: str, content: str, says: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(InvalidValue, match=says):
        read_file(file, FIELDS)


def test_only_three_kinds_of_files_are_known(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"\.csv, \.parquet, \.jsonl"):
        read_file(tmp_path / "t.xlsx", FIELDS)
    with pytest.raises(typer.BadParameter, match=r"\.csv, \.parquet, \.jsonl"):
        write_file(TABLE, tmp_path / "t.xlsx")
    with pytest.raises(typer.BadParameter, match="cannot write"):
        write_file(TABLE, tmp_path / "nowhere" / "t.csv")
    with pytest.raises(typer.BadParameter, match="cannot read"):
        read_file(tmp_path / "none.jsonl", FIELDS)


def test_needed_columns_are_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"value: is not a column of f.csv, which has tailnum.*; name it"):
        check_columns(TABLE, Path("f.csv"), "late", "value", hint="name it")


def test_rows_as_json_have_plain_values() -> None:
    rows: list[dict[str, Any]] = json_rows(TABLE.slice(0, 1).append_column("nan", pa.array([float("nan")])))
    assert rows == [
        {"tailnum": "0123", "event_time": "2013-03-01T12:00:00Z", "seats": 1, "ratio": 1.5, "late": True, "nan": None}
    ]
