"""Questions and policies as values: properties over random statuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.values import (
    Column,
    DataType,
    FeatureStatus,
    FeatureView,
    Field,
    MissingPolicy,
    ViewFeature,
    ViewSource,
    instant_from_micros,
)
from services.predictor.plans import ViewPlan, plan_view
from services.predictor.policies import Missing, apply_policies, missing_of, rows_without_required
from services.predictor.questions import check_question
from services.predictor.vectors import FeatureValues, KnownValues, SourceRows, Vectors
from services.predictor.versions import VersionRef
from services.runtime.errors import FeatureMissing, Unavailable

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
KNOWN = {
    DataType.INT64: 8,
    DataType.FLOAT64: 0.1,
    DataType.BOOL: True,
    DataType.STRING: "before",
    DataType.TIMESTAMP: 6,
    DataType.FLOAT_VECTOR: [5.0, 6.0],
}


def plan_of(type: DataType, policy: MissingPolicy, *, default: bool) -> ViewPlan:
    dimension = 2 if type is DataType.FLOAT_VECTOR else 0
    feature = ViewFeature(
        "f",
        missing=policy,
        default=Column.build("f", type, [DEFAULTS[type]], dimension) if default else None,
        last_known_max_age=timedelta(days=1) if policy is MissingPolicy.LAST_KNOWN else None,
    )
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


# Of each row the status, and whether there is a last known value.
rows_of_a_feature = st.lists(st.tuples(st.sampled_from(FeatureStatus), st.booleans()), min_size=1, max_size=20)
Expected = list[tuple[Any, MissingPolicy | None]]


def expected(policy: MissingPolicy, default: bool, type: DataType, rows: list[tuple[FeatureStatus, bool]]) -> Expected:
    """Value and policy of each row, row by row; as far as the first that may not be without."""
    found: Expected = []
    for status, known in rows:
        if status is FeatureStatus.PRESENT:
            found.append((VALUES[type], None))
        elif policy is MissingPolicy.NULL:
            found.append((None, policy))
        elif policy is MissingPolicy.LAST_KNOWN and known and status is not FeatureStatus.NOT_FOUND:
            found.append((KNOWN[type], policy))
        elif default:
            found.append((DEFAULTS[type], MissingPolicy.DEFAULT))
        else:
            break
    return found


@given(st.sampled_from(DataType), st.sampled_from(MissingPolicy), st.booleans(), rows_of_a_feature)
def test_policies_touch_exactly_the_rows_without_a_value(
    type: DataType, policy: MissingPolicy, default: bool, rows: list[tuple[FeatureStatus, bool]]
) -> None:
    """PRESENT rows keep their value; the others become NULL, the last known value or the default, or the first of them
    fails the call: for good, or UNAVAILABLE when that is as the feature store is away."""
    default = policy is MissingPolicy.DEFAULT or (default and policy is MissingPolicy.LAST_KNOWN)
    plan = plan_of(type, policy, default=default)
    statuses, n = bytes(status for status, _ in rows), len(rows)
    dimension = 2 if type is DataType.FLOAT_VECTOR else 0
    present = [VALUES[type] if s is FeatureStatus.PRESENT else None for s, _ in rows]
    known = KnownValues(
        Column.build("f", type, [KNOWN[type] if k else None for _, k in rows], dimension),
        [1_000 + i if k else 0 for i, (_, k) in enumerate(rows)],
        [10 + i if k else 0 for i, (_, k) in enumerate(rows)],
    )
    column = Column.build("f", type, present, dimension)
    source = SourceRows(VersionRef("g", 1), (0,) * n, (0,) * n)
    vectors = Vectors((FeatureValues(column, statuses, known),), (source,))
    wanted = expected(policy, default, type, rows)
    refused = rows_without_required(plan, vectors, n)
    assert (min(refused, default=n), not refused) == (len(wanted), len(wanted) == n)
    if len(wanted) < n:
        status = rows[len(wanted)][0]
        error = Unavailable if status is FeatureStatus.UNAVAILABLE else FeatureMissing
        with pytest.raises(error) as caught:
            apply_policies(plan, vectors, n)
        told = {"feature": "f", "row": str(len(wanted)), "status": status.name}
        assert caught.value.metadata == told | ({"upstream": "feature store"} if error is Unavailable else {})
        return
    (resolved,) = apply_policies(plan, vectors, n)
    assert resolved.column.equals(Column.build("f", type, [value for value, _ in wanted], dimension))
    everything = all(p is None for _, p in wanted)
    assert resolved.statuses == (b"" if everything else statuses)
    assert resolved.policies == (b"" if everything else bytes(p or 0 for _, p in wanted))
    used = [p is MissingPolicy.LAST_KNOWN for _, p in wanted]
    assert list(resolved.known_commits) == ([10 + i if u else 0 for i, u in enumerate(used)] if any(used) else [])
    assert missing_of((resolved,)) == [
        Missing(i, "f", rows[i][0], p, instant_from_micros(1_000 + i) if used[i] else None)
        for i, (_, p) in enumerate(wanted)
        if p is not None
    ]
    for row in range(n):
        (alone,) = apply_policies(plan, vectors.take([row]), 1)
        assert alone.column.equals(resolved.take([row]).column)
        assert (alone.statuses or b"\1", alone.policies or b"\0") == (
            resolved.take([row]).statuses or b"\1",
            resolved.take([row]).policies or b"\0",
        )


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
