"""Whether an online feature has a value. The numbers are those of the wire enum FeatureStatus."""

from __future__ import annotations

import enum


class FeatureStatus(enum.IntEnum):
    """Status of one feature value, see "Online reads" in `docs/semantics.md`."""

    PRESENT = 1
    NULL = 2
    NOT_FOUND = 3
    EXPIRED = 4
    FUTURE = 5
    # The feature store did not answer: said by predictors, never by the feature store.
    UNAVAILABLE = 6
