"""Contributions are Shapley values: compared with their definition, exact where stated, and near it where sampled."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.predictor.shapley import (
    EXACT_INPUTS_MAX,
    MIXES_AT_ONCE,
    MIXES_MAX,
    Background,
    Inputs,
    NoScore,
    contributions,
)

SEED = 12_345
# Of the greatest distance between two scores of example rows, for sampled contributions; see docs/semantics.md.
TOLERANCE = 0.02


def by_definition(score: Any, background: Background, row: Inputs, value: float) -> dict[str, float]:
    """The mean over all orders of what an input adds to those before it."""
    names = list(background.inputs)
    n = len(background.scores)

    def worth(taken: tuple[str, ...]) -> float:
        if len(taken) == len(names):
            return value
        mixed = {k: np.repeat(row[k], n) if k in taken else v for k, v in background.inputs.items()}
        return float(score(mixed).mean())

    found = dict.fromkeys(names, 0.0)
    worths = {frozenset(s): worth(s) for k in range(len(names) + 1) for s in itertools.combinations(names, k)}
    for name in names:
        others = [n for n in names if n != name]
        for size in range(len(others) + 1):
            for before in itertools.combinations(others, size):
                weight = 1 / (len(names) * math.comb(len(others), size))
                found[name] += weight * (worths[frozenset(before) | {name}] - worths[frozenset(before)])
    return found


def tangled(inputs: Inputs) -> NDArray[np.float64]:
    """Sums, products, steps; NaN and texts count."""
    total = np.zeros(len(next(iter(inputs.values()))))
    previous = np.ones_like(total)
    for position, values in enumerate(inputs.values()):
        if values.dtype == object:
            number = np.array([float(len(text)) for text in values])
        else:
            number = np.where(np.isnan(values), -1.5, values.astype(np.float64))
        total += (position + 1) * np.tanh(number) + 2 * previous * number * (number > 0)
        previous = np.tanh(number)
    return total


def drawn(d: int, rows: int, seed: int) -> tuple[Background, dict[str, NDArray[Any]], float]:
    random = np.random.default_rng(seed)

    def some(n: int) -> dict[str, NDArray[Any]]:
        inputs: dict[str, NDArray[Any]] = {f"x{i}": random.normal(size=n).astype(np.float32) for i in range(d)}
        inputs["x0"][random.random(n) < 0.3] = np.nan
        if d > 1:
            inputs["x1"] = np.array([["", "a", "JFK"][i] for i in random.integers(0, 3, n)], object)
        return inputs

    example, row = some(rows), some(1)
    return Background(example, tangled(example)), row, float(tangled(row)[0])


def sums_up(added: dict[str, float], background: Background, value: float) -> bool:
    largest = max(abs(v) for v in (value, background.base, *added.values()))
    return abs(background.base + sum(added.values()) - value) <= 1e-9 * largest


@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**32))
def test_few_inputs_have_their_shapley_values(d: int, rows: int, seed: int) -> None:
    background, row, value = drawn(d, rows, seed)
    added = contributions(tangled, background, row, value, SEED)
    assert added == pytest.approx(by_definition(tangled, background, row, value), rel=1e-9, abs=1e-9)
    assert sums_up(added, background, value)


@pytest.mark.parametrize("seed", range(5))
def test_more_inputs_come_near_their_shapley_values(seed: int) -> None:
    """Orders are sampled, and their number is bounded."""
    d = EXACT_INPUTS_MAX + 3
    background, row, value = drawn(d, 16, seed)
    added = contributions(tangled, background, row, value, SEED)
    exact = by_definition(tangled, background, row, value)
    spread = background.scores.max() - background.scores.min()
    assert max(abs(added[name] - exact[name]) for name in exact) <= TOLERANCE * spread
    assert sums_up(added, background, value)


@pytest.mark.parametrize("d", [3, EXACT_INPUTS_MAX, EXACT_INPUTS_MAX + 1, 60])
def test_inputs_that_only_add_up_have_exactly_what_they_add(d: int) -> None:
    """Weight times the distance from the example's mean, sampled or not."""
    random = np.random.default_rng(d)
    weights = random.normal(size=d)

    def score(inputs: Inputs) -> NDArray[np.float64]:
        return np.stack([inputs[f"x{i}"].astype(np.float64) for i in range(d)], axis=1) @ weights

    example = {f"x{i}": random.normal(size=32).astype(np.float32) for i in range(d)}
    row = {f"x{i}": random.normal(size=1).astype(np.float32) for i in range(d)}
    background, value = Background(example, score(example)), float(score(row)[0])
    added = contributions(score, background, row, value, SEED)
    for i in range(d):
        mean = float(example[f"x{i}"].astype(np.float64).mean())
        assert added[f"x{i}"] == pytest.approx(weights[i] * (float(row[f"x{i}"][0]) - mean), rel=1e-9, abs=1e-9)
    assert sums_up(added, background, value)


def test_an_input_that_never_differs_adds_nothing() -> None:
    """A row that is as every example row is explained by nothing, NULLs and texts among it; no mixed row is scored."""
    row: dict[str, NDArray[Any]] = {"x": np.array([np.nan], np.float32), "s": np.array(["a"], object)}
    example = {name: values.repeat(4) for name, values in row.items()}

    def score(inputs: Inputs) -> NDArray[np.float64]:
        raise AssertionError

    assert contributions(score, Background(example, np.full(4, 2.0)), row, 2.0, SEED) == {"x": 0.0, "s": 0.0}
    # Where one differs it adds all.
    row["x"] = np.array([1.0], np.float32)
    assert contributions(score, Background(example, np.full(4, 2.0)), row, 5.0, SEED) == {"x": 3.0, "s": 0.0}


@pytest.mark.parametrize("d", [EXACT_INPUTS_MAX, EXACT_INPUTS_MAX + 1, 40, 129, 512])
def test_the_work_for_a_row_is_bounded(d: int) -> None:
    """In all, and in one run of the model; many inputs take one pair of walks per example row."""
    sizes: list[int] = []

    def score(inputs: Inputs) -> NDArray[np.float64]:
        sizes.append(len(inputs["x0"]))
        return np.zeros(sizes[-1])

    random = np.random.default_rng(d)
    example = {f"x{i}": random.normal(size=32).astype(np.float32) for i in range(d)}
    row = {f"x{i}": random.normal(size=1).astype(np.float32) for i in range(d)}
    contributions(score, Background(example, np.zeros(32)), row, 0.0, SEED)
    assert sum(sizes) <= max(MIXES_MAX, 2 * 32 * (d - 1))
    assert max(sizes) <= MIXES_AT_ONCE


def test_the_same_row_has_the_same_bits_and_another_seed_others() -> None:
    background, row, value = drawn(12, 8, 3)
    first, again, other = (contributions(tangled, background, row, value, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("d", [2, EXACT_INPUTS_MAX + 2])
def test_a_mixed_row_without_a_score_has_no_explanation(d: int) -> None:
    background, row, value = drawn(d, 4, 1)

    def score(inputs: Inputs) -> NDArray[np.float64]:
        return np.full(len(inputs["x0"]), np.nan)

    with pytest.raises(NoScore):
        contributions(score, background, row, value, SEED)
