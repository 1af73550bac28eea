"""Joining one source with a spine where one of them does not fit into memory.

Spine and history are divided by a hash of the entity keys into parts on disk, and each part is joined in memory by the
engine that small joins use; the values come back into the spine's order by the number of its rows. A part that is too
large itself, because a few keys have most of the rows, is cut along time: slice after slice, with the row that is
valid at the end of a slice carried on for each key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foresight.tables import arrow_type
from foresight.values import FeatureView
from services.feature_store.reads.asof import AsOfEngine, AsOfSide, counts_since, last_per_key
from services.feature_store.reads.histories import BatchStream, EventTimes, Histories, history_schema
from services.feature_store.reads.source_join import candidates, feature_schema, row_bytes, values
from services.feature_store.reads.spine import Spine
from services.feature_store.registry.view_plan import SourcePlan
from services.feature_store.tables.conformance import one_array
from services.feature_store.tables.key_hash import hash_keys
from services.feature_store.tables.ordered_rows import ROW, OrderedRows
from services.feature_store.tables.row_source import RowSource
from services.feature_store.tables.spill import PartitionedRows, Spill
from services.runtime.threads import in_thread

TIME = "t"
PARTS_MAX = 4_096
# Times of a part that are looked at to cut it.
_SAMPLE_MAX = 1 << 22


@dataclass(frozen=True, slots=True)
class JoinBounds:
    """What a join holds in memory at once.

    `table_rows` and `table_bytes`: of a spine with its features, and of a history, up to which they are joined whole.
    `part_rows` and `part_bytes`: of either side of a part. `range_rows`: of what is put in order at once.
    `buffer_bytes`: of each file that is being written.
    """

    table_rows: int = 2_000_000
    table_bytes: int = 256 << 20
    part_rows: int = 500_000
    part_bytes: int = 128 << 20
    range_rows: int = 65_536
    buffer_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Reading:
    """Which rows count, and where to put what does not fit into memory."""

    watermark: int
    known_by: bool
    spill: Spill


@dataclass(frozen=True, slots=True)
class _Part:
    """A partition of a file."""

    rows: PartitionedRows
    number: int

    @property
    def count(self) -> int:
        return self.rows.count(self.number)

    def batches(self) -> Iterator[pa.RecordBatch]:
        return self.rows.batches(self.number)

    def tables(self, rows: int) -> Iterator[pa.Table]:
        """The rows in tables of at most about so many."""
        return _in_pieces(self.batches(), rows)


class LargeJoin:
    """Joins sources with spines on disk."""

    def __init__(self, histories: Histories, engine: AsOfEngine, bounds: JoinBounds) -> None:
        self._histories = histories
        self._engine = engine
        self._bounds = bounds

    async def features(
        self,
        view: FeatureView,
        source: SourcePlan,
        spine: Spine,
        within: EventTimes,
        reading: Reading,
        history: pa.Table | None = None,
    ) -> RowSource:
        """The features of a source, one row per spine row, in order.

        `within` is the reach of the spine; `history` are the rows of the source when they fit into memory.
        """
        schema = feature_schema(source)
        range_rows = max(1, min(self._bounds.range_rows, self._bounds.part_bytes // (row_bytes(schema) + 8)))
        output = OrderedRows(reading.spill, schema, range_rows)
        work = _SourceWork(view, source, self._engine, self._bounds, reading, output)
        if history is not None:
            await work.join_whole(spine, history)
        else:
            count = await self._histories.count(source.group, reading.watermark)
            stream = self._histories.history_stream(source.group, source.names_in_group, reading.watermark, within)
            async with stream as batches:
                parts = await work.divide(spine, batches, spine.rows.num_rows + count)
            await work.join_parts(*parts)
        await in_thread(output.finish)
        return output


class _SourceWork:
    """The join of one source."""

    def __init__(
        self,
        view: FeatureView,
        source: SourcePlan,
        engine: AsOfEngine,
        bounds: JoinBounds,
        reading: Reading,
        output: OrderedRows,
    ) -> None:
        self._source = source
        self._engine = engine
        self._bounds = bounds
        self._known_by = reading.known_by
        self._spill = reading.spill
        self._output = output
        self._view_keys = [view.entity_keys[i] for i in source.key_positions]
        self._group_keys = [key.name for key in source.group.group.entity_keys]
        keys = [(f"k{i}", arrow_type(key)) for i, key in enumerate(self._view_keys)]
        self._asked = pa.schema([*keys, (TIME, pa.int64()), (ROW, pa.int64())])
        stored = history_schema(source.group.group, source.names_in_group)
        # Of either side: the answer to a row of the spine takes about what a row of the group takes.
        self._rows_max = max(1, min(bounds.part_rows, bounds.part_bytes // row_bytes(stored)))

    async def join_whole(self, spine: Spine, history: pa.Table) -> None:
        """Joins with a history that is in memory, a piece of the spine at a time."""
        pieces = _in_pieces(self._asked_of(spine), self._rows_max)
        while (piece := await in_thread(next, pieces, None)) is not None:
            await self._join(piece, history)

    async def divide(self, spine: Spine, history: BatchStream, rows: int) -> tuple[PartitionedRows, PartitionedRows]:
        """Spine and history in parts by their keys; `rows` is about how many they are together."""
        count = max(1, min(PARTS_MAX, -(-rows // self._rows_max)))
        asked = self._spill.partitions(self._asked, self._bounds.buffer_bytes)
        batches = self._asked_of(spine)
        while (batch := await in_thread(next, batches, None)) is not None:
            await in_thread(_write_part, asked, batch, self._asked.names[:-2], count)
        await in_thread(asked.finish)
        rows_of_group = self._spill.partitions(history.schema, self._bounds.buffer_bytes)
        while (batch := await in_thread(history.next_batch)) is not None:
            await in_thread(_write_part, rows_of_group, batch, self._group_keys, count)
        await in_thread(rows_of_group.finish)
        return asked, rows_of_group

    async def join_parts(self, asked: PartitionedRows, history: PartitionedRows) -> None:
        """Joins part by part, and removes the parts."""
        for number in asked.partitions():
            spine_part, history_part = _Part(asked, number), _Part(history, number)
            if spine_part.count + history_part.count <= 2 * self._rows_max:
                await self._join(*await in_thread(_read_both, spine_part, history_part))
            else:
                await self._join_along_time(spine_part, history_part, history.schema.empty_table())
        for rows in (asked, history):
            await in_thread(rows.remove)

    async def _join_along_time(self, asked: _Part, history: _Part, carried: pa.Table) -> pa.Table:
        """Joins a part slice by slice. `carried` are rows that count before all of `history`, one per key; the answer
        are those that count at the end."""
        if history.count <= self._rows_max:
            rows = pa.concat_tables([carried, await in_thread(history.rows.read, history.number)])
            await self._join_pieces(asked, rows)
            return await in_thread(self._last, rows)
        first, cuts = await in_thread(self._cuts, history)
        if not len(cuts):
            # All rows count from one time on: none before it, and from then on the last one of each key.
            cuts = np.array([first])
            slices = await in_thread(_sliced, asked, cuts, _asked_times, self._spill, self._bounds.buffer_bytes)
            await self._join_pieces(_Part(slices, 0), carried)
            pieces = history.tables(self._rows_max)
            while (piece := await in_thread(next, pieces, None)) is not None:
                carried = await in_thread(self._last, pa.concat_tables([carried, piece]))
            await self._join_pieces(_Part(slices, 1), carried)
            await in_thread(slices.remove)
            return carried
        slices = await in_thread(_sliced, asked, cuts, _asked_times, self._spill, self._bounds.buffer_bytes)
        rows_of_group = await in_thread(_sliced, history, cuts, self._since, self._spill, self._bounds.buffer_bytes)
        for number in range(len(cuts) + 1):
            carried = await self._join_along_time(_Part(slices, number), _Part(rows_of_group, number), carried)
        for made in (slices, rows_of_group):
            await in_thread(made.remove)
        return carried

    async def _join_pieces(self, asked: _Part, history: pa.Table) -> None:
        pieces = asked.tables(self._rows_max)
        while (piece := await in_thread(next, pieces, None)) is not None:
            await self._join(piece, history)

    async def _join(self, asked: pa.Table, history: pa.Table) -> None:
        """Chooses for rows of the spine among rows in memory, and writes what they see."""
        rows = await in_thread(candidates, self._source, history)
        side = await in_thread(_side, asked)
        chosen = await self._engine.choose(side, rows, strict=self._source.strict, known_by=self._known_by)

        def write() -> None:
            made = values(self._source, side.times, history, rows, chosen)
            made[ROW] = one_array(asked[ROW])
            self._output.write(pa.RecordBatch.from_arrays(list(made.values()), names=list(made)))

        await in_thread(write)

    def _asked_of(self, spine: Spine) -> Iterator[pa.RecordBatch]:
        """What the engine needs of a spine, with the number of each row."""
        row = 0
        for batch in spine.columns([*(key.name for key in self._view_keys), "event_time"]):
            numbers = np.arange(row, row + batch.num_rows)
            row += batch.num_rows
            *keys, times = batch.columns
            yield pa.RecordBatch.from_arrays([*keys, times.cast(pa.int64()), pa.array(numbers)], schema=self._asked)

    def _since(self, batch: pa.RecordBatch) -> NDArray[np.int64]:
        """From which time on each row of the group counts."""
        rows = candidates(self._source, pa.Table.from_batches([batch]))
        return counts_since(rows, strict=self._source.strict, known_by=self._known_by)

    def _last(self, table: pa.Table) -> pa.Table:
        """The row of each key that counts in the end."""
        return table.take(pa.array(last_per_key(candidates(self._source, table))))

    def _cuts(self, history: _Part) -> tuple[int, NDArray[np.int64]]:
        """The first time of rows, and later ones that cut them into slices; none when there is one time only."""
        stride = -(-history.count // _SAMPLE_MAX)
        times = np.concatenate([self._since(batch)[::stride] for batch in history.batches()])
        first = min(int(self._since(batch).min()) for batch in history.batches())
        later = np.concatenate([_next_after(self._since(batch), first) for batch in history.batches()])
        if not len(later):
            return first, later
        times.sort()
        pieces = -(-history.count // max(1, self._rows_max // 2))
        cuts = np.unique(np.append(times[np.arange(1, pieces) * len(times) // pieces], later.min()))
        return first, cuts[cuts > first]


def _next_after(times: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    """The earliest time after `first`, (1,), or none, (0,)."""
    later = times[times > first]
    return later.min(keepdims=True) if len(later) else later


def _asked_times(batch: pa.RecordBatch) -> NDArray[np.int64]:
    return np.asarray(batch.column(TIME))


def _side(asked: pa.Table) -> AsOfSide:
    keys = tuple(one_array(asked[name]) for name in asked.column_names[:-2])
    return AsOfSide(keys, np.asarray(one_array(asked[TIME])))


def _read_both(asked: _Part, history: _Part) -> tuple[pa.Table, pa.Table]:
    return asked.rows.read(asked.number), history.rows.read(history.number)


def _write_part(rows: PartitionedRows, batch: pa.RecordBatch, keys: Sequence[str], count: int) -> None:
    """Divides rows by their keys. A row with a NULL in its keys finds nothing, wherever it is."""
    columns = [batch.column(name) for name in keys]
    numbers = (hash_keys(columns) % np.uint64(count)).astype(np.int64)
    missing = np.zeros(batch.num_rows, np.bool_)
    for column in columns:
        if column.null_count:
            missing |= np.asarray(column.is_null())
    if missing.any():
        numbers[missing] = np.arange(int(missing.sum())) % count
    rows.write(batch, numbers)


def _in_pieces(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Tables of about so many rows; none is empty."""
    gathered: list[pa.RecordBatch] = []
    for batch in batches:
        for start in range(0, batch.num_rows, rows):
            gathered.append(batch.slice(start, rows))
            if sum(b.num_rows for b in gathered) >= rows:
                yield pa.Table.from_batches(gathered)
                gathered = []
    if gathered:
        yield pa.Table.from_batches(gathered)


def _sliced(
    part: _Part,
    cuts: NDArray[np.int64],
    times_of: Callable[[pa.RecordBatch], NDArray[np.int64]],
    spill: Spill,
    buffer_bytes: int,
) -> PartitionedRows:
    """The rows of a part by time: before the first cut, from each cut on before the next."""
    made = spill.partitions(part.rows.schema, buffer_bytes)
    for batch in part.batches():
        made.write(batch, np.searchsorted(cuts, times_of(batch), side="right"))
    made.finish()
    return made
