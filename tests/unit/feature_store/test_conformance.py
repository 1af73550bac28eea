"""What fits into a field, and what is refused."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pytest

from foresight.values import DataType, Field
from services.feature_store.tables.conformance import Unfit, conform

INT = Field("x", DataType.INT64)
FLOAT = Field("x", DataType.FLOAT64)
BOOL = Field("x", DataType.BOOL)
TEXT = Field("x", DataType.STRING)
TIME = Field("x", DataType.TIMESTAMP)
PAIR = Field("x", DataType.FLOAT_VECTOR, 2)
NOON = datetime(2026, 3, 29, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("array", "field", "expected"),
    [
        (pa.array([1, None], pa.int8()), INT, [1, None]),
        (pa.array([2**63 - 1], pa.uint64()), INT, [2**63 - 1]),
        (pa.array([None, None]), INT, [None, None]),
        (pa.array([0.5, None], pa.float32()), FLOAT, [0.5, None]),
        (pa.array([2**53, -(2**53)], pa.int64()), FLOAT, [2.0**53, -(2.0**53)]),
        (pa.array([True, None]), BOOL, [True, None]),
        (pa.array(["a", "é", None, ""], pa.large_string()), TEXT, ["a", "é", None, ""]),
        (pa.array(["a", "é"]).cast(pa.string_view()), TEXT, ["a", "é"]),
        (pa.array(["a", "b", None, "a"]).dictionary_encode(), TEXT, ["a", "b", None, "a"]),
        (pa.array([NOON, None], pa.timestamp("s", "Europe/Berlin")), TIME, [NOON, None]),
        (pa.array([1_999], pa.timestamp("ns", "UTC")), TIME, [datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC)]),
        # Cut towards the past, never into the future.
        (pa.array([-1], pa.timestamp("ns", "UTC")), TIME, [datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)]),
        (pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float64())), PAIR, [[1, 2], None, [3, 4]]),
        (pa.array([None, [1.5, 2.0]], pa.large_list(pa.float32())), PAIR, [None, [1.5, 2.0]]),
        (pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)), PAIR, [[1, 2], None]),
        (pa.array([], pa.list_(pa.float32())), PAIR, []),
    ],
)
def test_what_loses_nothing_is_cast(array: pa.Array, field: Field, expected: list[Any]) -> None:
    """Also in several chunks and out of a slice."""
    assert conform(pa.chunked_array([array]), field).to_pylist() == expected
    chunks = pa.chunked_array([array.slice(0, 1), array.slice(1)])
    assert conform(chunks, field).to_pylist() == expected


@pytest.mark.parametrize(
    ("array", "field", "why"),
    [
        (pa.array([1.0]), INT, "is double"),
        (pa.array([True]), INT, "is bool"),
        (pa.array([2**63], pa.uint64()), INT, "beyond 2\\^63"),
        (pa.array([2**53 + 1]), FLOAT, "beyond 2\\^53"),
        (pa.array([math.nan]), FLOAT, "NaN"),
        (pa.array([None, -math.inf]), FLOAT, "NaN or an infinity"),
        (pa.array(["1"]), FLOAT, "is string"),
        (pa.array([1]), BOOL, "is int64"),
        (pa.array([b"a"]), TEXT, "is binary"),
        (pa.array(["a\0"]), TEXT, "NUL"),
        (pa.array(["a", "e\u0301"]), TEXT, "normal form"),
        (pa.array(["x" * 4_097]), TEXT, "4096 bytes"),
        (pa.array([date(2026, 1, 1)]), TIME, "is date32"),
        (pa.array([NOON.replace(tzinfo=None)]), TIME, "without a time zone"),
        (pa.array([2**62], pa.timestamp("s", "UTC")), TIME, "do not fit"),
        (pa.array([300_000_000_000], pa.timestamp("s", "UTC")), TIME, "years 1 to 9999"),
        (pa.array([[1.0]]), PAIR, "has not 2 floats"),
        (pa.array([[1.0, None]]), PAIR, "NULL in it"),
        (pa.array([[1.0, 1e300]]), PAIR, "infinity"),
        (pa.array([["a", "b"]]), PAIR, "list of string"),
        (pa.array([1.0]), PAIR, "not a list of 2 floats"),
    ],
)
def test_what_would_lose_something_is_refused(array: pa.Array, field: Field, why: str) -> None:
    """With a text that says what it is."""
    with pytest.raises(Unfit, match=why):
        conform(pa.chunked_array([array]), field)
