"""The registry: what groups and views exist, and what makes a registration valid."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import structlog

from foresight.transforms import TransformSet, Untrusted
from foresight.values import Column, FeatureGroup, FeatureView, Field
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.registry.about import GroupAbout, ViewAbout
from services.feature_store.registry.derivation import derive_view
from services.feature_store.registry.search import Found, Query
from services.feature_store.registry.view_plan import ViewPlan, plan_view
from services.runtime.errors import NotFound, ServiceError, TransformMismatch

log = structlog.get_logger()

# Plans that are remembered; beyond this many it starts anew.
PLANS_MAX = 1_024
# So long a view that another process dropped may still be read, seconds.
FOLLOW_S = 1.0


class GroupsAndViews(Protocol):
    """Where they are read, as they are now."""

    async def group(self, reference: Reference) -> StoredGroup: ...
    async def view(self, reference: Reference) -> FeatureView: ...
    async def groups(self) -> list[FeatureGroup]: ...
    async def views(self) -> list[FeatureView]: ...
    async def group_by_id(self, group_id: int) -> StoredGroup: ...
    async def dropped_by(self, commits: Sequence[int]) -> list[StoredGroup]: ...
    async def search(self, query: Query) -> list[Found]: ...
    async def visible_rows(self, group_id: int) -> int: ...
    async def changes(self) -> int: ...


class Changes(Protocol):
    """Where they are registered, changed and dropped; each is done wholly or not at all."""

    async def register_group(self, asked: FeatureGroup) -> tuple[StoredGroup, bool]: ...
    async def register_view(self, asked: FeatureView) -> tuple[FeatureView, bool]: ...
    async def update_group(self, reference: Reference, about: GroupAbout, etag: str) -> StoredGroup: ...
    async def update_view(self, reference: Reference, about: ViewAbout, etag: str) -> FeatureView: ...
    async def add_features(
        self, reference: Reference, fields: Sequence[Field], defaults: Mapping[str, Column], etag: str
    ) -> StoredGroup: ...
    async def widen_derived(
        self, reference: Reference, fields: Sequence[Field], defaults: Mapping[str, Column]
    ) -> StoredGroup: ...
    async def drop_group(self, reference: Reference, etag: str) -> int: ...
    async def drop_view(self, reference: Reference, etag: str) -> None: ...


class RegisteredView(NamedTuple):
    """A view as registered, whether it is a new version, and sentences that its author should read."""

    view: FeatureView
    created: bool
    warnings: tuple[str, ...]


class Registry:
    """Registers, finds, changes and drops groups and views. `run` it, so that it sees what other processes change."""

    def __init__(self, catalogue: GroupsAndViews, changes: Changes, transforms: TransformSet) -> None:
        self._catalogue = catalogue
        self._changes = changes
        self._transforms = transforms
        self._plans: dict[Reference, ViewPlan] = {}
        # Counts how often the plans were forgotten: what was read before that is not remembered after it.
        self._emptied = 0

    async def register_group(self, group: FeatureGroup) -> tuple[FeatureGroup, bool]:
        """The group as registered, and whether it is a new version.

        Content of the latest version with other words about it changes those in place; see `registrations.py`. Raises
        StaleEtag when the group has an etag and it is not that of the latest version.
        """
        stored, created = await self._changes.register_group(group)
        self._forget()
        return stored.group, created

    async def register_view(self, view: FeatureView) -> RegisteredView:
        """The view with its version, pinned groups and derived fields.

        Raises NotFound for a group, InvalidValue for features, keys and names that do not fit, StaleEtag as for
        groups, TransformMismatch when this process cannot run its transforms, as it could not make training data then.
        """
        groups = [await self._catalogue.group(Reference(s.group, s.group_version)) for s in view.sources]
        derived = derive_view(view, [stored.group for stored in groups])
        await self.check_transforms(derived)
        registered, created = await self._changes.register_view(derived)
        self._forget()
        deprecated = {f"{s.group.name} version {s.group.version}": s.group.deprecation for s in groups}
        warnings = [f"the feature group {name} is deprecated: {why}" for name, why in deprecated.items() if why]
        return RegisteredView(registered, created, tuple(warnings))

    async def update_group(self, reference: Reference, about: GroupAbout, etag: str) -> FeatureGroup:
        """The group with what is said about it now. Raises NotFound, StaleEtag, InvalidValue."""
        stored = await self._changes.update_group(reference, about, etag)
        self._forget()
        return stored.group

    async def update_view(self, reference: Reference, about: ViewAbout, etag: str) -> FeatureView:
        """The view with what is said about it now. Raises NotFound, StaleEtag, InvalidValue."""
        view = await self._changes.update_view(reference, about, etag)
        self._forget()
        return view

    async def add_features(
        self, reference: Reference, fields: Sequence[Field], defaults: Mapping[str, Column], etag: str
    ) -> FeatureGroup:
        """The group with features added in place: rows without a value of theirs read the defaults.

        Raises NotFound, StaleEtag, InvalidValue, AlreadyExists, LimitExceeded, FailedPrecondition, Unavailable.
        """
        stored = await self._changes.add_features(reference, fields, defaults, etag)
        self._forget()
        return stored.group

    async def drop_group(self, reference: Reference, etag: str) -> int:
        """Removes a group version and answers how many rows it had.

        Raises NotFound, StaleEtag, FailedPrecondition that names the users, Unavailable.
        """
        rows = await self._changes.drop_group(reference, etag)
        self._forget()
        return rows

    async def drop_view(self, reference: Reference, etag: str) -> None:
        """Removes a view version. Raises NotFound, StaleEtag, FailedPrecondition that names the users."""
        await self._changes.drop_view(reference, etag)
        self._forget()

    async def search(self, query: Query) -> list[Found]:
        """What a query finds."""
        return await self._catalogue.search(query)

    async def group(self, reference: Reference) -> StoredGroup:
        """A group version as it is now. Raises NotFound."""
        return await self._catalogue.group(reference)

    async def group_by_id(self, group_id: int) -> StoredGroup:
        """A group version by its id as it is now, at least as new as any commit that was read before. Raises NotFound
        when it was dropped."""
        return await self._catalogue.group_by_id(group_id)

    async def dropped_by(self, commits: Sequence[int]) -> list[StoredGroup]:
        """The groups, those with rows online, that commits among these dropped: a drop is a commit without rows."""
        return [stored for stored in await self._catalogue.dropped_by(commits) if not stored.group.derived]

    async def described_group(self, reference: Reference) -> tuple[FeatureGroup, int]:
        """A group version and its visible rows."""
        stored = await self.group(reference)
        return stored.group, await self._catalogue.visible_rows(stored.id)

    async def view(self, reference: Reference) -> FeatureView:
        """A view version as it is now. Raises NotFound."""
        return await self._catalogue.view(reference)

    async def plan(self, reference: Reference) -> ViewPlan:
        """A view version with its groups, at most FOLLOW_S old. Raises NotFound."""
        plan = self._plans.get(reference)
        if plan is None:
            emptied = self._emptied
            view = await self._catalogue.view(reference)
            exact = Reference(view.name, view.version)
            plan = self._plans.get(exact)
            if plan is None:
                groups = [await self.group(Reference(s.group, s.group_version)) for s in view.sources]
                plan = plan_view(view, groups)
                if emptied == self._emptied:
                    if len(self._plans) >= PLANS_MAX:
                        self._plans.clear()
                    self._plans[exact] = plan
        return plan

    async def groups(self) -> list[FeatureGroup]:
        """The latest version of every group, by name."""
        return await self._catalogue.groups()

    async def views(self) -> list[FeatureView]:
        """The latest version of every view, by name."""
        return await self._catalogue.views()

    async def find_group(self, reference: Reference) -> StoredGroup | None:
        """A group version, if there is one."""
        try:
            return await self.group(reference)
        except NotFound:
            return None

    async def derived_group(self, group: FeatureGroup) -> StoredGroup:
        """The log group of a name with at least the features of `group`, made or widened where it is not there yet."""
        stored = await self.find_group(Reference(group.name))
        if stored is None:
            stored, _ = await self._changes.register_group(group)
        known = {f.name for f in stored.group.fields}
        if all(f.name in known for f in group.features):
            return stored
        reference = Reference(group.name, stored.group.version)
        widened = await self._changes.widen_derived(reference, group.features, group.defaults)
        self._forget()
        return widened

    async def check_transforms(self, view: FeatureView) -> None:
        """Raises TransformMismatch unless this process can run the view's transforms."""
        try:
            # Importing a user's module may take long.
            await asyncio.to_thread(self._transforms.check, view.transforms)
        except Untrusted as error:
            raise TransformMismatch(str(error), view=view.name) from None

    async def run(self) -> None:
        """Forgets what other processes changed or dropped, until it is cancelled.

        While the database is away, what is known stays known: online reads go on.
        """
        seen = -1
        while True:
            try:
                changes = await self._catalogue.changes()
            except ServiceError as error:
                log.warning("registry_not_followed", reason=str(error)[:300])
            else:
                if changes != seen:
                    self._forget()
                seen = changes
            await asyncio.sleep(FOLLOW_S)

    def _forget(self) -> None:
        self._emptied += 1
        self._plans.clear()
