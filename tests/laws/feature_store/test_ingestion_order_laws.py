"""In which order rows came in makes no difference, as long as no two of them say something about a key at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.laws.feature_store.test_asof_laws import Asked, Row, Rule, Way, joined, keys, spines, way

__all__ = ["way"]

COMMITS = 5
rows_of_times = st.lists(
    st.builds(
        Row,
        keys=keys,
        event_time=st.integers(0, 8),
        commit=st.just(1),
        known_at=st.integers(0, 12),
        deleted=st.booleans(),
        value=st.none() | st.integers(0, 99).map(float),
    ),
    max_size=20,
    unique_by=lambda row: (row.keys, row.event_time),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=rows_of_times,
    spine=spines,
    rule=st.builds(
        Rule,
        strict=st.booleans(),
        known_by=st.booleans(),
        max_age=st.none() | st.integers(1, 6),
        watermark=st.just(COMMITS),
    ),
    data=st.data(),
)
def test_as_of_results_do_not_depend_on_the_order_of_ingestion(
    way: Way, rows: list[Row], spine: list[Asked], rule: Rule, data: st.DataObject
) -> None:
    """Cut into commits in two ways, in any order: backfills, late batches, or all at once."""

    def ingested() -> Sequence[Row]:
        numbers = data.draw(st.lists(st.integers(1, COMMITS), min_size=len(rows), max_size=len(rows)))
        return [replace(row, commit=number) for row, number in zip(rows, numbers, strict=True)]

    assert joined(way, ingested(), spine, rule) == joined(way, ingested(), spine, rule)
