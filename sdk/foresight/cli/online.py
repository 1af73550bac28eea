"""The command about the online store: rebuild-online."""

from __future__ import annotations

import typer

from foresight.cli.arguments import Json, State, open_client
from foresight.cli.terminal import show, waiting

PANEL = "Features"


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(rich_help_panel=PANEL)(rebuild_online)


def rebuild_online(state: State = None, as_json: Json = False) -> None:
    """Build the online store anew from offline rows, while the present one serves.

    It takes over at once for all processes when it is complete. Use it when the store was damaged, or lost rows.
    """
    with open_client(state) as client, waiting("rebuilding the online store"):
        rebuilt = client.rebuild_online_store()
    line = (
        f"[green]✓[/] online store rebuilt: {rebuilt.keys:,} keys, from the rows up to commit {rebuilt.applied_commit}"
    )
    show(as_json, rebuilt, line)
