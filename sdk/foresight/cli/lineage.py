"""The command about who uses what: lineage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer
from rich.markup import escape
from rich.tree import Tree

from foresight.cli.arguments import Json, State, open_client
from foresight.cli.terminal import show
from foresight.client import Lineage, LineageThing, Use

PANEL = "Features"
# From a thing to the uses that lead on, and from one of those to the thing at its end.
Steps = Callable[[LineageThing], list[Use]]
End = Callable[[Use], LineageThing]


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(rich_help_panel=PANEL)(lineage)


def lineage(
    thing: Annotated[
        str,
        typer.Argument(
            help="group:NAME[@VERSION], view:NAME[@VERSION], model:NAME[@VERSION], dataset:ID, deployment:NAME, "
            "source:NAME; without a version the latest."
        ),
    ],
    depth: Annotated[int, typer.Option(min=0, max=16, help="Steps to go in each direction; 0: all.")] = 0,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show what a thing is made of, and what is made of it: sources, groups, views, datasets, models, deployments."""
    with open_client(state) as client:
        found = client.lineage(thing, depth=depth)
    lines: list[Tree | str] = [tree(found)]
    if found.truncated:
        lines.append("[yellow]there is more than one answer holds; --depth shows less at a time[/]")
    show(as_json, as_data(found), *lines)


def tree(found: Lineage) -> Tree:
    """Both directions from the start; what is there already is named again, but not what follows from it."""
    root = Tree(f"[bold]{_named(found, found.start)}[/]")
    upwards, downwards = root.add("made of"), root.add("used by")
    _grow(upwards, found, found.start, found.made_of, lambda use: use.used, {found.start})
    _grow(downwards, found, found.start, found.used_by, lambda use: use.user, {found.start})
    for branch in (upwards, downwards):
        if not branch.children:
            branch.add("[dim]nothing that is known here[/]")
    return root


def as_data(found: Lineage) -> dict[str, object]:
    """The lineage as JSON has it, with things as the texts that the command takes."""
    return {
        "start": str(found.start),
        "things": [{"thing": str(thing), "label": found.labels.get(thing, "")} for thing in found.things],
        "uses": [
            {
                "user": str(use.user),
                "used": str(use.used),
                "since": use.since,
                "known_at_asserted": use.known_at_asserted,
            }
            for use in found.uses
        ],
        "truncated": found.truncated,
    }


def _grow(branch: Tree, found: Lineage, thing: LineageThing, steps: Steps, end: End, shown: set[LineageThing]) -> None:
    for use in steps(thing):
        reached = end(use)
        text = _named(found, reached)
        if use.known_at_asserted:
            text += " [yellow](known_at asserted)[/]"
        again = reached in shown and bool(steps(reached))
        leaf = branch.add(f"{text} [dim]…[/]" if again else text)
        if reached not in shown:
            shown.add(reached)
            _grow(leaf, found, reached, steps, end, shown)


def _named(found: Lineage, thing: LineageThing) -> str:
    label = found.labels.get(thing)
    return escape(str(thing)) + (f" [dim]{escape(label)}[/]" if label else "")
