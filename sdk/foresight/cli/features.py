"""Commands about groups, views and their rows: apply, groups, views, ingest."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from foresight.cli.arguments import Json, State, load_module, open_client
from foresight.cli.files import check_columns, check_rows, read_file
from foresight.cli.terminal import instant, note, show, table, working
from foresight.client import FeatureGroup, FeatureView, Field, InvalidValue
from foresight.client.frames import DELETED, EVENT_TIME, KNOWN_AT

PANEL = "Features"


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (apply, groups, views, ingest):
        app.command(rich_help_panel=PANEL)(command)


def apply(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Python file that defines them.")],
    state: State = None,
    as_json: Json = False,
) -> None:
    """Register every FeatureGroup and FeatureView that a Python file has at its top level.

    The file is imported in this process. What has not changed stays as it is; what is said about a thing (description,
    owner, tags, ...) changes in place; other keys, features or sources make a new version.
    """
    things = definitions(load_module(file))
    if not things:
        raise InvalidValue(file.name, "defines no FeatureGroup and no FeatureView at its top level")
    with open_client(state) as client:
        registered = client.register(*things)
    rows = [
        {
            "kind": "group" if isinstance(r.thing, FeatureGroup) else "view",
            "name": r.thing.name,
            "version": r.thing.version,
            "created": r.created,
        }
        for r in registered
    ]
    for registration in registered:
        for warning in registration.warnings:
            note(f"{registration.thing.name}: {warning}")
    show(as_json, rows, table(rows, ""))


def groups(state: State = None, as_json: Json = False) -> None:
    """List the feature groups, those made from the prediction log included."""
    with open_client(state) as client:
        found = client.groups()
    rows = [
        {
            "name": g.name,
            "version": g.version,
            "keys": _typed(g.entity_keys),
            "features": _typed(g.features),
            **_about(g),
        }
        for g in found
    ]
    show(as_json, found, table(rows, "no groups yet; define some and run `foresight apply FILE.py`"))


def views(state: State = None, as_json: Json = False) -> None:
    """List the feature views."""
    with open_client(state) as client:
        found = client.views()
    rows = [
        {
            "name": v.name,
            "version": v.version,
            "keys": _typed(v.entity_keys),
            "groups": [f"{s.group} v{s.group_version}" for s in v.sources],
            "request_features": [f.name for f in v.request_features],
            "transforms": [t.output.name for t in v.transforms],
            "label": f"{v.label.name} {v.label.type.value}",
            **_about(v),
        }
        for v in found
    ]
    show(as_json, found, table(rows, "no views yet; define some and run `foresight apply FILE.py`"))


def ingest(
    group: Annotated[str, typer.Argument(help="Feature group to write to.")],
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help=".csv, .parquet or .jsonl")],
    event_time: Annotated[str, typer.Option(help="Column that holds the event time.")] = "event_time",
    write_id: Annotated[str, typer.Option(help="Makes a repetition harmless: the same id is written once.")] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Write the rows of a file to a feature group, as one commit."""
    with open_client(state) as client:
        described = client.group(group)
        fields = (*described.entity_keys, EVENT_TIME, *described.features, KNOWN_AT, DELETED)
        rows = read_file(file, fields, event_time=event_time)
        check_columns(rows, file, "event_time", hint="name its column with --event-time")
        check_rows(rows, file)
        with working({"uploading": rows.num_rows}) as progress:
            commit = client.write(group, rows, write_id=write_id or None, progress=progress)
    what = "was written before: nothing new" if commit.duplicate else "written"
    when = f"commit {commit.number} · {instant(commit.committed_at)}"
    show(as_json, commit, f"[green]✓[/] {commit.rows:,} rows of {group} {what} · {when}")


def definitions(module: ModuleType) -> list[FeatureGroup | FeatureView]:
    """The groups and views at a module's top level, in order, each once."""
    things = [value for value in vars(module).values() if isinstance(value, FeatureGroup | FeatureView)]
    return list({id(thing): thing for thing in things}.values())


def _about(thing: FeatureGroup | FeatureView) -> dict[str, object]:
    """What people want to see of what is said about a thing."""
    tags = [f"{key}={value}" if value else key for key, value in thing.tags.items()]
    return {"owner": thing.owner or None, "tags": tags, "deprecated": thing.deprecation or None}


def _typed(fields: tuple[Field, ...]) -> list[str]:
    return [f"{field.name} {field.type.value}" for field in fields]
