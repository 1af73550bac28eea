"""Examples of models: what is written is read to the bit, is bounded, and damage is an error like any other."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from foresight.scoring import Example, decode_example, encode_example, example_rows
from foresight.scoring.examples import EXAMPLE_BYTES_MAX, EXAMPLE_ROWS_MAX, EXAMPLE_TEXT_BYTES_MAX
from foresight.values import InvalidValue

FLOATS = st.integers(0, 2**32 - 1).map(lambda bits: np.array([bits], np.uint32).view(np.float32)[0])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    n = draw(st.integers(1, EXAMPLE_ROWS_MAX))
    width = draw(st.integers(0, 3))
    numbers = draw(st.lists(FLOATS, min_size=n, max_size=n))
    texts = draw(st.lists(TEXTS, min_size=n, max_size=n))
    outputs = np.array(draw(st.lists(FLOATS, min_size=n * max(width, 1), max_size=n * max(width, 1))), np.float32)
    inputs: dict[str, NDArray[Any]] = {"x": np.array(numbers, np.float32), "s": np.array(texts, object)}
    return Example(inputs, outputs.reshape((n, width) if width else (n,)))


def texts_of(*lengths: int) -> dict[str, NDArray[Any]]:
    return {"s": np.array(["x" * length for length in lengths], object)}


def wide(columns: int, length: int, rows: int = EXAMPLE_ROWS_MAX) -> Example:
    inputs: dict[str, NDArray[Any]] = {f"s{i}": np.array(["x" * length] * rows, object) for i in range(columns)}
    return Example(inputs, np.arange(rows, dtype=np.float32))


@given(examples())
def test_an_example_is_read_as_it_was_written(example: Example) -> None:
    text = encode_example(example)
    assert text is not None
    assert text.isascii()
    read = decode_example(text)
    assert read.outputs.shape == example.outputs.shape
    assert read.outputs.tobytes() == example.outputs.tobytes()
    assert read.inputs["x"].tobytes() == example.inputs["x"].tobytes()
    assert read.inputs["s"].tolist() == example.inputs["s"].tolist()


@given(examples(), st.data())
def test_damage_is_refused_or_read_as_some_example(example: Example, data: st.DataObject) -> None:
    """Never anything else, whatever happens to a character."""
    text = encode_example(example) or ""
    position = data.draw(st.integers(0, len(text) - 1))
    damaged = (
        text[:position] + data.draw(st.sampled_from(['"', "9", "[", "}", "\\", "", "é", "-"])) + text[position + 1 :]
    )
    with contextlib.suppress(InvalidValue):
        assert 1 <= decode_example(damaged).rows <= EXAMPLE_ROWS_MAX


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": None},
        {"rows": 0},
        {"rows": EXAMPLE_ROWS_MAX + 1},
        {"rows": "1"},
        {"inputs": []},
        {"inputs": {"x": "AAAA"}},
        {"inputs": {"x": [1]}},
        {"inputs": {"x": ["a", "b"]}},
        {"inputs": {"x": None}},
        {"outputs": {"width": 3, "values": "AAAAAA=="}},
        {"outputs": {"width": -1, "values": ""}},
        {"outputs": {}},
    ],
)
def test_what_is_no_example_is_refused(change: dict[str, Any]) -> None:
    document = json.loads(encode_example(Example({"x": np.zeros(1, np.float32)}, np.zeros(1, np.float32))) or "")
    with pytest.raises(InvalidValue):
        decode_example(json.dumps(document | change))


@pytest.mark.parametrize("text", ["", "null", "[]", "7", "[" * 100_000, "x" * (EXAMPLE_BYTES_MAX + 1)])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        decode_example(text)


def test_rows_are_spread_over_all() -> None:
    """From the first to the last, the same every time; few rows are all taken."""
    rows = example_rows({"x": np.zeros(1_000, np.float32)})
    assert (rows[0], rows[-1], len(rows)) == (0, 999, EXAMPLE_ROWS_MAX)
    assert set(np.diff(rows).tolist()) <= {32, 33}
    assert example_rows({"x": np.zeros(3, np.float32)}).tolist() == [0, 1, 2]


def test_rows_with_a_long_text_are_left_out() -> None:
    """The bound counts bytes, not characters."""
    longest = EXAMPLE_TEXT_BYTES_MAX
    assert example_rows(texts_of(longest, longest + 1, 0)).tolist() == [0, 2]
    assert example_rows({"s": np.array(["é" * (longest // 2 + 1)], object)}).tolist() == []


def test_an_example_that_is_too_large_is_thinned() -> None:
    """Every second row goes until the text fits; where none fits there is no example."""
    text = encode_example(wide(100, 200))
    assert text is not None
    assert len(text) <= EXAMPLE_BYTES_MAX
    assert decode_example(text).outputs.tolist() == list(range(0, EXAMPLE_ROWS_MAX, 2))
    assert encode_example(wide(3_000, 200)) is None
    assert encode_example(wide(1, 1, rows=0)) is None
