"""Which arm an entity gets: its share, that it stays, and how few move when weights change."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresight.values import Column, DataType
from services.predictor.assignment import Assignment, identities

ENTITIES = 5_000
INTEGERS = Column.build("id", DataType.INT64, range(ENTITIES))
NAMES = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=20)
WEIGHTS = st.dictionaries(NAMES, st.integers(0, 10_000), min_size=1, max_size=6).filter(lambda w: any(w.values()))
SALTS = st.text(max_size=20)


def chosen(salt: str, weights: dict[str, int], column: Column = INTEGERS) -> list[str]:
    names = list(weights)
    return [names[place] for place in Assignment(salt, list(weights.items())).choose([column])]


@settings(max_examples=15, deadline=None)
@given(SALTS, WEIGHTS)
def test_shares_are_those_of_the_weights(salt: str, weights: dict[str, int]) -> None:
    """Within six standard deviations and ten entities, as small shares have longer tails: a right method fails once in
    hundreds of millions of tries."""
    found = chosen(salt, weights)
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        spread = math.sqrt(ENTITIES * share * (1 - share))
        assert abs(found.count(name) - ENTITIES * share) <= 6 * spread + 10


@settings(max_examples=10, deadline=None)
@given(SALTS, WEIGHTS, st.data())
def test_a_changed_weight_moves_entities_to_or_from_its_arm_only(
    salt: str, weights: dict[str, int], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(weights)))
    changed = weights | {name: data.draw(st.integers(1, 10_000))}
    before, after = chosen(salt, weights), chosen(salt, changed)
    for was, now in zip(before, after, strict=True):
        if was != now:
            assert (now if changed[name] > weights[name] else was) == name


@settings(max_examples=10, deadline=None)
@given(SALTS, WEIGHTS, NAMES, st.integers(1, 10_000))
def test_an_arm_that_is_added_takes_entities_and_gives_them_back_when_it_goes(
    salt: str, weights: dict[str, int], name: str, weight: int
) -> None:
    others = {n: w for n, w in weights.items() if n != name}
    if not any(others.values()):
        return
    before, after = chosen(salt, others), chosen(salt, others | {name: weight})
    assert all(now in (was, name) for was, now in zip(before, after, strict=True))


def test_raising_an_arm_from_10_to_20_percent_keeps_those_that_were_in_it() -> None:
    before = chosen("delays", {"a": 90, "b": 10})
    after = chosen("delays", {"a": 80, "b": 20})
    assert all(now == "b" for was, now in zip(before, after, strict=True) if was == "b")
    moved = sum(was != now for was, now in zip(before, after, strict=True))
    assert abs(moved - ENTITIES / 10) < 6 * math.sqrt(ENTITIES * 0.1 * 0.9)


@settings(max_examples=10, deadline=None)
@given(SALTS, WEIGHTS, st.randoms(use_true_random=False), st.integers(2, 5))
def test_neither_the_order_of_arms_nor_the_scale_of_weights_counts(
    salt: str, weights: dict[str, int], random: object, factor: int
) -> None:
    shuffled = list(weights.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert chosen(salt, weights) == chosen(salt, {n: w * factor for n, w in shuffled})


def test_another_salt_shuffles_the_entities() -> None:
    """Whoever is in an arm of one experiment is in another's as if drawn anew."""
    one, other = chosen("one", {"a": 1, "b": 1}), chosen("other", {"a": 1, "b": 1})
    same = sum(a == b for a, b in zip(one, other, strict=True))
    assert abs(same - ENTITIES / 2) < 6 * math.sqrt(ENTITIES) / 2


_VALUES = st.one_of(
    st.tuples(st.just(DataType.INT64), st.none() | st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just(DataType.STRING), st.none() | st.text("ab01", max_size=10)),
    st.tuples(st.just(DataType.BOOL), st.none() | st.booleans()),
)


@given(st.lists(_VALUES, min_size=1, max_size=3), st.lists(_VALUES, min_size=1, max_size=3))
def test_entities_are_the_same_when_their_typed_values_are(
    mine: list[tuple[DataType, object]], others: list[tuple[DataType, object]]
) -> None:
    def identity(values: list[tuple[DataType, object]]) -> bytes:
        columns = [Column.build(f"key_{i}", type, [value]) for i, (type, value) in enumerate(values)]
        return identities(columns)[0]

    def content(values: list[tuple[DataType, object]]) -> list[object]:
        # A NULL is one of any type.
        return [None if value is None else (type, value) for type, value in values]

    assert (identity(mine) == identity(others)) == (content(mine) == content(others))


def test_the_order_in_which_keys_come_does_not_count() -> None:
    a, b = Column.build("a", DataType.INT64, [1, 2]), Column.build("b", DataType.STRING, ["x", None])
    assert identities([a, b]) == identities([b, a])


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (Column.build("id", DataType.INT64, [0, 1, -1, 2**63 - 1, None, 6, 7, 8]), "bbbaaabb"),
        (Column.build("id", DataType.STRING, ["", "a", "ä", None, "flight", "x" * 100, "0", "1"]), "cbbaaaca"),
        (Column.build("id", DataType.BOOL, [True, False, None]), "bca"),
        (Column.build("id", DataType.FLOAT64, [0.0, 1.5, None, -2.25]), "cbac"),
    ],
)
def test_assignments_never_change(column: Column, expected: str) -> None:
    """What was logged as an entity's arm is its arm for good: these were written down once."""
    weights = {"a": 50, "b": 30, "c": 20}
    assert "".join(chosen("salt", weights, column)) == expected


def test_another_process_assigns_alike() -> None:
    """Hashes of texts differ between processes; these do not."""
    program = (
        "from foresight.values import Column, DataType; from services.predictor.assignment import Assignment;"
        "c = Column.build('id', DataType.STRING, [str(i) for i in range(200)]);"
        "print(*Assignment('salt', [('a', 60), ('b', 40)]).choose([c]), sep='')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    column = Column.build("id", DataType.STRING, [str(i) for i in range(200)])
    assert done.stdout.strip() == "".join(map(str, Assignment("salt", [("a", 60), ("b", 40)]).choose([column])))


def test_an_arm_without_weight_gets_nobody() -> None:
    assert set(chosen("salt", {"a": 0, "b": 1, "c": 0})) == {"b"}
    assert "a" not in chosen("salt", {"a": 0, "b": 1, "c": 1})
