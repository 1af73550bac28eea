"""The command that removes everything about an entity: forget."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from foresight.cli.arguments import Json, State, open_client, parse_setting, parse_value
from foresight.cli.terminal import note, show, table, waiting
from foresight.client import Client, DataType, Erasure, Field, InvalidValue

PANEL = "Features"
PREDICTION_ID = "prediction_id"


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(rich_help_panel=PANEL)(forget)


def forget(
    keys: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="The entity's keys.")] = None,
    request_id: Annotated[
        str, typer.Option(help="Names this erasure: repeated, it waits for the same one; default: a new id.")
    ] = "",
    status: Annotated[str, typer.Option(metavar="REQUEST_ID", help="Only say how far an erasure is.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Remove everything about an entity, for good: rows, online values, predictions, training datasets.

    Keys are named as feature groups name theirs: `foresight forget customer_id=7`. Models that were trained on its
    rows are listed, and left to you; so are backups and what batch predictions wrote elsewhere.
    """
    if bool(keys) == bool(status):
        raise typer.BadParameter("give either the keys of an entity, or --status")
    with open_client(state) as client:
        if status:
            _show(as_json, client.erasure(status))
            return
        entity = _entity(client, keys or ())
        named = ", ".join(f"{name}={value}" for name, value in entity.items())
        if not yes:
            typer.confirm(f"remove everything about {named}, for good?", abort=True, err=True)
        request_id = request_id or str(uuid.uuid4())
        if not as_json:
            note(f"erasure {request_id}; --status with this id says how far it is")
        with waiting(f"forgetting {named}"):
            done = client.forget_entity(entity, request_id=request_id)
    _show(as_json, done)


def _entity(client: Client, settings: Sequence[str]) -> dict[str, Any]:
    """The values with the types that groups give keys of these names; unknown names are left to the feature store."""
    types = {PREDICTION_ID: {DataType.STRING}}
    for group in client.groups():
        for key in group.entity_keys:
            types.setdefault(key.name, set()).add(key.type)
    entity: dict[str, Any] = {}
    for name, text in map(parse_setting, settings):
        if name in entity:
            raise InvalidValue(name, "is given twice")
        known = types.get(name, {DataType.STRING})
        if len(known) > 1:
            named = " and ".join(sorted(type.value for type in known))
            raise InvalidValue(name, f"is a key of the types {named}; use client.forget_entity with a value of each")
        # A text may be empty; of all other types an empty value is none.
        (type,) = known
        value = text if type is DataType.STRING else parse_value(text, Field(name, type))
        if value is None:
            raise InvalidValue(name, "has no value")
        entity[name] = value
    return entity


def _show(as_json: bool, done: Erasure) -> None:
    removed: list[dict[str, Any]] = [
        {"from": f"group {group}", "removed": rows, "unit": "rows"} for group, rows in done.rows.items()
    ]
    removed.append({"from": "prediction log", "removed": done.predictions, "unit": "predictions"})
    if done.datasets:
        removed.append({"from": "training datasets", "removed": len(done.datasets), "unit": "datasets"})
    state = (
        f"[green]✓[/] forgotten; erasure {done.request_id}"
        if done.finished_at is not None
        else f"[yellow]…[/] {done.doing}; erasure {done.request_id}"
    )
    lines = [table(removed, ""), state]
    if done.datasets:
        rows = [{"dataset": dataset_id, "name": name} for dataset_id, name in done.datasets.items()]
        lines += ["\nThese training datasets held rows of it and cannot be made again:", table(rows, "")]
    if done.affected:
        rows = [{"affected": str(thing)} for thing in done.affected]
        lines += ["\nTrained on them, or serving what was; decide what becomes of these:", table(rows, "")]
    show(as_json, done, *lines)
