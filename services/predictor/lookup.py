"""Asks the feature store for vectors, and says what is known without it.

Whether it is away is for the breaker to say; an error that it answers is an answer. Views none of whose features must
have a value are answered without it, so for them a look-up takes only a share of the time that a caller has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from foresight.values import Column
from services.predictor.breaker import Breaker
from services.predictor.last_known import LastKnown
from services.predictor.plans import ViewPlan
from services.predictor.policies import FEATURE_STORE
from services.predictor.vectors import Vectors, VectorSource
from services.runtime.errors import Unavailable

log = structlog.get_logger()

TIMEOUT_MAX_S = 5.0
# Of views that can do without: also of the caller's time, the rest is for the answer.
TIMEOUT_WITHOUT_S = 2.0
DEADLINE_SHARE_WITHOUT = 0.6


def patience_s(plan: ViewPlan, remaining_s: float) -> float:
    """How long a caller who still has so much time waits for the feature store."""
    if plan.needs_feature_store:
        return min(TIMEOUT_MAX_S, remaining_s)
    return min(TIMEOUT_WITHOUT_S, DEADLINE_SHARE_WITHOUT * remaining_s)


class Lookup:
    """The look-ups of one replica; used by one event loop."""

    def __init__(
        self, source: VectorSource, last_known: LastKnown | None = None, breaker: Breaker | None = None
    ) -> None:
        self._source = source
        # An empty one is false.
        self._last_known = LastKnown() if last_known is None else last_known
        self._breaker = breaker or Breaker()

    @property
    def away(self) -> bool:
        """Whether the feature store is known to be away."""
        return not self._breaker.closed

    async def vectors(
        self, plan: ViewPlan, keys: Sequence[Column], event_time_micros: Sequence[int], timeout_s: float
    ) -> Vectors:
        """The feature store's answer, with last known values where they may stand in.

        Raises Unavailable when it does not answer, at once while it is known to be away, and its errors.
        """
        trial = self._breaker.enter(timeout_s)
        if trial is None:
            raise Unavailable(f"the {FEATURE_STORE} does not answer", upstream=FEATURE_STORE)
        conclude: Callable[..., None] = self._breaker.left
        try:
            vectors = await self._source.vectors(plan.ref, keys, event_time_micros, trial.timeout_s)
            conclude = self._breaker.answered
        except Unavailable:
            conclude = self._breaker.silent
            raise
        except Exception:
            conclude = self._breaker.answered
            raise
        finally:
            self._conclude(conclude, trial)
        return self._last_known.observe(plan, keys, event_time_micros, vectors)

    async def vectors_beside(
        self, plan: ViewPlan, keys: Sequence[Column], event_time_micros: Sequence[int], timeout_s: float
    ) -> Vectors:
        """The feature store's answer to a question that nobody waits for: it opens no breaker, is no probe, and leaves
        last known values to others.

        Raises Unavailable when it does not answer, at once while it is known to be away, and its errors.
        """
        if self.away:
            raise Unavailable(f"the {FEATURE_STORE} does not answer", upstream=FEATURE_STORE)
        return await self._source.vectors(plan.ref, keys, event_time_micros, timeout_s)

    def without(self, plan: ViewPlan, keys: Sequence[Column], event_time_micros: Sequence[int]) -> Vectors:
        """The vectors of a feature store that is away: all UNAVAILABLE, with last known values."""
        return self._last_known.recall(plan, keys, event_time_micros)

    def _conclude(self, conclude: Callable[..., None], trial: object) -> None:
        before = self.away
        conclude(trial)
        if self.away != before:
            log.warning("feature_store_away" if self.away else "feature_store_back")
