"""On-demand transforms that the tests' views name."""

from __future__ import annotations

from typing import Any

import numpy as np


def total_delay(delay: Any, hour: Any) -> Any:
    """A NULL delay counts as none."""
    return np.nan_to_num(delay) + hour


def fails_on_zero(hour: Any) -> Any:
    """Infinite at hour 0."""
    return 1.0 / hour


def odd_text(hour: Any) -> Any:
    """Not in Unicode's normal form C."""
    return np.full(len(hour), "e\u0301", np.object_)


def centred(hour: Any) -> Any:
    """Not row by row: it depends on which rows are asked together."""
    return hour - np.nanmean(hour)
