"""Transforms as a user would write them, and some that a user should not write."""

from __future__ import annotations

from typing import Any

import numpy as np


def is_rush_hour(x: Any) -> Any:
    return (x >= 16) & (x <= 19)


def twice(x: Any) -> Any:
    return 2 * x


def shout(x: Any) -> Any:
    return np.array([None if t is None else t.upper() for t in x], dtype=object)


def next_day(x: Any) -> Any:
    return x + np.timedelta64(1, "D")


def total(x: Any) -> Any:
    return x.sum(axis=1)


def too_few(x: Any) -> Any:
    return x[:-1]


def infinite(x: Any) -> Any:
    return x / np.zeros(len(x))


def halves(x: Any) -> Any:
    return x + 0.5


def large(x: Any) -> Any:
    return np.full(len(x), 2**53 + 1)


def words(x: Any) -> Any:
    return np.array(["a"] * len(x), dtype=object)


def thrice(y: Any) -> Any:
    return 3 * y


def ranks(x: Any) -> Any:
    return x.argsort().argsort()


def first_letter(x: Any) -> Any:
    return np.array([t[0] for t in x], dtype=object)


NOT_A_FUNCTION = 3
