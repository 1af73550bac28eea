"""What a person or a program sees: tables or JSON on stdout, progress and errors on stderr.

With --json stdout holds one JSON document and nothing else; instants are ISO 8601 in UTC.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from foresight.client import Column, DeadlineExceeded, Expectation, ForesightError, InvalidValue, VersionRef
from foresight.client.frames import Progress

# A pipe has no width: wide enough that no id or instant is cut.
_PIPE_COLUMNS = 240
_FOLDED_COLUMNS_MIN = 30
_UNBOUNDED = 100_000
_COLUMN = re.compile(r"^arrow\.(.+)$|^columns\[([^]]+)\]$")
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


def show(as_json: bool, data: Any, *lines: RenderableType) -> None:
    """Prints `data` as JSON, or else `lines`: rich renderables."""
    if as_json:
        sys.stdout.write(json.dumps(plain(data), ensure_ascii=False, indent=2) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    for line in lines:
        # Sentences are left to the terminal to wrap, so that paths in them can be copied.
        console.print(line, soft_wrap=isinstance(line, str))


def table(
    rows: Sequence[Mapping[str, Any]], empty: str, *, narrower: Sequence[Mapping[str, Any]] = ()
) -> RenderableType:
    """A table with a column per key that any row has; `empty` says what to do when there are none.

    Lists may fold; everything else stays whole, and where that is too wide the rows of `narrower` say the same with
    less; where they are too wide too, there is a block of lines per row instead.
    """
    return _Rows(rows, narrower or rows) if rows else f"[dim]{escape(empty)}[/]"


@dataclasses.dataclass(frozen=True, slots=True)
class _Rows:
    """Rows that look at the width they are given before they choose their form."""

    rows: Sequence[Mapping[str, Any]]
    narrower: Sequence[Mapping[str, Any]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for rows in (self.rows, self.narrower):
            drawn = self._as_table(rows)
            needed = Measurement.get(console, options.update(max_width=_UNBOUNDED), drawn).minimum
            if needed <= options.max_width:
                yield drawn
                return
        yield self._as_blocks()

    def _as_table(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        names = _names(rows)
        for name in names:
            values = [row.get(name) for row in rows]
            numeric = all(isinstance(value, int | float | None) and not isinstance(value, bool) for value in values)
            # Lists may fold, down to a width that can still be read.
            longest = max(_width(text) for text in (_head(name), *map(_cell, values)))
            width = min(longest, _FOLDED_COLUMNS_MIN) if any(map(_is_list, values)) else longest
            drawn.add_column(_head(name), justify="right" if numeric else "left", min_width=width, overflow="fold")
        for row in rows:
            drawn.add_row(*(_cell(row.get(name)) for name in names))
        return drawn

    def _as_blocks(self) -> Table:
        drawn = Table.grid("", "", padding=(0, 3, 0, 0))
        for position, row in enumerate(self.narrower):
            if position:
                drawn.add_row()
            for name, value in row.items():
                drawn.add_row(f"[bold]{_head(name)}[/]", _cell(value))
        return drawn


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of all rows; one that only some have stands behind the one before it there."""
    names: dict[str, None] = {}
    for row in rows:
        if row.keys() <= names.keys():
            continue
        ordered, place = list(names), 0
        for name in row:
            if name in names:
                place = ordered.index(name) + 1
            else:
                ordered.insert(place, name)
                place += 1
        names = dict.fromkeys(ordered)
    return list(names)


def plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, VersionRef):
        return {"name": value.name, "version": value.version}
    if isinstance(value, Column):
        return plain(value.to_list())
    if isinstance(value, Expectation):
        members = {field.name: plain(getattr(value.rule, field.name)) for field in dataclasses.fields(value.rule)}
        return {"name": value.name, "column": value.column, value.rule_name: members}
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


def size(count: int) -> str:
    """A number of bytes as text, in the unit that suits it."""
    number = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def report_error(error: ForesightError | InvalidValue) -> None:
    """One red line on stderr; several violations follow it, one line each."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if len(error.violations) > 1:
        console.print(_summary(error))
        for violation in error.violations:
            console.print(f"  [red]{escape(_named(violation.field))}:[/] {escape(violation.description)}")
        return
    text = str(error)
    for violation in error.violations:
        text = text.replace(violation.field, _named(violation.field), 1)
    if isinstance(error, DeadlineExceeded) and "timeout_s" in text:
        # What a program can do about it no command can.
        text = "no answer came in time; `foresight status` says what runs"
    console.print(f"[bold red]error:[/] {escape(text)}")


def note(text: str) -> None:
    """A remark on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[dim]{escape(text)}[/]")


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Says on stderr what is being waited for while the block runs; nothing when it is no terminal."""
    with Console(stderr=True).status(escape(text)):
        yield


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
        done = max(next(t.completed for t in bars.tasks if t.id == task), 1)
        bars.update(task, description=_DONE.get(stage, stage), total=done, completed=done)


def _named(field: str) -> str:
    """A field of a request as a person calls it: columns by their names alone."""
    return _COLUMN.sub(lambda found: found[1] or found[2], field)


def _summary(error: ForesightError | InvalidValue) -> str:
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
            return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        case enum.Enum():
            return value.name.lower()
    if _is_list(value):
        return escape(", ".join(str(inner) for inner in value)) or "[dim]—[/]"
    return escape(str(value))


def _width(markup: str) -> int:
    return Text.from_markup(markup).cell_len


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and not isinstance(value, VersionRef)


def _head(name: str) -> str:
    return escape(name.replace("_", " "))
