"""How the rows of a training dataset are split: by time, or by a seeded hash of entity keys; never by row order.

The hash is made of 64-bit words and one step, `absorb`, all arithmetic modulo 2^64:

    absorb(state, word):
        x = (state XOR word) + 0x9E3779B97F4A7C15
        x = (x XOR (x >> 30)) * 0xBF58476D1CE4E5B9
        x = (x XOR (x >> 27)) * 0x94D049BB133111EB
        return x XOR (x >> 31)

A row's state starts as absorb(0, seed) and absorbs its keys, column by column in the view's order: first the kind of
the value (0 NULL, 1 int64, 2 bool, 3 text), then nothing for NULL, the two's complement of an int64, 0 or 1 for a
bool, and for a text the number of its UTF-8 bytes, then those bytes eight at a time as little-endian words, the last
one filled up with zeros. Kinds and lengths come before values, so that no two different keys are the same words. With
T = floor(test share * 2^64) and V = floor(validation share * 2^64), a row is `test` when its state is less than T,
else `validation` when it is less than T + V, else `train`. (The step is the output function of SplitMix64: Steele,
Lea and Flood, "Fast splittable pseudorandom number generators", 2014, with Stafford's thirteenth mixer.)

A NULL is a value here like any other: rows whose keys are NULL in the same columns and equal in the others stay
together.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foresight.values import DataType, FeatureView, Field, InvalidValue
from services.feature_store.tables.conformance import UTC_MICROS

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
SPLIT = "split"
SEED_MAX = 2**64 - 1

_NULL_KIND = 0
_KINDS = {DataType.INT64: 1, DataType.BOOL: 2, DataType.STRING: 3}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_WORD_BYTES = 8
Words: TypeAlias = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """`test` from `test_from` on, `validation` from `validation_from` on and before that, `train` before both."""

    test_from: datetime
    validation_from: datetime | None = None

    def __post_init__(self) -> None:
        if self.validation_from is not None and self.validation_from >= self.test_from:
            raise InvalidValue("header.validation_from", "is not before test_from")


@dataclass(frozen=True, slots=True)
class HashSplit:
    """Shares of entity keys, by the hash in the module's text; `keys` empty: all entity keys of the view."""

    seed: int = 0
    test_share: float = 0.0
    validation_share: float = 0.0
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = "header.hash_split"
        if not 0 <= self.seed <= SEED_MAX:
            raise InvalidValue(f"{where}.seed", "is not an unsigned 64-bit number")
        for name, share in (("test_share", self.test_share), ("validation_share", self.validation_share)):
            # A NaN is in no range.
            if not 0 <= share < 1:
                raise InvalidValue(f"{where}.{name}", "is not in [0, 1)")
        if not self.test_share + self.validation_share < 1:
            raise InvalidValue(where, "leaves nothing to train on: both shares together must be less than 1")
        if len(set(self.keys)) != len(self.keys):
            raise InvalidValue(f"{where}.keys", "names a key twice")

    def of_view(self, view: FeatureView) -> HashSplit:
        """The same split with its keys named, in the view's order. Raises InvalidValue for a name that is no key."""
        known = [key.name for key in view.entity_keys]
        if not known:
            raise InvalidValue("header.hash_split", f"{view.name} has no entity keys to split by")
        for name in self.keys:
            if name not in known:
                raise InvalidValue("header.hash_split.keys", f"{name[:63]} is not an entity key of {view.name}")
        chosen = tuple(name for name in known if not self.keys or name in self.keys)
        return HashSplit(self.seed, self.test_share, self.validation_share, chosen)


SplitRule: TypeAlias = TimeSplit | HashSplit


def split_column(rule: SplitRule | None, rows: pa.RecordBatch, keys: tuple[Field, ...]) -> pa.Array:
    """The split of each row, as text; `keys` are the view's entity keys, and `rows` has them and `event_time`."""
    if rule is None:
        return pa.repeat(TRAIN, rows.num_rows)
    if isinstance(rule, TimeSplit):
        return _by_time(rule, rows["event_time"])
    chosen = [key for key in keys if key.name in rule.keys]
    states = hash_keys(rule.seed, [(rows[key.name], key.type) for key in chosen], rows.num_rows)
    test, validation = (int(share * 2.0**64) for share in (rule.test_share, rule.validation_share))
    codes = np.zeros(rows.num_rows, np.int8)
    codes[states < np.uint64(test + validation)] = SPLITS.index(VALIDATION)
    codes[states < np.uint64(test)] = SPLITS.index(TEST)
    return pa.array(SPLITS, pa.string()).take(pa.array(codes))


def hash_keys(seed: int, columns: list[tuple[pa.Array, DataType]], rows: int) -> Words:
    """The states of rows, see the module; a column is an array with the Arrow type of its data type."""
    states = _absorb(np.zeros(rows, np.uint64), np.uint64(seed))
    for array, type in columns:
        present = np.asarray(array.is_valid())
        states = _absorb(states, np.where(present, np.uint64(_KINDS[type]), np.uint64(_NULL_KIND)))
        if type is DataType.STRING:
            states[present] = _absorb_texts(states[present], array.drop_null())
        else:
            values = array.drop_null().cast(pa.int64() if type is DataType.INT64 else pa.uint8())
            states[present] = _absorb(states[present], np.asarray(values).astype(np.int64).view(np.uint64))
    return states


def _by_time(rule: TimeSplit, times: pa.Array) -> pa.Array:
    split: pa.Array | str = TRAIN
    if rule.validation_from is not None:
        split = pc.if_else(pc.less(times, pa.scalar(rule.validation_from, UTC_MICROS)), TRAIN, VALIDATION)
    return pc.if_else(pc.less(times, pa.scalar(rule.test_from, UTC_MICROS)), split, TEST)


def _absorb(states: Words, words: Words | np.uint64) -> Words:
    x = (states ^ words) + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


def _absorb_texts(states: Words, texts: pa.Array) -> Words:
    """Lengths, then bytes; a step for each word position goes over the texts that have so many."""
    texts = texts.cast(pa.large_string())
    lengths = np.asarray(pc.binary_length(texts)).astype(np.int64)
    states = _absorb(states, lengths.view(np.uint64))
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return states
    starts = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts)]
    # Room behind the last text, so that eight bytes can be taken from every place in it.
    content = np.concatenate([np.frombuffer(data, np.uint8), np.zeros(_WORD_BYTES, np.uint8)])
    window = np.arange(_WORD_BYTES)
    longest = int(lengths.max())
    rows = np.arange(len(texts))
    for position in range(0, longest, _WORD_BYTES):
        rows = rows[lengths[rows] > position]
        taken = content[(starts[rows] + position)[:, None] + window]
        taken[window >= (lengths[rows] - position)[:, None]] = 0
        states[rows] = _absorb(states[rows], taken.view("<u8")[:, 0].astype(np.uint64))
    return states
