"""Training datasets: made once, stored under their content, described by a manifest for good.

What a manifest names is enough to make the rows again, bit for bit: the view version, the commit, the spine (its
bytes, kept under their own content; or a query or a selection of the log, which the store answers alike at that
commit) and the split. So rows may be purged and made again; only when an entity in them was forgotten they cannot.

Files are named and removed, and manifests changed, by one at a time: a file is there before its manifest is, and goes
after the last manifest that needs it. A process that dies in between leaves a file that nobody needs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from foresight.values import InvalidValue
from foresight.values.instants import instant_from_micros, micros_from_instant
from services.feature_store.datasets.dataset_files import DatasetFiles, SplitRows, StoredRows, WrittenRows
from services.feature_store.datasets.dataset_rows import DatasetRows, MadeRows, Recipe
from services.feature_store.datasets.manifests import DatasetRequest, Manifest, ManifestFilter, ManifestPlace
from services.feature_store.datasets.splits import SPLITS, HashSplit
from services.feature_store.groups import Reference
from services.feature_store.reads.queries import SpineQuery
from services.feature_store.reads.watermarks import Watermarks
from services.feature_store.registry.registry import Registry
from services.feature_store.registry.view_plan import ViewPlan
from services.feature_store.tables.row_source import RowSource
from services.runtime.clock import Clock
from services.runtime.errors import DataLoss, FailedPrecondition, TransformMismatch, Unavailable
from services.runtime.ids import new_id
from services.runtime.threads import in_thread

PAGE_SIZE = 100
PAGE_SIZE_MAX = 1_000
# Datasets that are made at a time; each may take gigabytes of disk until it is stored.
MADE_AT_ONCE_MAX = 2


class Manifests(Protocol):
    """Where manifests are kept."""

    def exclusive(self) -> contextlib.AbstractAsyncContextManager[None]: ...
    async def erasures(self) -> int: ...
    async def begin_erasure(self) -> None: ...
    async def add(self, manifest: Manifest, spine_groups: list[Reference], erasures: int) -> None: ...
    async def get(self, dataset_id: str) -> Manifest: ...
    async def page(self, wanted: ManifestFilter, after: ManifestPlace | None, size: int) -> list[Manifest]: ...
    async def set_stored(self, dataset_id: str, stored_bytes: int, erasures: int) -> Manifest: ...
    async def set_purged(self, dataset_id: str) -> Manifest: ...
    async def set_forgotten(self, dataset_id: str, at: datetime) -> Manifest: ...
    async def remove(self, dataset_id: str) -> Manifest: ...
    async def is_needed(self, sha256: str) -> bool: ...


class TrainingDatasets:
    """Creates, reads, purges, recreates and deletes training datasets."""

    def __init__(
        self,
        registry: Registry,
        watermarks: Watermarks,
        rows: DatasetRows,
        files: DatasetFiles,
        manifests: Manifests,
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._watermarks = watermarks
        self._rows = rows
        self._files = files
        self._manifests = manifests
        self._clock = clock
        self._making = asyncio.Semaphore(MADE_AT_ONCE_MAX)

    async def create(self, request: DatasetRequest, spine: RowSource | None) -> Manifest:
        """Joins the spine (sent, or a query), or selects logged predictions; stores the rows and their manifest.

        Waits while MADE_AT_ONCE_MAX are being made. Raises InvalidValue for a spine that does not fit, OutOfRange for
        a commit that does not exist, FailedPrecondition when there are no rows, TransformMismatch, LimitExceeded when
        the disk is full, StaleEtag when an entity was forgotten meanwhile.
        """
        if sum(given is not None for given in (spine, request.logged, request.spine)) != 1:
            raise InvalidValue("arrow", "holds the spine, unless the header names logged predictions or a query")
        plan = await self._registry.plan(request.view)
        split = request.split.of_view(plan.view) if isinstance(request.split, HashSplit) else request.split
        query = None if request.spine is None else await self._rows.pinned(request.spine)
        async with self._making, contextlib.AsyncExitStack() as stack:
            erasures = await self._manifests.erasures()
            commit = await self._watermarks.resolve(request.commit, request.as_of_time)
            recipe = Recipe(plan, commit, request.known_by, split, request.logged, query)
            rows = await stack.enter_async_context(self._rows.made(recipe, spine))
            written = [await stack.enter_async_context(self._files.written(rows.schema, rows.batches()))]
            if spine is not None:
                kept = self._files.written(spine.schema, spine.batches())
                written.append(await stack.enter_async_context(kept))
            manifest = self._manifest(request.name, recipe, rows, written)
            await self._add(manifest, written, erasures)
        return manifest

    async def get(self, dataset_id: str) -> Manifest:
        """The manifest of a dataset. Raises NotFound."""
        return await self._manifests.get(dataset_id)

    async def page(self, wanted: ManifestFilter, size: int = 0, token: str = "") -> tuple[list[Manifest], str]:
        """Manifests, the newest first, and the token of the next page or ''. Raises InvalidValue."""
        if size > PAGE_SIZE_MAX:
            raise InvalidValue("page_size", f"is more than {PAGE_SIZE_MAX}")
        size = size or PAGE_SIZE
        found = await self._manifests.page(wanted, _place(token) if token else None, size + 1)
        return found[:size], _token(found[size - 1]) if len(found) > size else ""

    @contextlib.asynccontextmanager
    async def read(self, dataset_id: str, split: str = "") -> AsyncIterator[RowSource]:
        """The rows of a split, or all for ''; whoever goes through them gets DataLoss where they are not as stored.

        Raises NotFound, InvalidValue, FailedPrecondition when they were purged, DataLoss.
        """
        if split not in ("", *SPLITS):
            raise InvalidValue("split", f"is not one of {', '.join(SPLITS)}, or empty for all rows")
        manifest = await self._manifests.get(dataset_id)
        async with contextlib.AsyncExitStack() as stack:
            try:
                _check_stored(manifest)
                rows = await stack.enter_async_context(self._opened(manifest.content_sha256))
            except DataLoss:
                # They may have been purged between the look at the manifest and that at the file.
                _check_stored(await self._manifests.get(dataset_id))
                raise
            yield SplitRows(rows, split, manifest.rows_of(split)) if split else rows

    async def purge(self, dataset_id: str) -> tuple[Manifest, int]:
        """Removes the stored rows; the manifest stays. Answers it and the bytes that became free: 0 while another
        dataset has the same content. Raises NotFound."""
        async with self._manifests.exclusive():
            manifest = await self._manifests.set_purged(dataset_id)
            return manifest, await self._remove_unneeded(manifest.content_sha256)

    async def recreate(self, dataset_id: str) -> Manifest:
        """Makes the rows again as the manifest says, and stores them.

        Raises NotFound, TransformMismatch, LimitExceeded when the disk is full, FailedPrecondition when an entity in
        them was forgotten, StaleEtag when one was meanwhile, DataLoss when they come out differently.
        """
        async with self._making, contextlib.AsyncExitStack() as stack:
            erasures = await self._manifests.erasures()
            manifest = await self._manifests.get(dataset_id)
            _check_remembered(manifest)
            plan = await self._registry.plan(manifest.view)
            _check_transforms(manifest, plan)
            spine = None
            if manifest.spine_sha256:
                spine = await stack.enter_async_context(self._opened(manifest.spine_sha256))
            rows = await stack.enter_async_context(self._rows.made(Recipe.of(manifest, plan), spine))
            written = await stack.enter_async_context(self._files.written(rows.schema, rows.batches()))
            if written.sha256 != manifest.content_sha256:
                raise DataLoss(
                    f"the rows came out differently: {written.sha256} instead of {manifest.content_sha256}",
                    content_sha256=manifest.content_sha256,
                    recreated_sha256=written.sha256,
                )
            async with self._manifests.exclusive():
                return await self._place_again(manifest, written, erasures)

    async def delete(self, dataset_id: str) -> None:
        """Removes rows, spine and manifest. Raises NotFound, FailedPrecondition that names the models that use it."""
        async with self._manifests.exclusive():
            manifest = await self._manifests.remove(dataset_id)
            await self._remove_unneeded(manifest.content_sha256)
            await self._remove_unneeded(manifest.spine_sha256)

    async def holding(
        self,
        keys_in: Callable[[Reference], Sequence[Mapping[str, Any]]],
        named_in: Callable[[SpineQuery], bool],
        lost: Mapping[Reference, int],
    ) -> list[Manifest]:
        """The datasets that have, or may have had, rows of a forgotten entity; call it once its rows are gone.

        `keys_in`: values by column of a view's keys; a row about the entity has all of one of them. `named_in`: whether
        the query of a spine names the entity. `lost`: for each group version that lost rows the first commit of those;
        a dataset made of such a group by then, without any rows or spine left to look at, could not be made again. Rows
        that are being made while this is called will not be stored.
        """
        async with self._manifests.exclusive():
            await self._manifests.begin_erasure()
        found, after = [], None
        while page := await self._manifests.page(ManifestFilter(remembered=True), after, PAGE_SIZE):
            found += [manifest for manifest in page if await self._may_hold(manifest, keys_in, named_in, lost)]
            after = ManifestPlace.of(page[-1])
        return found

    async def forget(self, dataset_id: str, at: datetime) -> Manifest:
        """Removes the rows and the spine of a dataset for good, as an entity in them was forgotten. Harmless when
        repeated: the first time stays. Raises NotFound."""
        async with self._manifests.exclusive():
            manifest = await self._manifests.set_forgotten(dataset_id, at)
            await self._remove_unneeded(manifest.content_sha256)
            await self._remove_unneeded(manifest.spine_sha256)
        return manifest

    async def _may_hold(
        self,
        manifest: Manifest,
        keys_in: Callable[[Reference], Sequence[Mapping[str, Any]]],
        named_in: Callable[[SpineQuery], bool],
        lost: Mapping[Reference, int],
    ) -> bool:
        if manifest.spine is not None and (
            named_in(manifest.spine) or lost.get(manifest.spine.query.group, manifest.commit + 1) <= manifest.commit
        ):
            # Rows that are gone were spine rows, unless the query left them out; their keys may go by other names.
            return True
        wanted = keys_in(manifest.view)
        seen = False
        for sha256 in (manifest.content_sha256 if manifest.stored else "", manifest.spine_sha256):
            if not sha256 or not await in_thread(self._files.has, sha256):
                continue
            try:
                async with self._opened(sha256) as rows:
                    for keys in wanted:
                        if await in_thread(rows.holds, keys):
                            return True
            except DataLoss:
                if await in_thread(self._files.has, sha256):
                    # It is damaged: nobody can say what is in it.
                    return True
                # It was purged meanwhile.
                continue
            seen = True
        if seen:
            return False
        groups = {*manifest.groups, *await self._rows.spine_groups(manifest.view, manifest.logged, manifest.spine)}
        return any(group in groups and first <= manifest.commit for group, first in lost.items())

    async def _add(self, manifest: Manifest, written: list[WrittenRows], erasures: int) -> None:
        groups = await self._rows.spine_groups(manifest.view, manifest.logged, manifest.spine)
        async with self._manifests.exclusive():
            try:
                for file in written:
                    await in_thread(self._files.name, file)
                await self._manifests.add(manifest, groups, erasures)
            except BaseException:
                await self._take_back(*written)
                raise

    async def _place_again(self, manifest: Manifest, written: WrittenRows, erasures: int) -> Manifest:
        try:
            await in_thread(self._files.name, written)
            return await self._manifests.set_stored(manifest.id, written.bytes, erasures)
        except BaseException:
            await self._take_back(written)
            raise

    async def _take_back(self, *written: WrittenRows) -> None:
        with contextlib.suppress(Unavailable):
            for file in written:
                await self._remove_unneeded(file.sha256)

    async def _remove_unneeded(self, sha256: str) -> int:
        """Removes a file that no manifest refers to, within `exclusive`; answers the bytes that became free."""
        if not sha256 or await self._manifests.is_needed(sha256):
            return 0
        return await in_thread(self._files.remove, sha256)

    @contextlib.asynccontextmanager
    async def _opened(self, sha256: str) -> AsyncIterator[StoredRows]:
        opened = self._files.opened(sha256)
        rows = await in_thread(opened.__enter__)
        try:
            yield rows
        finally:
            await in_thread(opened.__exit__, None, None, None)

    def _manifest(self, name: str, recipe: Recipe, rows: MadeRows, written: list[WrittenRows]) -> Manifest:
        view = recipe.plan.view
        return Manifest(
            id=new_id(),
            name=name,
            view=Reference(view.name, view.version),
            commit=recipe.commit,
            known_by=recipe.known_by,
            rows=written[0].rows,
            splits=rows.counts,
            content_sha256=written[0].sha256,
            spine_sha256=written[1].sha256 if len(written) > 1 else "",
            groups=tuple(Reference(s.group, s.group_version) for s in view.sources),
            max_ages_us=tuple(source.max_age_us for source in recipe.plan.sources),
            created_at=self._clock(),
            features=view.features,
            label=view.label,
            transforms=tuple((t.function, t.source_sha256) for t in view.transforms),
            split=recipe.split,
            logged=recipe.logged,
            spine=recipe.spine,
            stored_bytes=written[0].bytes,
        )


def _check_stored(manifest: Manifest) -> None:
    _check_remembered(manifest)
    if not manifest.stored:
        raise FailedPrecondition("the rows of the dataset were purged; recreate it to read them")


def _check_remembered(manifest: Manifest) -> None:
    if manifest.forgotten_at is not None:
        raise FailedPrecondition("an entity in the rows of the dataset was forgotten; they cannot be made again")


def _check_transforms(manifest: Manifest, plan: ViewPlan) -> None:
    if tuple((t.function, t.source_sha256) for t in plan.view.transforms) != manifest.transforms:
        raise TransformMismatch(f"the transforms of {manifest.view} are not those of the dataset")


def _token(manifest: Manifest) -> str:
    place = f"{micros_from_instant(manifest.created_at)} {manifest.id}"
    return base64.urlsafe_b64encode(place.encode()).decode()


def _place(token: str) -> ManifestPlace:
    try:
        micros, _, id = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii").partition(" ")
        return ManifestPlace(instant_from_micros(int(micros)), id)
    except (binascii.Error, ValueError):
        raise InvalidValue("page_token", "is not one that an answer had") from None
