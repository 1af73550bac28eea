"""Questions and policies as values: properties over random statuses."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.values import Column, DataType, FeatureStatus, FeatureView, Field, MissingPolicy, ViewFeature, ViewSource
from services.predictor.plans import ViewPlan, plan_view
from services.predictor.policies import apply_policies, missing_of
from services.predictor.questions import check_question
from services.predictor.vectors import FeatureValues, SourceRows, Vectors
from services.predictor.versions import VersionRef
from services.runtime.errors import FeatureMissing

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DEFAULTS = {
    DataType.INT64: 42,
    DataType.FLOAT64: -1.5,
    DataType.BOOL: True,
    DataType.STRING: "unknown",
    DataType.TIMESTAMP: 1_000,
    DataType.FLOAT_VECTOR: [1.0, 2.0],
}
VALUES = {
    DataType.INT64: 7,
    DataType.FLOAT64: 0.25,
    DataType.BOOL: False,
    DataType.STRING: "here",
    DataType.TIMESTAMP: 5,
    DataType.FLOAT_VECTOR: [3.0, 4.0],
}


def plan_of(type: DataType, policy: MissingPolicy) -> ViewPlan:
    dimension = 2 if type is DataType.FLOAT_VECTOR else 0
    default = Column.build("f", type, [DEFAULTS[type]], dimension) if policy is MissingPolicy.DEFAULT else None
    feature = ViewFeature("f", missing=policy, default=default)
    return plan_view(
        FeatureView(
            "v",
            Field("y", DataType.BOOL),
            sources=(ViewSource("g", (feature,), group_version=1),),
            version=1,
            entity_keys=(Field("k", DataType.INT64),),
            features=(Field("f", type, dimension),),
        )
    )


statuses = st.lists(st.sampled_from(FeatureStatus), min_size=1, max_size=20)


@given(st.sampled_from(DataType), st.sampled_from(MissingPolicy), statuses)
def test_policies_touch_exactly_the_rows_without_a_value(
    type: DataType, policy: MissingPolicy, rows: list[FeatureStatus]
) -> None:
    """PRESENT rows keep their value; the others become NULL or the default, or the first of them fails the call."""
    plan = plan_of(type, policy)
    present = [s is FeatureStatus.PRESENT for s in rows]
    dimension = 2 if type is DataType.FLOAT_VECTOR else 0
    column = Column.build("f", type, [VALUES[type] if p else None for p in present], dimension)
    source = SourceRows(VersionRef("g", 1), (0,) * len(rows), (0,) * len(rows))
    vectors = Vectors((FeatureValues(column, bytes(rows)),), (source,))
    if policy is MissingPolicy.FAIL and not all(present):
        with pytest.raises(FeatureMissing) as caught:
            apply_policies(plan, vectors, len(rows))
        row = present.index(False)
        assert caught.value.metadata == {"feature": "f", "row": str(row), "status": rows[row].name}
        return
    (resolved,) = apply_policies(plan, vectors, len(rows))
    filler = DEFAULTS[type] if policy is MissingPolicy.DEFAULT else None
    wanted = Column.build("f", type, [VALUES[type] if p else filler for p in present], dimension)
    assert resolved.column.equals(wanted)
    assert resolved.statuses == (b"" if all(present) else bytes(rows))
    assert resolved.policies == (b"" if all(present) else bytes(0 if p else policy for p in present))
    assert [(m.row, m.status) for m in missing_of((resolved,))] == [
        (i, s) for i, s in enumerate(rows) if s is not FeatureStatus.PRESENT
    ]


@given(st.lists(st.none() | st.integers(-(2**53), 2**53), min_size=1, max_size=5))
def test_integers_become_floats_without_loss(values: list[int | None]) -> None:
    """NULLs stay NULL."""
    view = FeatureView(
        "v",
        Field("y", DataType.BOOL),
        request_features=(Field("x", DataType.FLOAT64),),
        features=(Field("x", DataType.FLOAT64),),
        version=1,
    )
    question = check_question(plan_view(view), {"x": Column.build("x", DataType.INT64, values)}, None, NOW)
    assert question.event_time == NOW
    assert question.request_features[0].to_list() == [None if v is None else float(v) for v in values]
