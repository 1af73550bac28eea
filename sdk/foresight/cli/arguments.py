"""Options that several commands share, and what arguments mean: instants, values, and objects in Python files."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from foresight.client import Client, DataType, Field, InvalidValue

RETRY_S = 5.0

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]


def parse_folder(text: str) -> Path:
    """The folder of an option. Raises BadParameter when it is empty, as a variable that is not set leaves it."""
    if not text:
        raise typer.BadParameter("is empty")
    return Path(text)


State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        envvar="FORESIGHT_STATE",
        parser=parse_folder,
        metavar="FOLDER",
        help="State folder of the stack; default: ./var/foresight.",
    ),
]


def open_client(state: Path | None) -> Client:
    """A client of the local stack, with patience for a restart but not for a stack that is down."""
    return Client(state, retry_s=RETRY_S)


def parse_instant(text: str) -> datetime:
    """The instant of an option, e.g. 2013-03-01T00:00:00Z. Raises BadParameter without a time zone."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an instant such as 2013-03-01T00:00:00Z") from None
    if instant.tzinfo is None:
        raise typer.BadParameter(f"{text!r} has no time zone; add Z for UTC, or an offset such as +01:00")
    return instant


def parse_setting(text: str) -> tuple[str, str]:
    """Name and value of `--set name=value`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r} is not of the form name=value")
    return name, value


def parse_value(text: str, field: Field) -> Any:
    """The value of a field as text; an empty one is NULL. Raises InvalidValue naming the field."""
    if text == "":
        return None
    try:
        match field.type:
            case DataType.INT64:
                return int(text)
            case DataType.FLOAT64:
                return float(text)
            case DataType.BOOL:
                return {"true": True, "false": False}[text.lower()]
            case DataType.TIMESTAMP:
                return datetime.fromisoformat(text)
            case DataType.FLOAT_VECTOR:
                return [float(part) for part in text.strip("[]").split(",")]
    except (ValueError, KeyError):
        raise InvalidValue(field.name, f"{text!r} is not of type {field.type.value}") from None
    return text


def parse_settings(settings: Mapping[str, str], fields: Mapping[str, Field]) -> dict[str, Any]:
    """The row of `--set` options; a name that is not known is left to the predictor, as text."""
    return {name: parse_value(text, fields[name]) if name in fields else text for name, text in settings.items()}


def load_module(path: Path) -> ModuleType:
    """Imports a Python file in this process. Raises BadParameter when that does not work.

    A file below the current folder gets the name that `import` has for it from there (`a/b.py` is `a.b`), so that
    its transforms are known under the same name to services started there; any other file is named by its stem.
    """
    if path.suffix != ".py":
        raise typer.BadParameter(f"{path.name} is not a Python file")
    path = path.resolve()
    folder = Path.cwd()
    parts = path.with_suffix("").parts
    if path.is_relative_to(folder) and all(part.isidentifier() for part in path.relative_to(folder).parts[:-1]):
        parts = path.with_suffix("").relative_to(folder).parts
    else:
        folder, parts = path.parent, parts[-1:]
    name = ".".join(parts)
    if not all(part.isidentifier() for part in parts):
        raise typer.BadParameter(f"{path.name} cannot be imported: its name is not a Python identifier")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a user's file may raise anything, and its author wants to know where
        raise typer.BadParameter(f"{path.name} cannot be imported: {_raised_by(path, error)}") from None
    found = getattr(module, "__file__", None)
    if found is None or not os.path.samefile(found, path):
        raise typer.BadParameter(f"another module is called {name}; rename {path.name}")
    return module


def load_named_module(name: str) -> ModuleType:
    """The module of a name, or of a Python file, imported in this process. Raises BadParameter."""
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise typer.BadParameter(f"there is no file {name}")
        return load_module(Path(name))
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything, and its author wants to know
        raise typer.BadParameter(f"{name} cannot be imported: {type(error).__name__}: {error}") from None


def _raised_by(path: Path, error: Exception) -> str:
    """What a file raised while it was imported, and at which of its lines."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno]
    where = f"line {lines[-1]}: " if lines else ""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{where}{type(error).__name__}: {text}"


def load_object(reference: str) -> Any:
    """The object NAME of `FILE.py:NAME`; a function without parameters is called for it."""
    file, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier():
        raise typer.BadParameter(f"{reference!r} is not of the form FILE.py:NAME")
    if not Path(file).is_file():
        raise typer.BadParameter(f"there is no file {file}")
    module = load_module(Path(file))
    try:
        found = getattr(module, name)
    except AttributeError:
        raise typer.BadParameter(f"{file} has no {name}") from None
    return found() if callable(found) and not isinstance(found, type) and not hasattr(found, "fit") else found
