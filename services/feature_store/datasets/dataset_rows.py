"""The rows of a training dataset, made of what its manifest names: the same whenever they are made.

Rows keep the order of the spine; a query's are in the order of keys and event time, logged predictions in that of event
time and prediction id. The last column says which split a row is in.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from foresight.values import Field, InvalidValue, Violation
from services.feature_store.datasets.logged_rows import LoggedRows
from services.feature_store.datasets.manifests import LoggedSelection, Manifest
from services.feature_store.datasets.splits import SPLIT, SPLITS, SplitRule, split_column
from services.feature_store.groups import Reference
from services.feature_store.logs.log_groups import OUTCOMES, PREDICTIONS, group_name
from services.feature_store.reads.queries import SpineQuery
from services.feature_store.reads.spine import check_spine
from services.feature_store.reads.spine_queries import SpineQueries
from services.feature_store.reads.view_join import ViewJoin
from services.feature_store.registry.registry import Registry
from services.feature_store.registry.view_plan import ViewPlan
from services.feature_store.tables.row_source import RowSource
from services.runtime.errors import FailedPrecondition
from services.runtime.threads import in_thread


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """What rows are made of; exactly one of `logged`, `spine` and a spine that was sent says which they are."""

    plan: ViewPlan
    commit: int
    known_by: bool = False
    split: SplitRule | None = None
    logged: LoggedSelection | None = None
    spine: SpineQuery | None = None

    @classmethod
    def of(cls, manifest: Manifest, plan: ViewPlan) -> Recipe:
        """The recipe of a dataset that was made before."""
        return cls(plan, manifest.commit, manifest.known_by, manifest.split, manifest.logged, manifest.spine)


class MadeRows:
    """See RowSource: rows with the column `split`. `counts` are the rows of each split, once all were gone through."""

    def __init__(self, rows: RowSource, rule: SplitRule | None, keys: tuple[Field, ...]) -> None:
        self._rows = rows
        self._rule = rule
        self._keys = keys
        self._counts: Counter[str] = Counter()

    @property
    def schema(self) -> pa.Schema:
        """See RowSource."""
        return self._rows.schema.append(pa.field(SPLIT, pa.string()))

    @property
    def num_rows(self) -> int:
        """See RowSource."""
        return self._rows.num_rows

    @property
    def counts(self) -> tuple[tuple[str, int], ...]:
        """Splits with rows, and their rows."""
        return tuple((split, self._counts[split]) for split in SPLITS if self._counts[split])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See RowSource."""
        self._counts.clear()
        for batch in self._rows.batches():
            splits = split_column(self._rule, batch, self._keys)
            for count in pc.value_counts(splits).to_pylist():
                self._counts[count["values"]] += count["counts"]
            yield batch.append_column(SPLIT, splits)


class DatasetRows:
    """Makes rows."""

    def __init__(self, registry: Registry, join: ViewJoin, logged: LoggedRows, queries: SpineQueries) -> None:
        self._registry = registry
        self._join = join
        self._logged = logged
        self._queries = queries

    async def pinned(self, query: SpineQuery) -> SpineQuery:
        """The query of the exact version of its group. Raises NotFound, InvalidValue when it does not fit it."""
        try:
            return await self._queries.pinned(query)
        except InvalidValue as error:
            raise error.within("header.spine") from None

    async def spine_groups(
        self, view: Reference, logged: LoggedSelection | None, spine: SpineQuery | None
    ) -> list[Reference]:
        """The groups whose rows are the spine of a dataset; none for one that was sent."""
        if spine is not None:
            return [spine.query.group]
        if logged is None:
            return []
        names = [group_name(kind, view.name, view.version) for kind in (PREDICTIONS, OUTCOMES)]
        found = [await self._registry.find_group(Reference(name)) for name in names]
        return [Reference(stored.group.name, stored.group.version) for stored in found if stored is not None]

    @contextlib.asynccontextmanager
    async def made(self, recipe: Recipe, sent: RowSource | None) -> AsyncIterator[MadeRows]:
        """The rows of a recipe, `sent` being its spine if one was sent; they are gone when the block ends.

        Raises InvalidValue for a spine that does not fit, FailedPrecondition when there are no rows, TransformMismatch.
        """
        async with contextlib.AsyncExitStack() as stack:
            if recipe.logged is not None:
                rows = await stack.enter_async_context(
                    self._logged.select(recipe.plan.view, recipe.logged, recipe.commit)
                )
                if not rows.num_rows:
                    raise FailedPrecondition("no logged prediction of the selection has an outcome by then")
            else:
                rows = await self._joined(recipe, sent, stack)
            yield MadeRows(rows, recipe.split, recipe.plan.view.entity_keys)

    async def _joined(self, recipe: Recipe, sent: RowSource | None, stack: contextlib.AsyncExitStack) -> RowSource:
        view = recipe.plan.view
        if recipe.spine is not None:
            sent = await stack.enter_async_context(self._queries.rows(recipe.spine, view, recipe.commit))
        assert sent is not None
        try:
            spine = await in_thread(check_spine, sent, view, labelled=True)
        except InvalidValue as error:
            raise (error if recipe.spine is None else _of_query(error)) from None
        if not sent.num_rows:
            if recipe.spine is not None:
                raise FailedPrecondition(f"the query finds no rows of {recipe.spine.query.group.name}")
            raise InvalidValue("arrow", "the spine has no rows")
        join = self._join.join(recipe.plan, spine, recipe.commit, known_by=recipe.known_by)
        return await stack.enter_async_context(join)


def _of_query(error: InvalidValue) -> InvalidValue:
    """The faults of a spine, seen from the query that made it."""
    moved = [Violation(f"header.spine.{v.field.removeprefix('arrow.')}", v.description) for v in error.violations]
    return InvalidValue(moved[0].field, moved[0].description, *moved[1:])
