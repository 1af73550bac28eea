"""Joining a spine with a view: one output row per spine row, in order, whatever the duplicates.

What fits into memory is joined there; everything else goes through files, source by source.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from foresight.tables import arrow_type, column_from_arrow, column_to_arrow
from foresight.transforms import TransformSet, Untrusted
from foresight.values import Column, FeatureView, Field
from services.feature_store.reads.asof import INLINE_ROWS_MAX, AsOfEngine, AsOfSide
from services.feature_store.reads.histories import EventTimes, Histories
from services.feature_store.reads.large_join import JoinBounds, LargeJoin, Reading
from services.feature_store.reads.source_join import candidates, reach, row_bytes, values
from services.feature_store.reads.spine import Spine
from services.feature_store.registry.view_plan import SourcePlan, ViewPlan
from services.feature_store.tables.conformance import one_array
from services.feature_store.tables.ordered_rows import side_by_side
from services.feature_store.tables.row_source import RowSource, TableRows, read_all
from services.feature_store.tables.spill import SpillFolder
from services.runtime.errors import FailedPrecondition, TransformMismatch
from services.runtime.threads import in_thread, in_thread_unless

log = structlog.get_logger()

# Joins at once; and those of larger spines, each with the memory that its bounds allow.
JOINS_MAX = 8
LARGE_JOINS_MAX = 2
LARGE_SPINE_BYTES = 16 << 20
# Keys of a spine of at most so many rows are looked up one by one, at most so many of them, where the table is so large
# that they are fewer than its pages: the database then chooses between them and the times.
KEYED_SPINE_ROWS_MAX = 65_536
KEYED_KEYS_MAX = 10_000
KEYED_BYTES_MIN = 4 << 20
PAGE_BYTES = 8_192


class ViewJoin:
    """Joins spines with views."""

    def __init__(
        self,
        histories: Histories,
        engine: AsOfEngine,
        transforms: TransformSet,
        spills: SpillFolder,
        bounds: JoinBounds | None = None,
    ) -> None:
        self._histories = histories
        self._engine = engine
        self._transforms = transforms
        self._spills = spills
        self._bounds = bounds or JoinBounds()
        self._large = LargeJoin(histories, engine, self._bounds)
        self._permits = asyncio.Semaphore(JOINS_MAX)
        self._large_permits = asyncio.Semaphore(LARGE_JOINS_MAX)

    @contextlib.asynccontextmanager
    async def join(self, plan: ViewPlan, spine: Spine, watermark: int, *, known_by: bool) -> AsyncIterator[RowSource]:
        """The spine with the features of a view as of each row's event time, from commits up to `watermark`.

        One output row per spine row, in the spine's order: the spine's own columns in theirs, without request features
        and label; all features in the view's order; the label, if the spine has it. Files behind the rows are gone
        when the block ends. Waits while JOINS_MAX others work. Raises TransformMismatch when a transform cannot run
        here, FailedPrecondition when it fails, LimitExceeded when the disk has no room.
        """
        schema = _joined_schema(plan.view, spine.rows.schema)
        size = spine.rows.num_rows * row_bytes(schema)
        whole = size <= self._bounds.table_bytes and spine.rows.num_rows <= self._bounds.table_rows
        join = self._in_memory if whole else self._in_files
        async with self._spills.open() as spill:
            async with self._permits, self._large_permits if size > LARGE_SPINE_BYTES else contextlib.nullcontext():
                rows = await join(plan, spine, schema, Reading(watermark, known_by, spill))
            yield rows

    async def _in_memory(self, plan: ViewPlan, spine: Spine, schema: pa.Schema, reading: Reading) -> RowSource:
        table = await in_thread_unless(isinstance(spine.rows, TableRows), read_all, spine.rows)
        spine = Spine(TableRows(table))
        columns = {name: one_array(table[name]) for name in table.column_names}
        times = np.asarray(columns["event_time"].cast(pa.int64()))
        bounds = (int(times.min()), int(times.max())) if len(times) else (0, 0)
        for source in plan.sources:
            within = reach(source, *bounds)
            side = tuple(columns[plan.view.entity_keys[i].name] for i in source.key_positions)
            history = await self._history(source, within, reading, await self._few_keys(source, side))
            if history is None:
                made = await in_thread(read_all, await self._large.features(plan.view, source, spine, within, reading))
                columns |= {name: one_array(made[name]) for name in made.column_names}
                continue
            small = history.num_rows + len(times) <= INLINE_ROWS_MAX
            rows = await in_thread_unless(small, candidates, source, history)
            chosen = await self._engine.choose(
                AsOfSide(side, times), rows, strict=source.strict, known_by=reading.known_by
            )
            columns |= await in_thread_unless(small, values, source, times, history, rows, chosen)
        if plan.view.transforms:
            columns |= await in_thread(self._transform, plan.view, columns)
        return TableRows(pa.table([columns[name] for name in schema.names], schema=schema))

    async def _in_files(self, plan: ViewPlan, spine: Spine, schema: pa.Schema, reading: Reading) -> RowSource:
        bounds = await in_thread(_time_bounds, spine)
        blocks: list[RowSource] = []
        for source in plan.sources:
            within = reach(source, *bounds)
            history = None
            if await self._histories.count(source.group, reading.watermark) <= self._bounds.table_rows:
                history = await self._history(source, within, reading)
            blocks.append(await self._large.features(plan.view, source, spine, within, reading, history))
        if plan.view.transforms:
            outputs = pa.schema([(t.output.name, arrow_type(t.output)) for t in plan.view.transforms])
            known = pa.schema([*spine.rows.schema, *(field for block in blocks for field in block.schema)])
            file = reading.spill.file(outputs)
            batches = _JoinedRows(spine, tuple(blocks), known).batches()
            while (batch := await in_thread(next, batches, None)) is not None:
                made = await in_thread(self._transform, plan.view, dict(zip(known.names, batch.columns, strict=True)))
                await in_thread(file.write, pa.RecordBatch.from_pydict(made, outputs))
            blocks.append(await in_thread(file.finish))
        return _JoinedRows(spine, tuple(blocks), schema)

    async def _history(
        self, source: SourcePlan, within: EventTimes, reading: Reading, keys: tuple[Column, ...] = ()
    ) -> pa.Table | None:
        return await self._histories.history_within(
            source.group,
            source.names_in_group,
            reading.watermark,
            within,
            rows_max=self._bounds.table_rows,
            bytes_max=self._bounds.table_bytes,
            keys=keys,
        )

    async def _few_keys(self, source: SourcePlan, side: tuple[pa.Array, ...]) -> tuple[Column, ...]:
        """The distinct keys of a spine where looking them up costs less than reading all rows; () where it does not."""
        if not 0 < len(side[0]) <= KEYED_SPINE_ROWS_MAX:
            return ()
        size = await self._histories.size_bytes(source.group)
        if size < KEYED_BYTES_MIN:
            return ()
        keys = source.group.group.entity_keys
        return await in_thread(_distinct, side, keys, min(KEYED_KEYS_MAX, size // PAGE_BYTES))

    def _transform(self, view: FeatureView, columns: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
        """The outputs of the view's transforms."""
        outputs = {transform.output.name for transform in view.transforms}
        wanted = {name for transform in view.transforms for name in transform.inputs} - outputs
        fields = {f.name: f for f in (*view.entity_keys, *view.features)}
        inputs = {name: column_from_arrow(columns[name], fields[name]) for name in wanted}
        try:
            made = self._transforms.apply(view.transforms, inputs)
        except Untrusted as error:
            raise TransformMismatch(str(error), view=view.name) from None
        except Exception as error:  # The function is the user's own and may raise anything, with anything in it.
            log.warning("transform_failed", view=view.name, exc_info=error)
            raise FailedPrecondition(
                f"a transform of {view.name} failed; the feature store's log has the details", view=view.name
            ) from error
        return {column.name: column_to_arrow(column) for column in made}


@dataclass(frozen=True, slots=True, eq=False)
class _JoinedRows:
    """A spine beside the features that were made for it."""

    spine: Spine
    blocks: tuple[RowSource, ...]
    schema: pa.Schema

    @property
    def num_rows(self) -> int:
        return self.spine.rows.num_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        own = [name for name in self.spine.rows.schema.names if name in self.schema.names]
        for batches in side_by_side([self.spine.columns(own), *(block.batches() for block in self.blocks)]):
            columns = {name: array for b in batches for name, array in zip(b.schema.names, b.columns, strict=True)}
            yield pa.RecordBatch.from_arrays([columns[name] for name in self.schema.names], schema=self.schema)


def _joined_schema(view: FeatureView, spine: pa.Schema) -> pa.Schema:
    label = view.label.name
    apart = {label, *(f.name for f in view.features)}
    own = [field for field in spine if field.name not in apart]
    features = [pa.field(f.name, arrow_type(f)) for f in view.features]
    return pa.schema([*own, *features, *([spine.field(label)] if label in spine.names else [])])


def _distinct(side: tuple[pa.Array, ...], keys: Sequence[Field], most: int) -> tuple[Column, ...]:
    """The distinct keys without NULLs, as columns; () when there are none, or more than `most`."""
    names = [key.name for key in keys]
    table = pa.table(list(side), names=names).drop_null()
    distinct = table.group_by(names, use_threads=False).aggregate([])
    if not 0 < distinct.num_rows <= most:
        return ()
    return tuple(column_from_arrow(distinct[key.name], key) for key in keys)


def _time_bounds(spine: Spine) -> tuple[int, int]:
    """The earliest and the latest event time, in microseconds; 0 for both without rows."""
    found = [pc.min_max(batch.column(0).cast(pa.int64())) for batch in spine.columns(["event_time"])]
    if not found:
        return 0, 0
    return min(bounds["min"].as_py() for bounds in found), max(bounds["max"].as_py() for bounds in found)
