"""Conditions as people type them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import typer

from foresight.cli.reads import parse_conditions
from foresight.client import DataType, FeatureGroup, Field, InvalidValue

GROUP = FeatureGroup(
    "weather",
    (Field("origin", DataType.STRING),),
    (
        Field("wind", DataType.FLOAT64),
        Field("count", DataType.INT64),
        Field("is_open", DataType.BOOL),
        Field("inches", DataType.FLOAT64),
    ),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wind>5", ("wind", ">", 5.0)),
        (" wind  <=  -1.5 ", ("wind", "<=", -1.5)),
        ("count != 3", ("count", "!=", 3)),
        ("count==3", ("count", "==", 3)),
        ("origin = a = b", ("origin", "=", "a = b")),
        ("origin in JFK, LGA", ("origin", "in", ["JFK", "LGA"])),
        ("origin IN JFK", ("origin", "in", ["JFK"])),
        ("wind is null", ("wind", "is null")),
        ("wind IS  NOT NULL", ("wind", "is not null")),
        ("is_open=true", ("is_open", "=", True)),
        ("inches<1", ("inches", "<", 1.0)),
        ("event_time>=2026-02-01T00:00:00Z", ("event_time", ">=", datetime(2026, 2, 1, tzinfo=UTC))),
    ],
)
def test_a_condition_has_the_type_of_its_column(text: str, expected: tuple[Any, ...]) -> None:
    """And may have spaces wherever people put them."""
    assert parse_conditions([text], GROUP) == [expected]


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("wind", typer.BadParameter, "not a condition such as"),
        ("wind ~ 5", typer.BadParameter, "not a condition such as"),
        ("wind is null 5", typer.BadParameter, "after 'is null'"),
        ("gust > 5", InvalidValue, "gust is not a column of weather, which has origin, wind"),
        ("count > many", InvalidValue, "'many' is not of type int64"),
    ],
)
def test_a_wrong_condition_says_what_is_wrong(text: str, error: type[Exception], says: str) -> None:
    """Before anything is asked."""
    with pytest.raises(error, match=says):
        parse_conditions([text], GROUP)
