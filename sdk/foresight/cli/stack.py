"""Commands that run the local stack: up, status, logs, restart, down."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from foresight.cli.arguments import Json, State
from foresight.cli.terminal import show, table

if TYPE_CHECKING:
    from deploy.local.stack import StackOptions
    from deploy.local.state import StateFolder

# The supervisor's libraries are loaded by the commands that need them, so that the others start faster.

GatewayPort = Annotated[
    int, typer.Option("--gateway-port", min=0, max=65_535, help="Port for all calls, with mutual TLS; 0: a free one.")
]
MetricsPort = Annotated[
    int,
    typer.Option(
        "--metrics-port",
        min=0,
        max=65_531,
        help="First of five ports for metrics, and of one more for each further process; 0: any free ones.",
    ),
]
# See deploy.local.processes.
Predictors = Annotated[int, typer.Option("--predictors", min=1, max=16, help="Processes of the predictor.")]
FeatureStores = Annotated[int, typer.Option("--feature-stores", min=1, max=16, help="Processes of the feature store.")]
TransformModules = Annotated[
    list[str] | None,
    typer.Option(
        "--transforms", help="Python module with functions that views may use as transforms; can be given repeatedly."
    ),
]
PipelineModules = Annotated[
    list[str] | None,
    typer.Option(
        "--pipelines", help="Python module with feature pipelines to run by schedule; can be given repeatedly."
    ),
]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Return when the stack is ready; `down` stops it.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines as they come.")]
Lines = Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines of the past to show.")]
Service = Annotated[str | None, typer.Argument(help="E.g. predictor, predictor-1, postgres, gateway; default: all.")]
Programs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Programs or services, e.g. predictor-1, predictor, gateway; default: all services and gateway."
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Registers the commands."""
    panel = "Local stack"
    app.command(rich_help_panel=panel)(up)
    app.command(rich_help_panel=panel)(status)
    app.command(rich_help_panel=panel)(logs)
    app.command(rich_help_panel=panel)(restart)
    app.command(rich_help_panel=panel)(down)


def up(
    state: State = None,
    gateway_port: GatewayPort = 8443,
    metrics_port: MetricsPort = 9464,
    transforms: TransformModules = None,
    pipelines: PipelineModules = None,
    predictors: Predictors = 1,
    feature_stores: FeatureStores = 1,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Start the local stack: PostgreSQL, the four services and Envoy. Ctrl-C stops it."""
    from deploy.local.stack import StackOptions
    from deploy.local.state import state_folder

    transform_modules = tuple(_importable(module, "--transforms") for module in transforms or ())
    pipeline_modules = tuple(_importable(module, "--pipelines") for module in pipelines or ())
    options = StackOptions(
        *(state_folder(state), gateway_port, metrics_port, transform_modules, pipeline_modules),
        predictors=predictors,
        feature_stores=feature_stores,
    )
    with _errors_shown():
        if detach:
            _run_detached(options, as_json)
        else:
            _run_here(options, as_json)


def status(state: State = None, as_json: Json = False) -> None:
    """Show what runs. Exit code 0 when everything is ready, else 1."""
    from deploy.local.overview import view
    from deploy.local.state import read_json, state_folder

    folder = state_folder(state)
    with _errors_shown():
        seen = view(folder)
    rows = [
        {
            "service": program.service,
            "state": program.state.value,
            "pid": program.pid,
            "restarts": program.restarts,
            "uptime_s": None if program.uptime_s is None else round(program.uptime_s, 1),
            "memory_mib": None if program.memory_bytes is None else round(program.memory_bytes / (1 << 20), 1),
        }
        for program in seen.programs
    ]
    data = {
        "state": str(folder.path),
        "supervisor": seen.supervisor,
        "ready": seen.is_ready,
        "programs": rows,
        "connection": read_json(folder.connection) if seen.supervisor else None,
    }
    # A process id is a name, not a quantity.
    drawn = [{**row, "pid": str(row["pid"] or "")} for row in rows]
    show(as_json, data, table(drawn, f"nothing runs in {folder.path}; `foresight up` starts it"))
    if not seen.is_ready:
        raise typer.Exit(1)


def logs(service: Service = None, state: State = None, follow: Follow = False, lines: Lines = 50) -> None:
    """Show what the programs have logged; the services write one JSON object per line."""
    from deploy.local.log_files import tail
    from deploy.local.state import state_folder

    folder = state_folder(state)
    files = {file.stem: file for file in sorted(folder.logs.glob("*.log"), key=lambda file: file.stem)}
    if service is not None:
        known = ", ".join(files) or "none yet"
        # A service that runs, or ran, in several processes has a log for each.
        ours = re.compile(rf"{re.escape(service)}(-\d+)?")
        files = {name: file for name, file in files.items() if ours.fullmatch(name)}
        if not files:
            _fail(f"there is no log of {service!r} in {folder.logs}; there are: {known}")
    width = max(map(len, files), default=0)

    def show_line(name: str, line: str) -> None:
        typer.echo(line if len(files) == 1 and service else f"{name:{width}} | {line}")

    for name, file in files.items():
        for line in tail(file, lines):
            show_line(name, line)
    if follow:
        _interruptible(_follow(files, show_line))


def restart(programs: Programs = None, state: State = None, as_json: Json = False) -> None:
    """Restart programs one after the other, each once the one before is back; calls go on where there are several."""
    from deploy.local.restarts import restart as restart_programs
    from deploy.local.state import state_folder

    folder, done = state_folder(state), list[str]()
    with _errors_shown(), Console(stderr=True).status("restarting") as waiting:

        def note(name: str) -> None:
            done.append(name)
            waiting.update(f"restarted {', '.join(done)}")

        restart_programs(folder, programs or (), note)
    show(as_json, {"state": str(folder.path), "restarted": done}, f"restarted {', '.join(done)}")


def down(state: State = None, as_json: Json = False) -> None:
    """Stop the local stack, and wait until it is gone."""
    from deploy.local.background import stop_running
    from deploy.local.state import state_folder

    folder = state_folder(state)
    with _errors_shown(), Console(stderr=True).status("stopping"):
        stopped = stop_running(folder)
    text = f"stopped; its state stays in {folder.path}" if stopped else f"nothing runs in {folder.path}"
    show(as_json, {"state": str(folder.path), "stopped": stopped}, escape(text))


def _importable(module: str, option: str) -> str:
    """The name of a module that the services will find, as they start in the current folder too."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise typer.BadParameter(f"{option}: no module {module} can be imported from {folder}")
    return module


def _run_here(options: StackOptions, as_json: bool) -> None:
    from deploy.local.serving import serve

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    started = time.perf_counter()
    waiting = console.status("starting PostgreSQL, four services and Envoy")

    def ready() -> None:
        waiting.stop()
        _show_ready(options.state, as_json, started, "Ctrl-C stops it")

    waiting.start()
    try:
        asyncio.run(serve(options, lambda text: console.print(f"[dim]{escape(text)}[/]"), ready))
    finally:
        waiting.stop()


def _run_detached(options: StackOptions, as_json: bool) -> None:
    from deploy.local.background import start_detached

    started = time.perf_counter()
    with Console(stderr=True).status("starting PostgreSQL, four services and Envoy"):
        start_detached(options)
    _show_ready(options.state, as_json, started, "`foresight down` stops it")


def _show_ready(folder: StateFolder, as_json: bool, started: float, hint: str) -> None:
    from deploy.local.state import read_json

    connection = read_json(folder.connection) or {}
    text = (
        f"ready after {time.perf_counter() - started:.1f} s: gateway at {connection.get('gateway')}, "
        f"state in {folder.path}; {hint}"
    )
    show(as_json, connection, escape(text))


async def _follow(files: dict[str, Any], show_line: Callable[[str, str], None]) -> None:
    from deploy.local.log_files import follow

    async for name, line in follow(files):
        show_line(name, line)


def _interruptible(work: Any) -> None:
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@contextmanager
def _errors_shown() -> Iterator[None]:
    from deploy.local.state import StackError

    try:
        yield
    except StackError as error:
        _fail(str(error))


def _fail(text: str) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(text)}")
    raise typer.Exit(1) from None
