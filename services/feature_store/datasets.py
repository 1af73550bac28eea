"""Training datasets: joined once, stored under their content, described by a manifest for good.

Rows keep the order of the spine (logged predictions: event time, then prediction id). Splits are by event time.
"""

from __future__ import annotations

from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from foresight.values import FeatureView, InvalidValue
from services.feature_store.commits import watermark
from services.feature_store.content import content_sha256
from services.feature_store.dataset_files import DatasetFiles
from services.feature_store.groups import Reference
from services.feature_store.logged_rows import LoggedRows
from services.feature_store.manifests import TEST, TRAIN, DatasetRequest, Manifest
from services.feature_store.registry import Registry
from services.feature_store.row_source import TableRows, read_all
from services.feature_store.spine import check_spine
from services.feature_store.view_join import ViewJoin
from services.feature_store.view_plan import ViewPlan
from services.runtime.clock import Clock
from services.runtime.errors import FailedPrecondition
from services.runtime.ids import new_id
from services.runtime.threads import in_thread


class Manifests(Protocol):
    """Where manifests are kept."""

    async def add(self, manifest: Manifest) -> None:
        """Keeps a manifest."""
        ...

    async def get(self, dataset_id: str) -> Manifest:
        """The manifest of an id. Raises NotFound."""
        ...


class LastCommit(Protocol):
    """Says how far the commits go."""

    async def last(self) -> int:
        """Number of the last commit."""
        ...


class TrainingDatasets:
    """Creates and reads training datasets."""

    def __init__(
        self,
        registry: Registry,
        commits: LastCommit,
        view_join: ViewJoin,
        logged: LoggedRows,
        files: DatasetFiles,
        manifests: Manifests,
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._commits = commits
        self._join = view_join
        self._logged = logged
        self._files = files
        self._manifests = manifests
        self._clock = clock

    async def create(self, request: DatasetRequest, spine: pa.Table | None) -> Manifest:
        """Joins the spine (or selects logged predictions), stores the rows and their manifest.

        Raises InvalidValue for a spine that does not fit, OutOfRange for a commit that does not exist,
        FailedPrecondition when there are no rows, TransformMismatch.
        """
        if (spine is None) != (request.logged is not None):
            raise InvalidValue("arrow", "holds the spine, unless the header names logged predictions")
        plan = await self._registry.plan(request.view)
        commit = watermark(request.commit, await self._commits.last())
        if spine is not None:
            table = await self._from_spine(plan, spine, commit, known_by=request.known_by)
        else:
            assert request.logged is not None
            async with self._logged.select(plan.view, request.logged, commit) as rows:
                table = await in_thread(read_all, rows)
        if not table.num_rows:
            raise FailedPrecondition("no logged prediction of the selection has an outcome by then")
        table = table.append_column("split", _split(table, request))
        manifest = await self._store(request, plan.view, commit, table, spine)
        await self._manifests.add(manifest)
        return manifest

    async def get(self, dataset_id: str) -> Manifest:
        """The manifest of a dataset. Raises NotFound."""
        return await self._manifests.get(dataset_id)

    async def read(self, dataset_id: str, split: str) -> pa.Table:
        """The rows of a split, or all for ''. Raises NotFound, InvalidValue, DataLoss."""
        if split not in ("", TRAIN, TEST):
            raise InvalidValue("split", f"is not {TRAIN}, {TEST} or empty")
        manifest = await self._manifests.get(dataset_id)
        table = await in_thread(self._files.load, manifest.content_sha256)
        return table.filter(pc.equal(table["split"], split)) if split else table

    async def _from_spine(self, plan: ViewPlan, table: pa.Table, commit: int, *, known_by: bool) -> pa.Table:
        spine = await in_thread(check_spine, TableRows(table), plan.view, labelled=True)
        if not table.num_rows:
            raise InvalidValue("arrow", "the spine has no rows")
        async with self._join.join(plan, spine, commit, known_by=known_by) as rows:
            return await in_thread(read_all, rows)

    async def _store(
        self, request: DatasetRequest, view: FeatureView, commit: int, table: pa.Table, spine: pa.Table | None
    ) -> Manifest:
        counts = [(name, pc.sum(pc.equal(table["split"], name)).as_py()) for name in (TRAIN, TEST)]
        return Manifest(
            id=new_id(),
            name=request.name,
            view=Reference(view.name, view.version),
            commit=commit,
            known_by=request.known_by,
            rows=table.num_rows,
            splits=tuple((name, rows) for name, rows in counts if rows),
            content_sha256=await in_thread(self._files.store, table),
            spine_sha256="" if spine is None else await in_thread(content_sha256, spine),
            groups=tuple(Reference(s.group, s.group_version) for s in view.sources),
            created_at=self._clock(),
            features=view.features,
            label=view.label,
            transforms=tuple((t.function, t.source_sha256) for t in view.transforms),
            test_from=request.test_from,
            logged=request.logged,
        )


def _split(table: pa.Table, request: DatasetRequest) -> pa.Array:
    """`train` before `test_from`, `test` from then on."""
    if request.test_from is None:
        return pa.repeat(TRAIN, table.num_rows)
    bound = pa.scalar(request.test_from, pa.timestamp("us", "UTC"))
    return pc.if_else(pc.less(table["event_time"], bound), TRAIN, TEST)
