"""Results of a benchmark: a table on the terminal and a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Result:
    """One measured figure and the bound that it is held against."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the bound is kept; True without one."""
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    def as_json(self) -> dict[str, Any]:
        """The figure as it is written."""
        bounds = {name: bound for name, bound in asdict(self).items() if bound is not None}
        return {**bounds, "holds": self.holds}


def publish(topic: str, results: list[Result]) -> None:
    """Prints the results and writes them to benchmarks/results/<topic>.json."""
    table = Table(title=topic, box=box.SIMPLE_HEAD)
    table.add_column("what")
    for name in ("value", "bound"):
        table.add_column(name, justify="right")
    table.add_column("holds")
    for r in results:
        bound = f"<= {r.at_most:g}" if r.at_most is not None else f">= {r.at_least:g}" if r.at_least is not None else ""
        table.add_row(r.name, f"{r.value:,.2f} {r.unit}", bound, "yes" if r.holds else "no")
    Console().print(table)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{topic}.json").write_text(json.dumps([r.as_json() for r in results], indent=2) + "\n")
