"""Columns of texts and of bools.

Up to EXACT_ROWS texts are counted by themselves. More come in blocks of so many: of each text a hash of 64 bits is
taken, the hashes are counted, and texts are looked at again only where theirs is frequent. Two texts with one hash
would count as one; among a billion different ones that is a chance of 3 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from services.feature_store.statistics.description import (
    TOP_BYTES_MAX,
    TOP_VALUES_MAX,
    ColumnStatistics,
    TextLengths,
    Value,
)
from services.feature_store.statistics.distincts import DistinctSketch
from services.feature_store.statistics.frequencies import FrequentValues, runs

EXACT_ROWS = 65_536
# Blocks in which a text occurs so many times in the mean have few to compare.
_REPEATED = 8


class TextColumn:
    """Statistics of texts without NULL."""

    def __init__(self, block_rows: int = EXACT_ROWS) -> None:
        self._block_rows = block_rows
        self._waiting: list[pa.Array] = []
        self._waiting_rows = 0
        self._frequent = FrequentValues()
        self._texts: pa.Array | None = None
        self._distincts = DistinctSketch()
        self._extremes: tuple[str, str] | None = None
        self._lengths: tuple[int, int, int] | None = None

    def add(self, texts: pa.Array) -> None:
        """Takes texts (Arrow type large_string)."""
        while self._waiting_rows + len(texts) > self._block_rows:
            fitting = self._block_rows - self._waiting_rows
            self._waiting.append(texts.slice(0, fitting))
            texts = texts.slice(fitting)
            self._absorb(self._block())
        if len(texts):
            self._waiting.append(texts)
            self._waiting_rows += len(texts)

    def finish(self, name: str, type: str, rows: int, nulls: int) -> ColumnStatistics:
        """The statistics of all texts."""
        if rows == nulls:
            return ColumnStatistics(name, type, rows, nulls, distinct=0)
        block = self._block()
        if self._texts is None:
            self._measure(block, block)
            counted = block.value_counts()
            texts, counts = counted.field("values"), np.asarray(counted.field("counts"))
            distinct = len(texts)
        else:
            self._absorb(block)
            texts, counts = self._texts, self._frequent.counts
            distinct = len(texts) if self._frequent.complete else self._distincts.count()
        assert self._extremes is not None
        assert self._lengths is not None
        shortest, longest, characters = self._lengths
        top = _top_texts(texts, counts)
        return ColumnStatistics(
            name,
            type,
            rows,
            nulls,
            distinct=distinct,
            minimum=self._extremes[0],
            maximum=self._extremes[1],
            top_values=tuple(text for text, _ in top),
            top_counts=tuple(count for _, count in top),
            lengths=TextLengths(shortest, longest, characters / (rows - nulls)),
        )

    def _block(self) -> pa.Array:
        block = pa.concat_arrays(self._waiting) if self._waiting else pa.array([], pa.large_string())
        self._waiting, self._waiting_rows = [], 0
        return block

    def _absorb(self, block: pa.Array) -> None:
        """Takes a block into the sketches."""
        if not len(block):
            return
        hashes = _hashes(block)
        order = np.argsort(hashes)
        ordered = hashes[order]
        starts, counts = runs(ordered)
        keys, rows = ordered[starts], order[starts]
        self._measure(block, block.take(pa.array(rows)) if len(rows) * _REPEATED < len(block) else block)
        self._distincts.add(keys)
        known = self._texts if self._texts is not None else block.slice(0, 0)
        sources = self._frequent.add(keys, counts)
        fresh = sources >= len(known)
        # The texts that are kept: the ones known before, then those of this block, in the order of `keys`.
        texts = pa.concat_arrays([known, block.take(pa.array(rows[sources[fresh] - len(known)]))])
        positions = sources.copy()
        positions[fresh] = len(known) + np.arange(int(fresh.sum()))
        self._texts = texts.take(pa.array(positions))

    def _measure(self, block: pa.Array, different: pa.Array) -> None:
        """Takes extremes and lengths of a block; `different` has all its texts, each once or more."""
        extremes = pc.min_max(different)
        least, most = extremes["min"].as_py(), extremes["max"].as_py()
        characters = pc.utf8_length(block)
        bounds = pc.min_max(characters)
        shortest, longest, total = bounds["min"].as_py(), bounds["max"].as_py(), pc.sum(characters).as_py()
        if self._extremes is not None and self._lengths is not None:
            least, most = min(least, self._extremes[0]), max(most, self._extremes[1])
            shortest, longest = min(shortest, self._lengths[0]), max(longest, self._lengths[1])
            total += self._lengths[2]
        self._extremes, self._lengths = (least, most), (shortest, longest, total)


class BoolColumn:
    """Statistics of bools without NULL."""

    def __init__(self) -> None:
        self._counts = {False: 0, True: 0}

    def add(self, bools: pa.Array) -> None:
        """Takes bools."""
        true = pc.sum(bools).as_py() or 0
        self._counts[True] += true
        self._counts[False] += len(bools) - true

    def finish(self, name: str, type: str, rows: int, nulls: int) -> ColumnStatistics:
        """The statistics of all bools."""
        found: list[tuple[bool, int]] = [(value, count) for value, count in self._counts.items() if count]
        n = rows - nulls
        if not n:
            return ColumnStatistics(name, type, rows, nulls, distinct=0)
        found.sort(key=lambda pair: -pair[1])
        share = self._counts[True] / n
        return ColumnStatistics(
            name,
            type,
            rows,
            nulls,
            distinct=len(found),
            minimum=not self._counts[False],
            maximum=bool(self._counts[True]),
            mean=share,
            standard_deviation=(share * (1 - share) * (n / (n - 1))) ** 0.5 if n > 1 else None,
            top_values=tuple(value for value, _ in found),
            top_counts=tuple(count for _, count in found),
        )


def _hashes(texts: pa.Array) -> NDArray[np.uint64]:
    # Takes a tenth of a second that a start-up should not wait for.
    import polars

    return polars.Series(texts).hash().to_numpy()


def _top_texts(texts: pa.Array, counts: NDArray[Any]) -> list[tuple[Value, int]]:
    """The most frequent texts, ties by text, within the bounds on values and bytes."""
    table = pa.table({"text": texts, "count": counts})
    order = [("count", "descending"), ("text", "ascending")]
    first = pc.select_k_unstable(table, k=min(TOP_VALUES_MAX, len(texts)), sort_keys=order)
    table = table.take(first)
    kept = np.cumsum(np.asarray(pc.binary_length(table["text"]))) <= TOP_BYTES_MAX
    table = table.filter(pa.array(kept))
    return list(zip(table["text"].to_pylist(), table["count"].to_pylist(), strict=True))
