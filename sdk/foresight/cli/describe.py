"""The command that describes rows, and compares them with others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.markup import escape

from foresight.cli.arguments import Json, State, open_client, parse_instant
from foresight.cli.output_files import json_rows
from foresight.cli.terminal import note, show, table, working
from foresight.client import DatasetRows, GroupRows, LogRows
from foresight.client.statistics import AGAINST, ROWS_OF, StatisticsRows, python_value
from foresight.values import instant_from_micros

PANEL = "Features"
BARS = "▁▂▃▄▅▆▇█"
TEXT_COLUMNS_MAX = 24
TOP_VALUES = 3
# Longer integers are shown as other numbers are.
_LONG = 10**12
_DAY_US = 86_400_000_000
# By custom: what a population stability index says.
_SOME, _MUCH = 0.1, 0.25


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(rich_help_panel=PANEL)(describe)


def describe(
    group: Annotated[str, typer.Argument(help="Feature group; leave out for --dataset and --log.")] = "",
    commit: Annotated[
        int, typer.Option(min=0, help="Rows of this commit; with --latest: up to it. 0: the group's last.")
    ] = 0,
    latest: Annotated[
        bool, typer.Option("--latest", help="The latest row per key instead of a commit's rows.")
    ] = False,
    dataset: Annotated[str, typer.Option(metavar="ID", help="Rows of this training dataset …")] = "",
    split: Annotated[str, typer.Option(help="… of this split only: train, validation or test.")] = "",
    log: Annotated[str, typer.Option(metavar="VIEW", help="Logged predictions of this view …")] = "",
    deployment: Annotated[str, typer.Option(help="… of this deployment only,")] = "",
    from_event_time: Annotated[
        datetime | None,
        typer.Option("--from", parser=parse_instant, metavar="INSTANT", help="… from this event time on,"),
    ] = None,
    to_event_time: Annotated[
        datetime | None,
        typer.Option("--to", parser=parse_instant, metavar="INSTANT", help="… before this one; default: now."),
    ] = None,
    version: Annotated[int, typer.Option(min=0, help="Version of the group or view; 0: the latest.")] = 0,
    against: Annotated[
        str,
        typer.Option(
            metavar="ROWS",
            help="Compare with these: GROUP, GROUP@COMMIT, GROUP@latest, dataset:ID, dataset:ID/SPLIT or log:VIEW.",
        ),
    ] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Describe the values of a group, a training dataset or the prediction log; or compare them with others."""
    if sum(map(bool, (group, dataset, log))) != 1:
        raise typer.BadParameter("name one of GROUP, --dataset and --log", param_hint="'GROUP'")
    rows: StatisticsRows
    if group:
        rows = GroupRows(group, commit, latest, version)
    elif dataset:
        rows = DatasetRows(dataset, split)
    else:
        rows = LogRows(log, from_event_time, to_event_time, deployment, version)
    reference = parse_rows(against) if against else None
    with open_client(state) as client, working() as progress:
        progress("describing", 0)
        if reference is None:
            found = client.statistics(rows, output="arrow")
        else:
            found = client.compare_statistics(reference, rows, output="arrow")
    told = {key.decode(): value.decode() for key, value in (found.schema.metadata or {}).items()}
    columns = found.to_pylist()
    if reference is not None:
        heading = f"[bold]{escape(told[ROWS_OF])}[/] against [bold]{escape(told[AGAINST])}[/]"
        show(as_json, json_rows(found), heading, table(comparison_rows(columns), "they have no column in common"))
        if not as_json:
            note(
                f"PSI {_SOME:g} and more is some change, {_MUCH:g} and more is much; KS: distance of the distributions"
            )
        return
    count = columns[0]["rows"] if columns else 0
    heading = f"[bold]{escape(told[ROWS_OF])}[/]: {count:,} row{'' if count == 1 else 's'}"
    wide, narrow = [described_row(column) for column in columns], [narrow_row(column) for column in columns]
    show(as_json, json_rows(found), heading, table(wide, "no columns", narrower=narrow))


def parse_rows(text: str) -> StatisticsRows:
    """The rows of `--against`. Raises BadParameter."""
    kind, colon, rest = text.partition(":")
    if colon and kind == "dataset" and rest:
        dataset, _, split = rest.partition("/")
        return DatasetRows(dataset, split)
    if colon and kind == "log" and rest:
        return LogRows(rest)
    group, at, which = text.partition("@")
    if colon or not group or (at and which != "latest" and not which.isdecimal()):
        raise typer.BadParameter(
            f"{text!r} is not GROUP, GROUP@COMMIT, GROUP@latest, dataset:ID, dataset:ID/SPLIT or log:VIEW",
            param_hint="'--against'",
        )
    return GroupRows(group, int(which) if which.isdecimal() else 0, which == "latest")


def described_row(column: Mapping[str, Any]) -> dict[str, Any]:
    """A column of statistics as a person reads it at a glance: its distribution lies between minimum and maximum."""
    return {
        "column": column["column"],
        "type": _type(column["type"]),
        "nulls": _share(column["nulls"], column["rows"]),
        "distinct": column["distinct"],
        "min": short(column["min"], column["type"]),
        "distribution": bars(column["histogram_counts"]) or None,
        "max": short(column["max"], column["type"]),
        "mean": _mean(column),
        "deviation": _deviation(column),
        "most_frequent": most_frequent(column),
    }


def narrow_row(column: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a narrow terminal: numbers by their range and mean, other values by the most frequent ones."""
    values = most_frequent(column)
    low, high = (short(column[name], column["type"]) for name in ("min", "max"))
    if column["mean"] is not None and column["type"] != "bool":
        deviation = _deviation(column)
        spread = "" if deviation is None else f" ± {deviation}"
        values = [f"{low} … {high}", f"mean {_mean(column)}{spread}"]
    elif column["distinct"] and column["distinct"] > len(values):
        values = [*(values or [f"{low} … {high}"]), f"{column['distinct']:,} different"]
    counts = column["histogram_counts"]
    return {
        "column": column["column"],
        "type": _type(column["type"]),
        "nulls": _share(column["nulls"], column["rows"]),
        "distribution": bars([sum(counts[i : i + 2]) for i in range(0, len(counts), 2)]) or None,
        "values": values,
    }


def most_frequent(column: Mapping[str, Any]) -> list[str]:
    """The most frequent values, each with its share."""
    values = column["rows"] - column["nulls"]
    top = zip(column["top_values"][:TOP_VALUES], column["top_counts"][:TOP_VALUES], strict=True)
    return [f"{short(value, column['type'])} {_share(count, values)}" for value, count in top]


def comparison_rows(columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compared columns, those that changed most first."""
    ordered = sorted(columns, key=lambda row: -(row["population_stability_index"] or 0.0))
    return [
        {
            "column": row["column"],
            "type": row["type"],
            "change": _judged(row["population_stability_index"]),
            "PSI": _fixed(row["population_stability_index"]),
            "KS": _fixed(row["kolmogorov_smirnov"]),
            "mean_moved": None if row["mean_change"] is None else f"{row['mean_change']:+.3g} sd",
            "nulls": _points(row["null_share_change"]),
            "new_values": None if row["new_values_share"] is None else f"{row['new_values_share']:.1%}",
        }
        for row in ordered
    ]


def bars(counts: Sequence[int]) -> str:
    """A histogram as small bars; a bin with values is never as low as one without."""
    highest = max(counts, default=0)
    if not highest:
        return ""
    return "".join(BARS[math.ceil(count / highest * len(BARS)) - 1] if count else " " for count in counts)


def number(value: float) -> str:
    """A number to four digits, in plain notation where that is short."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e7:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.3e}"


def short(text: str | None, type: str) -> str | None:
    """A minimum, maximum or frequent value; long texts are cut."""
    if text is None:
        return None
    value = python_value(text, type)
    if isinstance(value, datetime):
        return _day(value)
    if isinstance(value, bool):
        return text
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < _LONG else number(value)
    if isinstance(value, float):
        return number(value)
    shown = text if text and text.isprintable() and text.strip() == text else repr(text)
    return shown if len(shown) <= TEXT_COLUMNS_MAX else shown[: TEXT_COLUMNS_MAX - 1] + "…"


def _mean(column: Mapping[str, Any]) -> str | None:
    mean, type = column["mean"], column["type"]
    if mean is None:
        return None
    if type == "timestamp":
        return _day(instant_from_micros(int(mean)))
    return f"{mean:.1%} true" if type == "bool" else number(mean)


def _deviation(column: Mapping[str, Any]) -> str | None:
    # Of bools the mean says it too; of instants it is a time, which nobody reads in microseconds.
    if column["standard_deviation"] is None or column["type"] == "bool":
        return None
    if column["type"] == "timestamp":
        return f"{number(column['standard_deviation'] / _DAY_US)} days"
    return number(column["standard_deviation"])


def _day(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _type(name: str) -> str:
    return "norms" if name == "float_vector" else name


def _share(part: int, whole: int) -> str | None:
    if not part or not whole:
        return "0" if whole else None
    return "<0.1%" if part / whole < 0.001 else ">99.9%" if 0.999 < part / whole < 1 else f"{part / whole:.1%}"


def _judged(index: float | None) -> str | None:
    if index is None:
        return None
    return "much" if index >= _MUCH else "some" if index >= _SOME else "none"


def _fixed(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _points(change: float | None) -> str | None:
    return None if change is None else "0" if change == 0 else f"{100 * change:+.1f} points"
