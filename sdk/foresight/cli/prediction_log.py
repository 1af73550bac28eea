"""Commands that look back: predictions, ledger."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from foresight.cli.arguments import Json, State, open_client, parse_instant
from foresight.cli.output_files import json_rows, write_file
from foresight.cli.terminal import note, show, table, working

PANEL = "Log"
SHOWN_ROWS = 10


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (predictions, ledger):
        app.command(rich_help_panel=PANEL)(command)


def predictions(
    view: Annotated[str, typer.Argument(help="Feature view behind the predictions.")],
    deployment: Annotated[str, typer.Option(help="Only predictions of this deployment.")] = "",
    version: Annotated[int, typer.Option(min=0, help="Version of the view; 0: the latest.")] = 0,
    from_event_time: Annotated[
        datetime | None,
        typer.Option("--from", parser=parse_instant, metavar="INSTANT", help="Only from this event time on …"),
    ] = None,
    to_event_time: Annotated[
        datetime | None, typer.Option("--to", parser=parse_instant, metavar="INSTANT", help="… and before this one.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"At most so many, the last ones; default: {SHOWN_ROWS} on the screen.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write them to this .csv, .parquet or .jsonl file.")] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Read predictions with their features, outputs and outcomes, in the order of the log."""
    with open_client(state) as client, working() as progress:
        found = client.predictions(
            deployment or None,
            view=view,
            version=version,
            from_event_time=from_event_time,
            to_event_time=to_event_time,
            output="arrow",
            progress=progress,
        )
    total = found.num_rows
    if limit is None and output is None and not as_json:
        limit = SHOWN_ROWS
    if limit is not None:
        found = found.slice(max(0, total - limit))
    if output is not None:
        write_file(found, output)
        line = f"[green]✓[/] {found.num_rows:,} predictions in {output}"
        show(as_json, {"rows": found.num_rows, "output": str(output)}, line)
        return
    rows = [_for_people(row) for row in found.to_pylist()]
    show(as_json, json_rows(found), table(rows, "no predictions in this selection"))
    if found.num_rows < total and not as_json:
        note(f"the last {found.num_rows:,} of {total:,}; --limit says how many, --output writes them to a file")


def ledger(state: State = None, as_json: Json = False) -> None:
    """Account for every prediction: logged, still in a spool, or quarantined; ends with 1 if one is nowhere."""
    with open_client(state) as client:
        found = client.ledger()
    rows = [
        {
            "replica": row.replica,
            "incarnation": row.incarnation,
            "answered": row.highest_sequence,
            "logged": row.logged,
            "spooled": row.spooled,
            "quarantined": row.quarantined,
            "duplicates": row.duplicates,
            "unaccounted": row.unaccounted,
        }
        for row in found
    ]
    show(as_json, rows, table(rows, "no predictions yet"))
    if any(row.unaccounted for row in found):
        raise typer.Exit(1)


def _for_people(row: Mapping[str, Any]) -> dict[str, Any]:
    """A prediction of the log without who asked and when it was served, and with the model in one column."""
    shown: dict[str, Any] = {}
    for name, value in row.items():
        if name == "log_model":
            shown["model"] = f"{value} v{row['log_model_version']}"
        elif name == "log_deployment":
            shown["deployment"] = value
        elif name == "log_arm":
            if value:
                mark = "shadow" if row.get("log_shadow") else "forced" if row.get("log_arm_forced") else ""
                shown["arm"] = f"{value} ({mark})" if mark else value
        elif name == "log_degraded":
            # Made without the feature store.
            if value:
                shown["degraded"] = value
        elif not name.startswith("log_"):
            shown[name] = value
    return shown
