"""Rules for names, texts and errors."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.values import InvalidValue, Violation, check_name
from foresight.values.errors import quoted
from foresight.values.names import RESERVED_NAMES, RESERVED_PREFIXES, check_text


@given(st.text(max_size=70))
def test_a_name_is_taken_exactly_when_it_is_short_lower_case_and_not_reserved(name: str) -> None:
    good = (
        re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name, re.ASCII) is not None
        and not name.startswith(RESERVED_PREFIXES)
        and name not in RESERVED_NAMES
    )
    try:
        assert check_name(name) == name
    except InvalidValue:
        assert not good
    else:
        assert good


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "1a",
        "_a",
        "a-b",
        "a.b",
        "a b",
        "a\n",
        "a\0",
        "café",
        "\u0430bc",
        "a\u200b",
        "../etc",
        "http://host",
        "x'; DROP TABLE rows; --",
        "a" * 64,
        "log_features",
        "prediction_id",
        "event_time",
        "x" * 1_000_000,
    ],
)
def test_names_that_could_mislead_are_refused_in_few_words(name: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        check_name(name, "view")
    assert refused.value.violations[0].field == "view"
    assert len(str(refused.value)) < 250
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["log_features", "prediction_id", "event_time"])
def test_the_platform_itself_may_use_reserved_names(name: str) -> None:
    assert check_name(name, reserved=True) == name


@pytest.mark.parametrize(
    "text", ["é" * 513, "x" * 1_025, "a\0", "e\u0301", "\udfff"], ids=["bytes", "long", "nul", "nfd", "surrogate"]
)
def test_texts_are_bounded_normal_and_without_nul(text: str) -> None:
    with pytest.raises(InvalidValue, match="description"):
        check_text(text, "description")


def test_texts_at_the_bound_are_taken() -> None:
    assert check_text("é" * 512, "description") == "é" * 512
    assert check_text("", "description") == ""


@given(st.text() | st.binary() | st.integers() | st.lists(st.floats()))
def test_quoted_input_is_short_and_printable(value: object) -> None:
    text = quoted(value)
    assert len(text) <= 60
    assert text.isprintable()


def test_a_fault_seen_from_a_larger_message_keeps_all_its_fields() -> None:
    error = InvalidValue("a", "is wrong", Violation("", "is empty")).within("rows[1]")
    assert [v.field for v in error.violations] == ["rows[1].a", "rows[1]"]
    assert str(error) == "rows[1].a: is wrong; rows[1]: is empty"
