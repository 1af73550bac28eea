"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import math

# More doublings than any bound on a wait needs; without an end the number outgrows every float in an outage of hours.
_DOUBLINGS_MAX = 32


def backoff_s(failures: int, first_s: float, max_s: float) -> float:
    """Seconds to wait after so many failures in a row, doubled with each of them, at most `max_s`."""
    return min(max_s, math.ldexp(first_s, min(failures, _DOUBLINGS_MAX)))
