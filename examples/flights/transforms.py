"""On-demand transforms of the flights view; the same functions run in training, in batch and online."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def plane_age(scheduled_departure: NDArray[Any], year_built: NDArray[Any]) -> NDArray[Any]:
    """Age of the plane in years at departure; NaN where the plane is not known."""
    departs_in = scheduled_departure.astype("datetime64[Y]").astype(np.int64) + 1970
    return np.where(np.isnat(scheduled_departure), np.nan, departs_in - year_built)
