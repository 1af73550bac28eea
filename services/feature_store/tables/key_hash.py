"""Hashes of entity keys, column by column, to divide rows by their keys.

Equal keys have equal hashes, whatever batch they are in; nothing is ever concluded from equal hashes alone. The mixer
is the output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014);
a text is the polynomial of its bytes modulo 2^64.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_BASE = 0x100000001B3
# Texts that are hashed at once; a longer one is hashed alone.
TEXT_BYTES = 256 << 10


def hash_keys(keys: Sequence[pa.Array], text_bytes: int = TEXT_BYTES) -> NDArray[np.uint64]:
    """The hash of each row's keys, (n,) uint64; integers, bools and texts. Rows with a NULL in a key have any.

    Texts of about `text_bytes` are hashed at once, which changes nothing but the memory that it takes.
    """
    hashes = np.zeros(len(keys[0]), np.uint64)
    for key in keys:
        hashes = _mixed(hashes * _FIRST + _mixed(_column(key, text_bytes)))
    return hashes


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


def _column(key: pa.Array, text_bytes: int) -> NDArray[np.uint64]:
    if pa.types.is_boolean(key.type):
        return np.asarray(key.fill_null(False).cast(pa.uint8())).astype(np.uint64)
    if pa.types.is_integer(key.type):
        return np.asarray(key.fill_null(0)).astype(np.int64).view(np.uint64)
    return _texts(key.cast(pa.large_string()).fill_null(""), text_bytes)


def _texts(texts: pa.Array, bytes_at_once: int) -> NDArray[np.uint64]:
    _, offsets, data = texts.buffers()
    hashes = np.zeros(len(texts), np.uint64)
    if data is None or not len(texts):
        return hashes
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    values = np.frombuffer(data, np.uint8)
    # A byte takes some tens of bytes on the way.
    ends = np.searchsorted(bounds, np.arange(bounds[0] + bytes_at_once, bounds[-1], bytes_at_once), "right") - 1
    for start, end in itertools.pairwise(np.unique([0, *ends, len(texts)]).tolist()):
        hashes[start:end] = _polynomials(values, bounds[start : end + 1])
    return hashes


def _polynomials(data: NDArray[np.uint8], bounds: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The hashes of the texts between bounds."""
    hashes = np.zeros(len(bounds) - 1, np.uint64)
    lengths = np.diff(bounds)
    filled = np.flatnonzero(lengths)
    if not len(filled):
        return hashes
    values = data[bounds[0] : bounds[-1]].astype(np.uint64)
    starts = bounds[filled] - bounds[0]
    place = np.arange(len(values)) - np.repeat(starts, lengths[filled])
    powers = np.ones(int(lengths.max()), np.uint64)
    powers[1:] = np.cumprod(np.full(len(powers) - 1, _BASE, np.uint64))
    hashes[filled] = np.add.reduceat((values + np.uint64(1)) * powers[place], starts)
    return hashes
