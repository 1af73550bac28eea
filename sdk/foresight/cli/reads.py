"""Commands that read features: read (rows of a group) and join (a spine with a view, as of each row's time)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from foresight.cli.arguments import Json, State, open_client, parse_instant, parse_value
from foresight.cli.files import read_file
from foresight.cli.output_files import check_suffix, json_rows, write_batches
from foresight.cli.terminal import note, show, table, working
from foresight.client import FeatureGroup, Field, InvalidValue, RowsOf, rows_of
from foresight.client.features import spine_fields
from foresight.client.frames import EVENT_TIME, RowStream
from foresight.client.queries import Condition

PANEL = "Features"
_CONDITION = re.compile(
    r"\s*([a-z][a-z0-9_]*)\s*(is\s+not\s+null\b|is\s+null\b|in\b|!=|<=|>=|==|=|<|>)\s*(.*?)\s*\Z",
    re.IGNORECASE | re.DOTALL,
)

Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="CONDITION",
        help="'wind>5', 'origin in JFK,LGA', 'gust is null'; with = != < <= > >= too. Repeat it: all have to hold.",
    ),
]
Keys = Annotated[
    Path | None,
    typer.Option("--keys", exists=True, dir_okay=False, help="Only the keys in this .csv, .parquet or .jsonl file."),
]
Latest = Annotated[bool, typer.Option("--latest", help="Only the latest row of each key; conditions apply to it.")]
From = Annotated[
    datetime | None, typer.Option("--from", parser=parse_instant, metavar="INSTANT", help="Event times from here on.")
]
To = Annotated[
    datetime | None, typer.Option("--to", parser=parse_instant, metavar="INSTANT", help="Event times before this.")
]
AsOf = Annotated[
    datetime | None,
    typer.Option("--as-of", parser=parse_instant, metavar="INSTANT", help="Only what was committed by then."),
]
Commit = Annotated[int, typer.Option("--commit", min=0, help="Only commits up to this one; 0: all.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write all rows to this .csv, .parquet or .jsonl file.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many rows are shown without --out.")]


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (read, join):
        app.command(rich_help_panel=PANEL)(command)


def read(
    group: Annotated[str, typer.Argument(help="Feature group.")],
    version: Annotated[int, typer.Option(min=0, help="Version of the group; 0: the latest.")] = 0,
    where: Where = None,
    keys: Keys = None,
    latest: Latest = False,
    from_event_time: From = None,
    to_event_time: To = None,
    as_of: AsOf = None,
    commit: Commit = 0,
    out: Out = None,
    limit: Limit = 20,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Read the rows of a feature group, in commit order: the first ones here, all of them with --out."""
    _check_out(out)
    with open_client(state) as client:
        described = client.group(group, version)
        rows = rows_of(
            group,
            version=described.version,
            where=parse_conditions(where or (), described),
            keys=None if keys is None else read_file(keys, described.entity_keys),
            latest=latest,
            from_event_time=from_event_time,
            to_event_time=to_event_time,
        )
        with client.stream(rows, commit=commit, as_of_time=as_of) as batches:
            _deliver(batches, f"{described.name} v{described.version}", out, limit, as_json)


def join(
    view: Annotated[str, typer.Argument(help="Feature view.")],
    version: Annotated[int, typer.Option(min=0, help="Version of the view; 0: the latest.")] = 0,
    spine: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File with keys, event_time and request features."),
    ] = None,
    group: Annotated[str, typer.Option("--rows-of", help="Make the spine of the rows of this group instead.")] = "",
    where: Where = None,
    keys: Keys = None,
    latest: Latest = False,
    from_event_time: From = None,
    to_event_time: To = None,
    at: Annotated[
        datetime | None,
        typer.Option(parser=parse_instant, metavar="INSTANT", help="Event time of every row, as for scoring."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="COLUMN=NAME", help="A column of the group under another name in the spine."),
    ] = None,
    known_by: Annotated[bool, typer.Option("--known-by", help="Only what was known at each row's event time.")] = False,
    as_of: AsOf = None,
    commit: Commit = 0,
    out: Out = None,
    limit: Limit = 20,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Join a spine with the features of a view as of each row's event time: training or scoring data.

    The spine is a file, or made of the rows of a group: `foresight join delays --rows-of flights --at INSTANT`.
    """
    _check_out(out)
    if (spine is None) == (not group):
        raise typer.BadParameter("give either --spine FILE or --rows-of GROUP")
    made_of_rows = [where, keys, latest, from_event_time, to_event_time, at, columns]
    if spine is not None and any(option not in (None, False) for option in made_of_rows):
        raise typer.BadParameter("conditions, keys, times and columns go with --rows-of")
    with open_client(state) as client:
        described = client.view(view, version)
        rows: RowsOf | pa.Table | Path
        if spine is not None:
            # Parquet is sent batch by batch, whatever its size.
            rows = spine if spine.suffix.lower() == ".parquet" else read_file(spine, spine_fields(described))
        else:
            known = client.group(group)
            rows = rows_of(
                group,
                version=known.version,
                where=parse_conditions(where or (), known),
                keys=None if keys is None else read_file(keys, known.entity_keys),
                latest=latest,
                from_event_time=from_event_time,
                to_event_time=to_event_time,
                at=at,
                columns=_parse_columns(columns or ()),
            )
        with client.stream_as_of(
            view, rows, version=described.version, known_by=known_by, commit=commit, as_of_time=as_of
        ) as batches:
            _deliver(batches, f"{described.name} v{described.version}", out, limit, as_json)


def parse_conditions(texts: Iterable[str], group: FeatureGroup) -> list[Condition]:
    """The conditions of `--where`, with values of the columns' types. Raises BadParameter, InvalidValue."""
    fields = {field.name: field for field in (*group.fields, EVENT_TIME)}
    return [_parse_condition(text, fields, group.name) for text in texts]


def _parse_condition(text: str, fields: Mapping[str, Field], group: str) -> Condition:
    found = _CONDITION.match(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a condition such as 'wind>5', 'origin in JFK,LGA' or 'gust is null'")
    column, operator, value = found[1], " ".join(found[2].lower().split()), found[3]
    field = fields.get(column)
    if field is None:
        raise InvalidValue("where", f"{column} is not a column of {group}, which has {', '.join(fields)}")
    if operator.startswith("is"):
        if value:
            raise typer.BadParameter(f"{text!r} has something after {operator!r}")
        return column, operator
    values = [parse_value(part.strip(), field) for part in value.split(",")] if operator == "in" else None
    return column, operator, parse_value(value, field) if values is None else values


def _parse_columns(texts: Sequence[str]) -> dict[str, str] | None:
    pairs = [text.partition("=") for text in texts]
    for column, equals, name in pairs:
        if not (column and equals and name):
            raise typer.BadParameter(f"{column + equals + name!r} is not of the form column=name")
    return {column: name for column, _, name in pairs} or None


def _check_out(out: Path | None) -> None:
    if out is not None:
        check_suffix(out)


def _deliver(batches: RowStream, what: str, out: Path | None, limit: int, as_json: bool) -> None:
    """Writes all rows to a file, or shows the first ones."""
    if out is not None:
        with working() as progress:
            count = write_batches(batches.schema, batches, out, progress)
        said: dict[str, Any] = {"rows": count, "file": str(out)}
        show(as_json, said, f"[green]✓[/] {count:,} rows of {what} written to {out}")
        return
    head, more = _first(batches, limit)
    show(as_json, json_rows(head), table(head.to_pylist(), "no rows"))
    if more:
        note(f"the first {limit} rows; --limit shows more of them, --out FILE writes all")


def _first(batches: RowStream, limit: int) -> tuple[pa.Table, bool]:
    """The first rows, and whether there are more."""
    taken: list[pa.RecordBatch] = []
    missing = limit
    for batch in batches:
        taken.append(batch.slice(0, missing))
        if batch.num_rows > missing:
            return pa.Table.from_batches(taken), True
        missing -= batch.num_rows
    return pa.Table.from_batches(taken, batches.schema), False
