"""The demo: starts a stack of its own, replays the year, and reports."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.local import LocalStack
from deploy.local.state import StateFolder
from examples.flights import definitions as service
from examples.flights.data import load_year
from examples.flights.replay import OUTCOMES_UNTIL, START, Replay
from examples.flights.report import make_report, passed, write_report
from examples.flights.tables import print_report


def main() -> int:
    """Runs the demo; 0 when the report shows what it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="ask for every flight, not for a few hundred a day")
    parser.add_argument("--folder", type=Path, default=Path("var/demo"), help="where states and report go")
    arguments = parser.parse_args()
    console = Console()
    started = time.perf_counter()
    folder = arguments.folder.absolute()
    _forget_earlier_states(folder)
    state = folder / f"state-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    with ExitStack() as stack:
        with console.status("starting PostgreSQL, four services and Envoy"):
            modules = [service.TRANSFORM_MODULE]
            stack.enter_context(LocalStack(state, gateway_port=0, metrics_port=0, transform_modules=modules))
        console.print(f"stack ready after {time.perf_counter() - started:.1f} s; its state and logs are in {state}")
        replay = Replay(state, load_year(), full=arguments.full, log=console.print)
        stack.callback(replay.close)
        with console.status("writing January and February, training the first model"):
            replay.load_history()
            replay.train_first()
        _run(replay, console)
        with console.status("collecting the report"):
            report = make_report(replay, state, full=arguments.full)
        report["seconds"] = time.perf_counter() - started
    print_report(report, console)
    write_report(report, folder, console.print)
    faults = passed(report)
    for fault in faults:
        console.print(f"[red]{fault}[/red]")
    console.print(f"the year took {report['seconds']:.0f} s")
    return 1 if faults else 0


def _forget_earlier_states(folder: Path) -> None:
    """Removes the states of earlier runs but the last: each has about a gigabyte, and nobody else would."""
    for path in sorted(folder.glob("state-*"))[:-1]:
        if StateFolder(path).holder() is None:
            shutil.rmtree(path)


def _run(replay: Replay, console: Console) -> None:
    days = (OUTCOMES_UNTIL - START).days + 1
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("days"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bars:
        bar = bars.add_task("March to December", total=days)

        def progress(now: datetime, answers: int) -> None:
            bars.update(bar, completed=(now - START).days + 1, description=f"{now:%d %B}: {answers:,} predictions")

        replay.run(progress)


if __name__ == "__main__":
    sys.exit(main())
