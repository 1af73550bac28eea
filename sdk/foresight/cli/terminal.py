"""What a person or a program sees: tables or JSON on stdout, progress and errors on stderr.

With --json stdout holds one JSON document and nothing else; instants are ISO 8601 in UTC.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from foresight.client import Column, ForesightError, InvalidValue, VersionRef
from foresight.client.frames import Progress

# A pipe has no width: wide enough that no id or instant is cut.
_PIPE_COLUMNS = 240
_DONE = {
    "uploading": "uploaded",
    "downloading": "downloaded",
    "reading": "read",
    "fitting": "fitted",
    "evaluating": "evaluated",
    "converting": "converted",
    "registering": "registered",
    "scoring": "scored",
    "writing": "written",
    "sending": "sent",
}


def show(as_json: bool, data: Any, *lines: Any) -> None:
    """Prints `data` as JSON, or else `lines`: rich renderables."""
    if as_json:
        sys.stdout.write(json.dumps(plain(data), ensure_ascii=False, indent=2) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    for line in lines:
        console.print(line)


def table(rows: Sequence[Mapping[str, Any]], empty: str) -> Any:
    """A table with a column per key of the first row; `empty` says what to do when there are none."""
    if not rows:
        return f"[dim]{escape(empty)}[/]"
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in rows[0]:
        numeric = all(isinstance(row[name], int | float | None) and not isinstance(row[name], bool) for row in rows)
        # Half an id or half an instant is of no use.
        whole = numeric or name.endswith(("_id", "_at", "_time")) or name == "incarnation"
        drawn.add_column(
            escape(name.replace("_", " ")), justify="right" if numeric else "left", no_wrap=whole, overflow="fold"
        )
    for row in rows:
        drawn.add_row(*(_cell(value) for value in row.values()))
    return drawn


def plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, VersionRef):
        return {"name": value.name, "version": value.version}
    if isinstance(value, Column):
        return plain(value.to_list())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        members = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        # Units are last in names.
        return {f"{n}_s" if isinstance(v, timedelta) else n: plain(v) for n, v in members.items()}
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def instant(value: datetime) -> str:
    """An instant as text, in UTC, to the digit that it needs."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def report_error(error: ForesightError | InvalidValue) -> None:
    """One red line on stderr; several violations follow it, one line each."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(str(error))}" if len(error.violations) < 2 else _head(error))
    for violation in error.violations if len(error.violations) > 1 else ():
        console.print(f"  [red]{escape(violation.field)}[/] {escape(violation.description)}")


def note(text: str) -> None:
    """A remark on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[dim]{escape(text)}[/]")


@contextmanager
def working(totals: Mapping[str, int] | None = None) -> Iterator[Progress]:
    """A progress callback that draws one bar per stage on stderr while the block runs; nothing when it is no terminal.

    `totals`: rows to expect, by stage; a stage without one shows how far it has come.
    """
    console = Console(stderr=True)
    bars = Bars(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[counted]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bars:
        stages: dict[str, TaskID] = {}

        def progress(stage: str, rows: int) -> None:
            if stage not in stages:
                _finish(bars, stages)
                stages[stage] = bars.add_task(stage, total=(totals or {}).get(stage), counted="")
            bars.update(stages[stage], completed=rows, counted=f"{rows:,} rows" if rows else "")

        yield progress


def _finish(bars: Bars, stages: Mapping[str, TaskID]) -> None:
    """Marks the stages before a new one as done."""
    for stage, task in stages.items():
        state = next(t for t in bars.tasks if t.id == task)
        if not state.finished:
            done = max(state.completed, 1)
            bars.update(task, description=_DONE.get(stage, stage), total=done, completed=done)


def _head(error: ForesightError | InvalidValue) -> str:
    kind = "the request is wrong" if error.violations else str(error)
    return f"[bold red]error:[/] {kind} in {len(error.violations)} places"


def _cell(value: Any) -> str:
    match value:
        case None:
            return "[dim]—[/]"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case datetime():
            return instant(value)
        case enum.Enum():
            return value.name.lower()
        case list() | tuple() if not isinstance(value, VersionRef):
            return escape(", ".join(str(inner) for inner in value)) or "[dim]—[/]"
    return escape(str(value))
