"""What each input of a model adds to the score of a row: Shapley values against the rows of the model's example.

The game: a set of inputs has the values of the row, the others those of an example row, and the worth of the set is the
mean score of these mixed rows over the example. An input's contribution is its Shapley value (Shapley 1953; for models
Lundberg & Lee 2017, with the example as background and inputs taken as independent of each other):

- up to EXACT_INPUTS_MAX inputs that differ from the example anywhere: over all sets, without sampling;
- more: by walks from each example row to the row, one input after the other in a random order and in the reverse of
  it (Mitchell et al. 2022). The number of walks is the same for each example row, so every walk's ends cancel out.

Either way the sum of contributions is the score minus the base (the mean score over the example), but for rounding in
doubles. Orders depend on the seed alone, mixed rows are scored for one row at a time: the same row has the same
contributions, whatever else is explained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXACT_INPUTS_MAX = 8
# Mixed rows that are scored for one row; more only where one pair of walks per example row takes more.
MIXES_MAX = 8_192
# Mixed rows in one run of the model: large enough for its speed, small enough to be interrupted soon.
MIXES_AT_ONCE = 512

Inputs = Mapping[str, NDArray[Any]]
# Scores of mixed rows, (n,) float64.
Score = Callable[[Inputs], NDArray[np.float64]]


class NoScore(Exception):
    """The model has no finite score for a mixed row."""


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """Example rows of a model, each input (n,), and their scores, (n,) float64; n is at least 1."""

    inputs: Inputs
    scores: NDArray[np.float64]

    @property
    def base(self) -> float:
        """The mean score."""
        return float(self.scores.mean())


def contributions(score: Score, background: Background, row: Inputs, value: float, seed: int) -> dict[str, float]:
    """What each input adds to `value`, the score of `row` (each input (1,)).

    Raises NoScore, and what `score` raises.
    """
    players = [name for name, values in background.inputs.items() if _differs(values, row[name])]
    mixed = _Mixing(score, background, row, players)
    if not players:
        found = np.zeros(0)
    elif len(players) == 1:
        found = np.array([value - background.base])
    elif len(players) <= EXACT_INPUTS_MAX:
        found = _over_all_sets(mixed, value)
    else:
        found = _over_walks(mixed, value, seed)
    added = dict.fromkeys(background.inputs, 0.0)
    added.update(zip(players, found.tolist(), strict=True))
    return added


@dataclass(frozen=True, slots=True, eq=False)
class _Mixing:
    """Scores rows that have some inputs of the row and the others of example rows."""

    score: Score
    background: Background
    row: Inputs
    players: Sequence[str]

    def scores(self, n: int, taken: Callable[[NDArray[np.intp]], tuple[NDArray[np.bool_], NDArray[np.intp]]]) -> Any:
        """Scores of n mixed rows, (n,). `taken` says of some positions which players have the row's value,
        (m, players), and which example row gives the others, (m,)."""
        parts = []
        for start in range(0, n, MIXES_AT_ONCE):
            parts.append(self._scored(*taken(np.arange(start, min(start + MIXES_AT_ONCE, n)))))
        scores = np.concatenate(parts)
        if not np.isfinite(scores).all():
            raise NoScore
        return scores

    def _scored(self, taken: NDArray[np.bool_], examples: NDArray[np.intp]) -> NDArray[np.float64]:
        mixed = {name: values[examples] for name, values in self.background.inputs.items()}
        for position, name in enumerate(self.players):
            mixed[name] = np.where(taken[:, position], self.row[name], mixed[name])
        return self.score(mixed)


def _over_all_sets(mixed: _Mixing, value: float) -> NDArray[np.float64]:
    n, rows = len(mixed.players), len(mixed.background.scores)
    bits = 1 << np.arange(n)

    def taken(positions: NDArray[np.intp]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        sets, examples = np.divmod(positions, rows)
        return ((sets[:, None] + 1) & bits) != 0, examples

    # The empty set and the full one are known.
    between = mixed.scores(((1 << n) - 2) * rows, taken).reshape(-1, rows).mean(axis=1)
    worth = np.concatenate([[mixed.background.base], between, [value]])
    sizes = np.array([bin(s).count("1") for s in range(1 << n)])
    weights = 1 / (n * np.array([_choose(n - 1, size) for size in range(n)]))
    found = np.empty(n)
    for player in range(n):
        without = np.flatnonzero((np.arange(1 << n) & bits[player]) == 0)
        found[player] = np.sum(weights[sizes[without]] * (worth[without | bits[player]] - worth[without]))
    return found


def _over_walks(mixed: _Mixing, value: float, seed: int) -> NDArray[np.float64]:
    n, rows = len(mixed.players), len(mixed.background.scores)
    pairs = max(1, MIXES_MAX // (2 * rows * (n - 1)))
    # Raw bits, as NumPy promises them to be the same in any version.
    random = np.random.PCG64(seed).random_raw(rows * pairs * n).reshape(rows * pairs, n)
    forward = random.argsort(axis=1, kind="stable")
    orders = np.concatenate([forward, forward[:, ::-1]])
    places = orders.argsort(axis=1, kind="stable")
    examples_of = np.tile(np.arange(rows).repeat(pairs), 2)

    def taken(positions: NDArray[np.intp]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        walks, steps = np.divmod(positions, n - 1)
        return places[walks] <= steps[:, None], examples_of[walks]

    between = mixed.scores(len(orders) * (n - 1), taken).reshape(len(orders), n - 1)
    starts = mixed.background.scores[examples_of][:, None]
    along = np.concatenate([starts, between, np.full((len(orders), 1), value)], axis=1)
    added = np.take_along_axis(np.diff(along, axis=1), places, axis=1)
    means: NDArray[np.float64] = added.mean(axis=0)
    return means


def _differs(values: NDArray[Any], value: NDArray[Any]) -> bool:
    """Whether any example row has other bits than the row; NaN is NaN."""
    if values.dtype == object:
        return any(other != value[0] for other in values)
    same = (values.view(np.uint32) == value.view(np.uint32)) | (np.isnan(values) & np.isnan(value))
    return not same.all()


def _choose(n: int, k: int) -> int:
    result = 1
    for i in range(k):
        result = result * (n - i) // (i + 1)
    return result
