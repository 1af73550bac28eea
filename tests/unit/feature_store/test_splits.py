"""Splits: by time, or by a hash of the keys that is the same on every machine and in every version."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresight.values import DataType, FeatureView, Field, InvalidValue
from services.feature_store.datasets.splits import SEED_MAX, SPLITS, HashSplit, TimeSplit, hash_keys, split_column

MASK = 2**64 - 1
UTC_MICROS = pa.timestamp("us", "UTC")
KEYS = (Field("id", DataType.INT64), Field("place", DataType.STRING), Field("open", DataType.BOOL))
TYPES = (pa.int64(), pa.string(), pa.bool_())
CELLS = st.tuples(
    st.none() | st.integers(-(2**63), 2**63 - 1), st.none() | st.text(max_size=20), st.none() | st.booleans()
)
ROWS = st.lists(CELLS, max_size=30)


def rows(cells: list[tuple[Any, ...]]) -> pa.RecordBatch:
    """Rows with the three keys."""
    columns = list(zip(*cells, strict=True)) or [(), (), ()]
    arrays = [pa.array(values, type) for values, type in zip(columns, TYPES, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=[key.name for key in KEYS])


def split(rule: HashSplit, cells: list[tuple[Any, ...]]) -> list[str]:
    """The splits of rows."""
    named = HashSplit(rule.seed, rule.test_share, rule.validation_share, rule.keys or tuple(k.name for k in KEYS))
    found: list[str] = split_column(named, rows(cells), KEYS).to_pylist()
    return found


def described_hash(seed: int, cells: tuple[Any, ...]) -> int:
    """The function as its description says it, a row at a time."""

    def absorb(state: int, word: int) -> int:
        x = ((state ^ word) + 0x9E3779B97F4A7C15) & MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    state = absorb(0, seed)
    for cell in cells:
        match cell:
            case None:
                words = [0]
            case bool():
                words = [2, int(cell)]
            case int():
                words = [1, cell & MASK]
            case _:
                data = cell.encode()
                pieces = (data[i : i + 8] for i in range(0, len(data), 8))
                words = [3, len(data), *(int.from_bytes(p.ljust(8, b"\0"), "little") for p in pieces)]
        for word in words:
            state = absorb(state, word)
    return state


@given(cells=ROWS, seed=st.integers(0, SEED_MAX), cut=st.integers(0, 30))
def test_the_hash_is_the_one_that_is_described(cells: list[tuple[Any, ...]], seed: int, cut: int) -> None:
    """For every kind of key, also of rows that are a part of others."""
    batch = rows(cells).slice(min(cut, len(cells)))
    columns = [(batch.column(i), key.type) for i, key in enumerate(KEYS)]
    assert hash_keys(seed, columns, batch.num_rows).tolist() == [described_hash(seed, row) for row in cells[cut:]]


def test_the_hash_never_changes() -> None:
    """Written down: datasets that were split by earlier versions must come out the same."""
    cells = [(1, "JFK", True), (-1, "", False), (None, None, None), (2**63 - 1, "é" * 9, None), (0, "12345678", True)]
    columns = [(rows(cells).column(i), key.type) for i, key in enumerate(KEYS)]
    assert [f"{state:016x}" for state in hash_keys(42, columns, len(cells)).tolist()] == KNOWN
    # Each column is told from its neighbours: ('1', '23') is not ('12', '3').
    texts = [(pa.array(["1", "12"]), DataType.STRING), (pa.array(["23", "3"]), DataType.STRING)]
    assert [f"{state:016x}" for state in hash_keys(0, texts, 2).tolist()] == KNOWN_TEXTS
    assert split(HashSplit(7, 0.5, 0.25), cells) == KNOWN_SPLITS


@given(cells=ROWS, seed=st.integers(0, SEED_MAX), order=st.randoms())
def test_rows_of_a_key_are_together_whatever_their_order(cells: list[tuple[Any, ...]], seed: int, order: Any) -> None:
    """Twice the rows, shuffled: the same key is in the same split. A NULL is a key like any other."""
    rule = HashSplit(seed, 0.3, 0.3)
    assigned = dict(zip(cells, split(rule, cells), strict=True))
    shuffled = [*cells, *cells]
    order.shuffle(shuffled)
    assert split(rule, shuffled) == [assigned[cell] for cell in shuffled]


@settings(max_examples=20)
@given(
    seed=st.integers(0, SEED_MAX),
    shares=st.tuples(st.floats(0, 0.49), st.floats(0, 0.49)),
    first=st.integers(-(2**62), 2**62),
)
def test_shares_are_kept(seed: int, shares: tuple[float, float], first: int) -> None:
    """Keys that follow each other are spread as chance would: within 6 standard deviations of their share."""
    n = 20_000
    cells = [(first + i, f"key {i // 3}", None) for i in range(n)]
    counts = Counter(split(HashSplit(seed, *shares), cells))
    for name, share in (("test", shares[0]), ("validation", shares[1])):
        assert abs(counts[name] - share * n) <= 6 * math.sqrt(n * share * (1 - share)) + 1
    assert sum(counts.values()) == n


def test_seeds_and_keys_change_who_goes_where() -> None:
    """And a larger share of test keeps whom a smaller one had."""
    cells = [(i, str(i), None) for i in range(1_000)]
    first = split(HashSplit(1, 0.3), cells)
    assert split(HashSplit(2, 0.3), cells) != first
    assert split(HashSplit(1, 0.3, keys=("place",)), cells) != first
    larger = split(HashSplit(1, 0.6, 0.2), cells)
    assert {i for i, name in enumerate(first) if name == "test"} < {
        i for i, name in enumerate(larger) if name == "test"
    }
    assert set(split(HashSplit(1), cells)) == {"train"}
    assert set(split(HashSplit(1, math.nextafter(1, 0)), cells)) == {"test"}
    same_place = split(HashSplit(3, 0.5, keys=("place",)), [(i, "here", None) for i in range(100)])
    assert len(set(same_place)) == 1


def test_shares_and_keys_that_cannot_be_are_refused() -> None:
    """Each with the field at fault."""
    nan = math.nan
    for arguments, field in (
        ({"test_share": 1.0}, "test_share"),
        ({"test_share": -0.1}, "test_share"),
        ({"validation_share": nan}, "validation_share"),
        ({"validation_share": math.inf}, "validation_share"),
        ({"test_share": 0.5, "validation_share": 0.5}, "hash_split"),
        ({"seed": -1}, "seed"),
        ({"keys": ("a", "a")}, "keys"),
    ):
        with pytest.raises(InvalidValue, match=field):
            HashSplit(**arguments)
    label, hour = Field("late", DataType.BOOL), Field("hour", DataType.INT64)
    view = FeatureView("v", label, (), request_features=(hour,), entity_keys=KEYS)
    assert HashSplit().of_view(view).keys == ("id", "place", "open")
    assert HashSplit(keys=("open", "id")).of_view(view).keys == ("id", "open")
    with pytest.raises(InvalidValue, match="prediction_id is not an entity key"):
        HashSplit(keys=("prediction_id",)).of_view(view)
    with pytest.raises(InvalidValue, match="no entity keys"):
        HashSplit(test_share=0.5).of_view(FeatureView("v", label, (), request_features=(hour,)))
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    with pytest.raises(InvalidValue, match="validation_from"):
        TimeSplit(noon, noon)


def test_times_split_at_their_bounds() -> None:
    """A row at a bound belongs to what begins there."""
    times = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)]
    batch = pa.record_batch({"event_time": pa.array(times, UTC_MICROS)})
    assert split_column(None, batch, ()).to_pylist() == ["train"] * 4
    assert split_column(TimeSplit(times[2]), batch, ()).to_pylist() == ["train", "train", "test", "test"]
    both = split_column(TimeSplit(times[3], times[1]), batch, ()).to_pylist()
    assert both == ["train", "validation", "validation", "test"]
    empty = batch.slice(4)
    assert len(split_column(TimeSplit(times[3], times[1]), empty, ())) == 0
    assert set(both) == set(SPLITS)


KNOWN = ["6baa59d57ed02566", "b6de5d6cc6d6be61", "c16129ecd0dc5b93", "086484d1b1776feb", "38221fb0b1dec556"]
KNOWN_TEXTS = ["55f00feacc81a7fc", "ada8a5aa4a6c06d5"]
KNOWN_SPLITS = ["test", "train", "test", "test", "test"]
