"""Pictures of how figures grow: one panel per curve, both axes logarithmic, as benchmarks/results/<topic>.svg."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.results import FOLDER


@dataclass(frozen=True, slots=True)
class Curve:
    """What grows, and its points (size, value)."""

    name: str
    points: Sequence[tuple[float, float]]


def draw(topic: str, size: str, curves: Sequence[Curve]) -> None:
    """Draws the curves over the size that they share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(curves), 3.5), layout="constrained")
    for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        axes.plot(*zip(*curve.points, strict=True), marker="o")
        axes.set(xscale="log", yscale="log", xlabel=size, title=curve.name)
        axes.grid(visible=True, which="both", alpha=0.3)
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f"{topic}.svg", metadata={"Date": None})
