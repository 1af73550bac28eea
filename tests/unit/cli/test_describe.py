"""Descriptions of rows as a person reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import typer
from rich.console import Console

from foresight.cli.describe import (
    bars,
    comparison_rows,
    described_row,
    narrow_row,
    number,
    parse_rows,
    short,
)
from foresight.cli.terminal import table
from foresight.client import DatasetRows, GroupRows, LogRows

QUANTILES = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def column(**figures: Any) -> dict[str, Any]:
    """A row of a table of statistics."""
    empty = {"distinct": None, "min": None, "max": None, "mean": None, "standard_deviation": None}
    lists: dict[str, list[Any]] = {
        name: [] for name in ("quantiles", "histogram_edges", "histogram_counts", "top_values", "top_counts")
    }
    return {"column": "x", "type": "float64", "rows": 10, "nulls": 0, **empty, **lists, **figures}


WIND = column(
    column="wind",
    nulls=1,
    distinct=9,
    min="0.5",
    max="12345.678",
    mean=3.25,
    standard_deviation=1.5,
    quantiles=QUANTILES,
    histogram_counts=[8, 0, 1],
)
CARRIER = column(
    column="carrier", type="string", distinct=4, min="AA", max="UA", top_values=["AA", "UA"], top_counts=[6, 2]
)


def drawn(rows: Any, narrower: Any, width: int) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table(rows, "", narrower=narrower))
    return capture.get()


def test_a_column_of_numbers_shows_its_distribution_between_its_ends() -> None:
    assert described_row(WIND) == {
        "column": "wind",
        "type": "float64",
        "nulls": "10.0%",
        "distinct": 9,
        "min": "0.5",
        "distribution": "█ ▁",
        "max": "12,346",
        "mean": "3.25",
        "deviation": "1.5",
        "most_frequent": [],
    }
    assert narrow_row(WIND)["values"] == ["0.5 … 12,346", "mean 3.25 ± 1.5"]


def test_texts_show_their_most_frequent_values_and_how_many_there_are() -> None:
    assert described_row(CARRIER)["most_frequent"] == ["AA 60.0%", "UA 20.0%"]
    assert narrow_row(CARRIER)["values"] == ["AA 60.0%", "UA 20.0%", "4 different"]
    ids = column(type="string", distinct=10, min="a", max="z")
    assert narrow_row(ids)["values"] == ["a … z", "10 different"]


def test_instants_and_bools_are_not_shown_as_numbers() -> None:
    day = 86_400_000_000
    times = column(
        type="timestamp",
        min="2013-01-01T05:00:00Z",
        max="2013-12-31T05:00:00.5Z",
        mean=182.0 * day,
        standard_deviation=day,
    )
    assert narrow_row(times)["values"] == ["2013-01-01 05:00 … 2013-12-31 05:00", "mean 1970-07-02 00:00 ± 1 days"]
    late = column(
        type="bool", distinct=2, min="false", max="true", mean=0.25, top_values=["false", "true"], top_counts=[7, 3]
    )
    assert described_row(late)["mean"] == "25.0% true"
    assert narrow_row(late)["values"] == ["false 70.0%", "true 30.0%"]


def test_a_column_of_nulls_has_nothing_to_show() -> None:
    row = described_row(column(nulls=10, distinct=0))
    assert (row["nulls"], row["distribution"], row["most_frequent"]) == ("100.0%", None, [])


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_every_terminal_gets_every_column(width: int) -> None:
    rows = [WIND, CARRIER]
    text = drawn([described_row(row) for row in rows], [narrow_row(row) for row in rows], width)
    assert "wind" in text
    assert "carrier" in text
    assert "█ ▁" in text or "█▁" in text
    assert max(map(len, text.splitlines())) <= width
    assert ("most frequent" in text) == (width >= 120)


def test_bars_show_every_bin_that_has_values() -> None:
    assert bars([]) == ""
    assert bars([0, 0]) == ""
    assert bars([1, 1_000_000, 0, 500_000]) == "▁█ ▄"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.1, "0.1"),
        (-3.14159, "-3.142"),
        (1234.5, "1,234"),
        (999_999.0, "999,999"),
        (1e7, "1.000e+07"),
        (0.001, "0.001"),
        (5e-324, "4.941e-324"),
        (1.7e308, "1.700e+308"),
    ],
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "type", "text"),
    [
        (None, "string", None),
        ("", "string", "''"),
        ("a\nb", "string", "'a\\nb'"),
        ("x" * 30, "string", "x" * 23 + "…"),
        ("-9223372036854775808", "int64", "-9.223e+18"),
        ("20130101", "int64", "20,130,101"),
        ("true", "bool", "true"),
        ("4611686018427387904", "timestamp", "4.612e+18"),
    ],
)
def test_values_are_shown_as_short_as_they_can_be_told_apart(value: str | None, type: str, text: str | None) -> None:
    assert short(value, type) == text


def test_what_changed_most_comes_first() -> None:
    same = {
        "column": "a",
        "type": "int64",
        "null_share_change": 0.0,
        "mean_change": 0.0,
        "population_stability_index": 0.01,
        "kolmogorov_smirnov": 0.02,
        "new_values_share": None,
    }
    changed = {
        "column": "b",
        "type": "string",
        "null_share_change": -0.125,
        "mean_change": None,
        "population_stability_index": 0.3,
        "kolmogorov_smirnov": None,
        "new_values_share": 0.5,
    }
    rows = comparison_rows([same, changed])
    assert [(row["column"], row["change"]) for row in rows] == [("b", "much"), ("a", "none")]
    assert (rows[0]["nulls"], rows[0]["new_values"], rows[0]["KS"]) == ("-12.5 points", "50.0%", None)
    assert (rows[1]["nulls"], rows[1]["PSI"], rows[1]["mean_moved"]) == ("0", "0.010", "+0 sd")


def test_rows_to_compare_with_are_named_in_a_word() -> None:
    assert parse_rows("weather") == GroupRows("weather")
    assert parse_rows("weather@17") == GroupRows("weather", 17)
    assert parse_rows("weather@latest") == GroupRows("weather", latest=True)
    assert parse_rows("dataset:0197/train") == DatasetRows("0197", "train")
    assert parse_rows("log:judged") == LogRows("judged")


@pytest.mark.parametrize("text", ["", "weather@", "weather@x", "dataset:", "log:", "other:x", "@5"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="dataset:ID"):
        parse_rows(text)


def test_statistics_become_values_of_their_type_in_pandas() -> None:
    from foresight.client.statistics import _answer

    rows = {
        "column": ["n", "s", "b", "t"],
        "type": ["int64", "string", "bool", "timestamp"],
        "min": ["-5", "a", "false", "2013-01-01T00:00:00Z"],
        "max": ["5", None, "true", "2013-01-02T00:00:00Z"],
        "top_values": [["5", "1"], ["a"], ["true"], []],
    }
    frame = _answer(pa.table(rows), {"rows_of": "weather v1, commit 3"}, "pandas")
    assert frame.attrs == {"rows_of": "weather v1, commit 3"}
    assert frame["min"][0] == -5
    assert type(frame["min"][0]) is int
    assert frame["max"][1] is None
    assert (frame["min"][2], frame["min"][3].year) == (False, 2013)
    assert list(map(list, frame["top_values"])) == [[5, 1], ["a"], [True], []]
    assert np.array_equal(frame.columns, list(rows))
