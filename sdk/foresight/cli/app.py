"""The application: all commands together, and how an error ends a command.

Exit codes: 0 done, 1 refused (by Foresight, or found wrong before anything was sent), 2 wrong usage.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from foresight.cli import (
    datasets,
    describe,
    features,
    forget,
    lineage,
    models,
    online,
    pipelines,
    prediction_log,
    predictions,
    reads,
    registry,
    stack,
)
from foresight.cli.terminal import report_error
from foresight.client import ForesightError, InvalidValue


class Commands(TyperGroup):
    """The commands; an error that a person can act on ends one with a clear line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command. Raises typer.Exit(1) for what was refused."""
        try:
            return super().invoke(ctx)
        except (ForesightError, InvalidValue) as error:
            report_error(error)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    name="foresight",
    help="Prediction services: features, training, predictions and logs in one loop.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)
for part in (
    stack,
    features,
    reads,
    registry,
    lineage,
    describe,
    pipelines,
    datasets,
    online,
    models,
    predictions,
    prediction_log,
    forget,
):
    part.add_commands(app)
