"""Commands about groups, views and their rows: apply, groups, views, ingest, quarantine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pyarrow as pa
import typer

from foresight.cli.arguments import Json, State, load_module, open_client
from foresight.cli.files import check_columns, check_rows, read_file, read_pieces
from foresight.cli.output_files import check_suffix, json_rows, write_file
from foresight.cli.terminal import instant, note, show, table, working
from foresight.client import FeatureGroup, FeatureView, Field, InvalidValue, MissingPolicy, ViewFeature
from foresight.client.frames import DELETED, EVENT_TIME, KNOWN_AT

PANEL = "Features"
# Larger files are read and sent piece by piece; a lost connection then ends the command.
WHOLE_FILE_BYTES_MAX = 64 << 20
_NAME_IT = "name its column with --event-time"


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (apply, groups, views, ingest, quarantine):
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
            "if_missing": [
                f"{s.name_of(f)}: {_policy(f)}"
                for s in v.sources
                for f in s.features
                if f.missing is not MissingPolicy.NULL
            ],
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
    source: Annotated[str, typer.Option(help="What made the rows, for `foresight lineage`.")] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Write the rows of a file to a feature group, as one commit; a large file goes piece by piece.

    Rows that break expectations of the group are refused all together, or, where the group says so, quarantined:
    `foresight quarantine` shows them.
    """
    with open_client(state) as client:
        described = client.group(group)
        fields = (*described.entity_keys, EVENT_TIME, *described.features, KNOWN_AT, DELETED)
        if file.stat().st_size > WHOLE_FILE_BYTES_MAX:
            pieces = _checked_pieces(file, fields, event_time)
            with working() as progress:
                commit = client.write(group, pieces, write_id=write_id or None, source=source, progress=progress)
        else:
            rows = read_file(file, fields, event_time=event_time)
            check_columns(rows, file, "event_time", hint=_NAME_IT)
            check_rows(rows, file)
            with working({"uploading": rows.num_rows}) as progress:
                commit = client.write(group, rows, write_id=write_id or None, source=source, progress=progress)
    what = "was written before: nothing new" if commit.duplicate else "written"
    when = f"commit {commit.number} · {instant(commit.committed_at)}"
    written = f"[green]✓[/] {commit.rows:,} rows of {group} {what} · {when}"
    if not commit.quarantined_rows:
        show(as_json, commit, written)
        return
    broken = [{"expectation": b.name, "rows": b.rows, "such_as": "\n".join(b.samples)} for b in commit.broken]
    hint = f"`foresight quarantine {group} --after-commit {commit.number - 1}` shows them"
    kept = f"[yellow]![/] {commit.quarantined_rows:,} rows break expectations and were quarantined; {hint}"
    show(as_json, commit, written, kept, table(broken, ""))


def quarantine(
    group: Annotated[str, typer.Argument(help="Feature group.")],
    version: Annotated[int, typer.Option(help="Its version; 0: the latest.")] = 0,
    after_commit: Annotated[int, typer.Option(min=0, help="Only rows of writes committed after this one.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Rows shown.")] = 20,
    output: Annotated[Path | None, typer.Option(help="Write them to this .csv, .parquet or .jsonl file.")] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show the rows that broke expectations of a group and were kept apart, the newest last."""
    if output is not None:
        check_suffix(output)
    with open_client(state) as client, working() as progress:
        found = client.read_quarantine(
            group, version=version, after_commit=after_commit, output="arrow", progress=progress
        )
    if output is not None:
        write_file(found, output)
        show(as_json, {"rows": found.num_rows, "file": str(output)}, f"[green]✓[/] {found.num_rows:,} rows in {output}")
        return
    total, found = found.num_rows, found.slice(max(0, found.num_rows - limit))
    rows = json_rows(found)
    show(as_json, rows, table(rows, f"no rows of {group} are quarantined"))
    if total > found.num_rows and not as_json:
        note(f"the last {found.num_rows:,} of {total:,}; --limit says how many, --output writes them to a file")


def _checked_pieces(file: Path, fields: tuple[Field, ...], event_time: str) -> Iterator[pa.Table]:
    for piece in read_pieces(file, fields, event_time=event_time):
        check_columns(piece, file, "event_time", hint=_NAME_IT)
        yield piece


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


def _policy(feature: ViewFeature) -> str:
    """What happens when the feature has no value."""
    default = None if feature.default is None else feature.default.python(0)
    if feature.missing is MissingPolicy.LAST_KNOWN:
        return f"last known up to {feature.last_known_max_age}, else {'fail' if default is None else default}"
    return f"default {default}" if feature.missing is MissingPolicy.DEFAULT else "fail"
