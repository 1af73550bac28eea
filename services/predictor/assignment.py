"""Which arm of a deployment an entity gets: decided by a hash of its keys, so that it always gets the same one.

Weighted rendezvous hashing. Each arm draws for each entity a number u, evenly spread over (0, 1), out of a hash of
salt, arm and entity; the entity gets the arm with the smallest -ln(u) / weight. The smallest of exponentially
distributed numbers with rates w_i is the i-th with probability w_i / sum(w), so the shares are the weights'. An arm's
number depends on its own name and weight only, not on the other arms or their order, so that

- changing one weight, adding or removing an arm moves entities to or from that arm only, no more than the shares ask;
- raising one arm and lowering the others by one factor keeps everybody in the raised arm who was there.

The hash is BLAKE2b of bytes that are written down here and never change: it is the same in every process, version of
Python and machine. (The logarithm of another machine may differ in its last bit, which decides for about one entity in
10^15.)

The method: David G. Thaler and Chinya V. Ravishankar, "Using name-based mappings to increase hit rates" (1998);
weights as in Christian Schindelhauer and Gunnar Schomaker, "Weighted distributed hash tables" (2005).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

from foresight.values import Column, DataType

_NULL = b"\0"
_EVEN = 2.0**-53
_INTEGER = struct.Struct("<cq")
_FLOAT = struct.Struct("<cd")
_LENGTH = struct.Struct("<cI")


class Assignment:
    """Assigns entities to the arms that have a weight."""

    def __init__(self, salt: str, weights: Sequence[tuple[str, int]]) -> None:
        """`weights` are those of arms, by name; they have at least one that is not 0."""
        self._arms = [(place, weight, _draws(salt, name)) for place, (name, weight) in enumerate(weights) if weight]
        self._only = self._arms[0][0] if len(self._arms) == 1 else None

    def choose(self, entities: Sequence[Column]) -> list[int]:
        """The place of each row's arm in `weights`; the columns are the entity's keys and have n rows, at least one."""
        if self._only is not None:
            return [self._only] * len(entities[0])
        return [self._arm_of(entity) for entity in identities(entities)]

    def _arm_of(self, entity: bytes) -> int:
        chosen, least = 0, math.inf
        for place, weight, draws in self._arms:
            draw = draws.copy()
            draw.update(entity)
            # The middle of one of 2^53 equal parts: never 0 or 1.
            u = ((int.from_bytes(draw.digest(), "little") >> 11) + 0.5) * _EVEN
            score = -math.log(u) / weight
            if score < least:
                chosen, least = place, score
        return chosen


def identities(columns: Sequence[Column]) -> list[bytes]:
    """The bytes that stand for each row's values: by name of the column, with types, NULL as a value of its own."""
    encoded = [_encoded(column) for column in sorted(columns, key=lambda c: c.name)]
    return encoded[0] if len(encoded) == 1 else [b"".join(values) for values in zip(*encoded, strict=True)]


def _draws(salt: str, arm: str) -> hashlib.blake2b:
    prefix = b"".join(_text(text) for text in (salt, arm))
    return hashlib.blake2b(prefix, digest_size=8)


def _encoded(column: Column) -> list[bytes]:
    encode = _ENCODERS[column.type]
    values = [encode(value) for value in column.values.tolist()]
    if column.valid is None:
        return values
    return [value if valid else _NULL for value, valid in zip(values, column.valid.tolist(), strict=True)]


def _text(value: str) -> bytes:
    data = value.encode()
    return _LENGTH.pack(b"s", len(data)) + data


def _float(value: float) -> bytes:
    # One zero and one NaN.
    return _FLOAT.pack(b"f", math.nan if value != value else value + 0.0)


def _vector(value: list[float]) -> bytes:
    return _LENGTH.pack(b"v", len(value)) + b"".join(_float(v) for v in value)


_ENCODERS: dict[DataType, Callable[[Any], bytes]] = {
    DataType.INT64: lambda value: _INTEGER.pack(b"i", value),
    DataType.BOOL: lambda value: b"b\1" if value else b"b\0",
    DataType.STRING: _text,
    DataType.TIMESTAMP: lambda value: _INTEGER.pack(b"t", value),
    DataType.FLOAT64: _float,
    DataType.FLOAT_VECTOR: _vector,
}
