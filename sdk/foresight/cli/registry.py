"""Commands that find, change and remove groups and views: search, deprecate, add-feature, drop."""

from __future__ import annotations

from typing import Annotated

import typer

from foresight.cli.arguments import Json, State, open_client, parse_setting, parse_value
from foresight.cli.terminal import show, table
from foresight.client import (
    Client,
    DataType,
    FeatureGroup,
    FeatureView,
    Field,
    FoundKind,
    InvalidValue,
    LineageThing,
    ThingKind,
    VersionRef,
)

PANEL = "Features"
drop = typer.Typer(
    name="drop", help="Remove a version of a feature group or view that nothing uses.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="Its name.")]
Version = Annotated[int, typer.Argument(min=1, help="Its version.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(rich_help_panel=PANEL)(search)
    app.command(rich_help_panel=PANEL)(deprecate)
    app.command("add-feature", rich_help_panel=PANEL)(add_feature)
    app.add_typer(drop, rich_help_panel=PANEL)


def search(
    words: Annotated[list[str] | None, typer.Argument(help="All have to occur, in any case.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="KEY[=VALUE]", help="Only what has the tag.")] = None,
    owner: Annotated[str, typer.Option(help="Only what this person or team answers for.")] = "",
    deprecated: Annotated[bool, typer.Option("--deprecated", help="Deprecated things, too.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many.")] = 100,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Find groups, views and features by words in names, descriptions, owners and tags."""
    tags = dict(parse_setting(text) if "=" in text else (text, "") for text in tag or ())
    with open_client(state) as client:
        found = client.search(" ".join(words or ()), tags=tags, owner=owner, include_deprecated=deprecated, limit=limit)
    rows = [
        {
            "kind": f.kind.value,
            "name": f"{f.thing.name}.{f.feature}" if f.kind is FoundKind.FEATURE else f.thing.name,
            "version": f.thing.version,
            "owner": f.owner or None,
            "description": f.description or None,
            **({"deprecated": f.deprecation or None} if deprecated else {}),
        }
        for f in found
    ]
    show(as_json, found, table(rows, "nothing found" if deprecated else "nothing found; --deprecated looks further"))


def deprecate(
    thing: Annotated[str, typer.Argument(help="group:NAME[@VERSION] or view:NAME[@VERSION].")],
    why: Annotated[str, typer.Argument(help="Why, or what to use instead.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="It may be used again.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Say that a feature group or view shall not be used any more. It goes on working; searches pass it over."""
    if undo == bool(why):
        raise typer.BadParameter("give either a reason, or --undo")
    with open_client(state) as client:
        changed = _deprecated(client, LineageThing.parse(thing), why)
    what = "may be used again" if undo else f"is deprecated: {why}"
    show(as_json, changed, f"[green]✓[/] {VersionRef(changed.name, changed.version)} {what}")


def add_feature(
    group: Annotated[str, typer.Argument(help="Feature group, whose latest version gets the feature.")],
    name: Annotated[str, typer.Argument(help="Name of the feature.")],
    type: Annotated[DataType, typer.Argument(help="Its type.")],
    default: Annotated[str, typer.Option(help="What rows without a value read.")],
    dimension: Annotated[int, typer.Option(min=0, help="Number of floats of a float_vector.")] = 0,
    description: Annotated[str, typer.Option(help="What it means, for people.")] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Add a feature to a group in place: no new version, and rows that are there read the default."""
    field = Field(name, type, dimension, description)
    # A text may be empty; of all other types an empty value is none.
    value = default if type is DataType.STRING else parse_value(default, field)
    with open_client(state) as client:
        changed = client.add_features(group, [field], {name: value})
    text = f"[green]✓[/] {VersionRef(changed.name, changed.version)} has {name}; rows without a value read {value!r}"
    show(as_json, changed, text)


@drop.command("group")
def drop_group(name: Name, version: Version, yes: Yes = False, state: State = None, as_json: Json = False) -> None:
    """Remove a version of a feature group with all of its rows, for good."""
    with open_client(state) as client:
        described = client.group(name, version)
        rows = client.count_rows(name, version)
        _confirm(f"remove {VersionRef(name, version)} with its {rows:,} rows, for good?", yes)
        rows = client.drop_group(name, version, etag=described.etag)
    done = {"name": name, "version": version, "rows": rows}
    show(as_json, done, f"[green]✓[/] {VersionRef(name, version)} is gone, with {rows:,} rows")


@drop.command("view")
def drop_view(name: Name, version: Version, yes: Yes = False, state: State = None, as_json: Json = False) -> None:
    """Remove a version of a feature view."""
    with open_client(state) as client:
        described = client.view(name, version)
        _confirm(f"remove {VersionRef(name, version)}?", yes)
        client.drop_view(name, version, etag=described.etag)
    show(as_json, {"name": name, "version": version}, f"[green]✓[/] {VersionRef(name, version)} is gone")


def _deprecated(client: Client, thing: LineageThing, why: str) -> FeatureGroup | FeatureView:
    if thing.kind is ThingKind.FEATURE_GROUP:
        return client.deprecate(client.group(thing.name, thing.version), why)
    if thing.kind is ThingKind.FEATURE_VIEW:
        return client.deprecate(client.view(thing.name, thing.version), why)
    raise InvalidValue("thing", f"{thing} is neither a group nor a view")


def _confirm(question: str, yes: bool) -> None:
    if not yes:
        typer.confirm(question, abort=True, err=True)
