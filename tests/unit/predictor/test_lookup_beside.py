"""Look-ups that nobody waits for leave no trace on those of others."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from foresight.values import Column, DataType, FeatureView, Field, ViewFeature, ViewSource
from services.predictor.breaker import SILENCE_S, Breaker
from services.predictor.lookup import Lookup
from services.predictor.plans import plan_view
from services.predictor.vectors import NO_VECTORS, Vectors, VectorSource
from services.predictor.versions import VersionRef
from services.runtime.errors import Unavailable

PLAN = plan_view(
    FeatureView(
        "flights",
        label=Field("late", DataType.BOOL),
        sources=(ViewSource("weather", (ViewFeature("wind"),)),),
        entity_keys=(Field("origin", DataType.STRING),),
        features=(Field("wind", DataType.FLOAT64),),
        version=1,
    )
)
KEYS = [Column.build("origin", DataType.STRING, ["JFK"])]


class Silent(VectorSource):
    """Never answers; takes a second to say so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0

    async def vectors(
        self, view: VersionRef, keys: Sequence[Column], event_time_micros: Sequence[int], timeout_s: float
    ) -> Vectors:
        self.asked += 1
        self.now += 2 * SILENCE_S
        raise Unavailable("it does not answer")

    async def replay(self, *args: object) -> Vectors:
        return NO_VECTORS


async def test_silence_beside_opens_nothing_and_an_open_breaker_is_not_probed() -> None:
    source = Silent()
    lookup = Lookup(source, breaker=Breaker(lambda: source.now))
    for _ in range(5):
        with pytest.raises(Unavailable):
            await lookup.vectors_beside(PLAN, KEYS, [0], 1.0)
    assert (source.asked, lookup.away) == (5, False)
    with pytest.raises(Unavailable):
        await lookup.vectors(PLAN, KEYS, [0], 1.0)
    assert (source.asked, lookup.away) == (6, True)
    # Long after the pause the next one who is waited for is the probe.
    source.now += 100.0
    with pytest.raises(Unavailable):
        await lookup.vectors_beside(PLAN, KEYS, [0], 1.0)
    assert source.asked == 6
    with pytest.raises(Unavailable):
        await lookup.vectors(PLAN, KEYS, [0], 1.0)
    assert source.asked == 7
