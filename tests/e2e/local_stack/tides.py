"""A group, and a pipeline that gives it a row a second: what the stack of these tests runs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from foresight.client import DataType, FeatureGroup, Field
from foresight.pipelines import Window, pipeline

GROUP = FeatureGroup("tides", (Field("place", DataType.STRING),), (Field("height", DataType.FLOAT64),))
SECOND = timedelta(seconds=1)


@pipeline(group=GROUP.name, schedule=SECOND)
def tides(window: Window) -> list[dict[str, Any]]:
    """One row, at the start of the window."""
    return [{"place": "Battery", "event_time": window.start, "height": 0.5}]
