"""Commands about feature pipelines: list, history, run, backfill, worker."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from foresight.cli.arguments import Json, State, load_named_module, open_client, parse_instant
from foresight.cli.terminal import instant, note, show, table
from foresight.cli.worker import worker
from foresight.client import ForesightError, InvalidValue, PipelineRun

if TYPE_CHECKING:
    from foresight.pipelines import Pipeline, Stream

# The libraries of pipelines are loaded by the commands that run some.

PANEL = "Features"
RUNS_SHOWN = 20
_LENGTH = re.compile(r"(\d+)(s|m|h|d|w)\Z")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

pipelines = typer.Typer(
    name="pipelines",
    help="Feature pipelines: list them, see their runs, and run them.",
    invoke_without_command=True,
)

Reference = Annotated[str, typer.Argument(metavar="MODULE:NAME", help="The pipeline NAME of a module or a FILE.py.")]


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    pipelines.callback()(list_pipelines)
    for command in (history, run, backfill, worker):
        pipelines.command()(command)
    app.add_typer(pipelines, rich_help_panel=PANEL)


def parse_length(text: str) -> timedelta:
    """A length of time such as 90s, 15m, 6h, 1d, 2w. Raises BadParameter."""
    found = _LENGTH.match(text)
    if found is None or int(found[1]) == 0 or len(found[1]) > 9:
        raise typer.BadParameter(f"{text!r} is not a length of time such as 90s, 15m, 6h, 1d or 2w")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


From = Annotated[datetime, typer.Option("--from", parser=parse_instant, metavar="INSTANT", help="First event time.")]
To = Annotated[datetime, typer.Option("--to", parser=parse_instant, metavar="INSTANT", help="End, not included.")]
Step = Annotated[
    timedelta | None,
    typer.Option(parser=parse_length, metavar="LENGTH", help="Length of a step, e.g. 6h; default: the schedule."),
]


def list_pipelines(context: typer.Context, state: State = None, as_json: Json = False) -> None:
    """List the pipelines that ran, how far they are, and their newest runs."""
    if context.invoked_subcommand is not None:
        return
    with open_client(state) as client:
        found = client.pipelines()
    rows = [
        {
            "name": status.name,
            "position": status.position or None,
            "moved_at": status.moved_at,
            "last_run": status.last_run.started_at if status.last_run else None,
            "state": status.last_run.state.name.lower() if status.last_run else None,
            "rows_in": status.last_run.rows_in if status.last_run else None,
            "rows_out": status.last_run.rows_out if status.last_run else None,
        }
        for status in found
    ]
    show(as_json, found, table(rows, "no pipeline ran yet; `foresight pipelines run MODULE:NAME` runs one"))


def history(
    name: Annotated[str, typer.Argument(help="A pipeline; default: all.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many runs, the newest.")] = RUNS_SHOWN,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show the runs of a pipeline, the newest first: what they read and wrote, and how they ended."""
    with open_client(state) as client:
        found = client.pipeline_runs(name, limit)
    rows = [
        {
            **({} if name else {"pipeline": each.pipeline}),
            "started_at": each.started_at,
            "trigger": each.trigger.value,
            "state": each.state.name.lower(),
            "took_s": _seconds(each),
            "from": each.from_event_time,
            "to": each.to_event_time,
            "rows_in": each.rows_in,
            "rows_out": each.rows_out,
            **({"skipped": each.skipped} if any(other.skipped for other in found) else {}),
            **({"error": each.error or None} if any(other.error for other in found) else {}),
        }
        for each in found
    ]
    show(as_json, found, table(rows, f"{name or 'no pipeline'} has not run yet"))


def run(
    reference: Reference,
    from_event_time: Annotated[
        datetime | None,
        typer.Option("--from", parser=parse_instant, metavar="INSTANT", help="With --to: just this window."),
    ] = None,
    to_event_time: Annotated[
        datetime | None, typer.Option("--to", parser=parse_instant, metavar="INSTANT", help="Its end, not included.")
    ] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Run a pipeline once, here: what is due since its position, or what a stream holds now."""
    from foresight.pipelines import Window, run_once

    declared = load_pipeline(reference)
    if (from_event_time is None) != (to_event_time is None):
        raise typer.BadParameter("--from and --to come together")
    window = None
    if from_event_time is not None and to_event_time is not None:
        window = Window(from_event_time, to_event_time)
    with open_client(state) as client, _users_errors_shown():
        done = run_once(declared, client, window)
    _show_run(done, as_json, f"nothing is due of {declared.name}")


def backfill(
    reference: Reference,
    from_event_time: From,
    to_event_time: To,
    step: Step = None,
    label: Annotated[str, typer.Option(help="Makes it another backfill, which writes the range anew.")] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Compute a time range in steps. Interrupted, it goes on where it was when it is given again."""
    from foresight.pipelines import Pipeline, Window
    from foresight.pipelines import backfill as run_backfill

    declared = load_pipeline(reference)
    if not isinstance(declared, Pipeline):
        raise InvalidValue(declared.name, "is a stream: it has no windows to fill")

    def tell(window: Window) -> None:
        if sys.stderr.isatty():
            note(f"{window} done")

    with open_client(state) as client, _users_errors_shown():
        done = run_backfill(declared, client, from_event_time, to_event_time, step, label=label, on_window=tell)
    _show_run(done, as_json, "it was done before; give a --label to write it anew")


def load_pipeline(reference: str) -> Pipeline | Stream:
    """The pipeline NAME of `MODULE:NAME` or `FILE.py:NAME`. Raises BadParameter."""
    from foresight.pipelines import Pipeline, Stream

    module, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier():
        raise typer.BadParameter(f"{reference!r} is not of the form MODULE:NAME or FILE.py:NAME")
    found = getattr(load_named_module(module), name, None)
    if not isinstance(found, Pipeline | Stream):
        raise typer.BadParameter(f"{module} has no pipeline {name}")
    return found


@contextlib.contextmanager
def _users_errors_shown() -> Iterator[None]:
    """What a pipeline's function raised, as one line that says where."""
    from foresight.pipelines import SourceError, TooManySkipped

    try:
        yield
    except (ForesightError, InvalidValue):
        raise
    except (SourceError, TooManySkipped) as error:
        raise InvalidValue("source" if isinstance(error, SourceError) else "skip_max", str(error)) from None
    except Exception as error:  # noqa: BLE001 - a user's function may raise anything, and its author wants to know where
        frame = traceback.extract_tb(error.__traceback__)[-1]
        notes = "".join(f", {text}" for text in getattr(error, "__notes__", ()))
        where = f"{Path(frame.filename).name} line {frame.lineno}{notes}"
        raise InvalidValue(where, f"{type(error).__name__}: {error}") from None


def _show_run(done: PipelineRun | None, as_json: bool, nothing: str) -> None:
    if done is None:
        show(as_json, None, f"[dim]{escape(nothing)}[/]")
        return
    covered = ""
    if done.from_event_time is not None and done.to_event_time is not None:
        covered = f" · {instant(done.from_event_time)} to {instant(done.to_event_time)}"
    skipped = f" · {done.skipped:,} skipped" if done.skipped else ""
    took = f" · {_seconds(done) or 0:.1f} s"
    text = f"[green]✓[/] {done.pipeline}: {done.rows_in:,} rows in, {done.rows_out:,} rows out"
    show(as_json, done, text + skipped + covered + took)


def _seconds(run: PipelineRun) -> float | None:
    if run.started_at is None or run.finished_at is None:
        return None
    return round((run.finished_at - run.started_at).total_seconds(), 1)
