"""The registry: what groups and views exist, and what makes a registration valid."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from foresight.transforms import TransformSet, Untrusted
from foresight.values import Column, FeatureGroup, FeatureView, Field, InvalidValue, ViewFeature, ViewSource, check_name
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.view_plan import ViewPlan, plan_view
from services.runtime.errors import NotFound, TransformMismatch

# Versions never change, so what was read once stays true; beyond this many the caches start anew.
CACHED_MAX = 1_024
K = TypeVar("K")
V = TypeVar("V")


class GroupsAndViews(Protocol):
    """Where registrations are kept."""

    async def group(self, reference: Reference) -> StoredGroup: ...
    async def view(self, reference: Reference) -> FeatureView: ...
    async def groups(self) -> list[FeatureGroup]: ...
    async def views(self) -> list[FeatureView]: ...
    async def group_by_id(self, group_id: int) -> StoredGroup: ...
    async def register_group(self, group: FeatureGroup) -> tuple[StoredGroup, bool]: ...
    async def register_view(self, view: FeatureView) -> tuple[FeatureView, bool]: ...
    async def add_features(self, stored: StoredGroup, fields: Sequence[Field]) -> StoredGroup: ...
    async def visible_rows(self, group_id: int) -> int: ...


class Registry:
    """Registers and finds groups and views."""

    def __init__(self, catalogue: GroupsAndViews, transforms: TransformSet) -> None:
        self._catalogue = catalogue
        self._transforms = transforms
        self._groups: dict[int, StoredGroup] = {}
        self._versions: dict[Reference, StoredGroup] = {}
        self._plans: dict[Reference, ViewPlan] = {}

    async def register_group(self, group: FeatureGroup) -> tuple[FeatureGroup, bool]:
        """The group with its version, and whether it is new."""
        stored, created = await self._catalogue.register_group(group)
        return stored.group, created

    async def register_view(self, view: FeatureView) -> tuple[FeatureView, bool]:
        """The view with its version, pinned groups and derived fields, and whether it is new.

        Raises NotFound for a group, InvalidValue for features, keys and names that do not fit, TransformMismatch when
        this process cannot run its transforms, as it could not make training data then.
        """
        groups = [await self.group(Reference(s.group, s.group_version)) for s in view.sources]
        derived = derive_view(view, [stored.group for stored in groups])
        await self.check_transforms(derived)
        return await self._catalogue.register_view(derived)

    async def group(self, reference: Reference) -> StoredGroup:
        """A group version. Raises NotFound."""
        stored = self._versions.get(reference)
        if stored is None:
            stored = await self._catalogue.group(reference)
            if reference.version and not stored.group.derived:
                # Derived groups gain columns in place.
                _remember(self._versions, reference, stored)
        return stored

    async def group_by_id(self, group_id: int) -> StoredGroup:
        """A group version by its id."""
        stored = self._groups.get(group_id)
        if stored is None:
            stored = await self._catalogue.group_by_id(group_id)
            if not stored.group.derived:
                _remember(self._groups, group_id, stored)
        return stored

    async def described_group(self, reference: Reference) -> tuple[FeatureGroup, int]:
        """A group version and its visible rows."""
        stored = await self.group(reference)
        return stored.group, await self._catalogue.visible_rows(stored.id)

    async def view(self, reference: Reference) -> FeatureView:
        """A view version. Raises NotFound."""
        return (await self.plan(reference)).view

    async def plan(self, reference: Reference) -> ViewPlan:
        """A view version with its groups. Raises NotFound."""
        plan = self._plans.get(reference)
        if plan is None:
            view = await self._catalogue.view(reference)
            exact = Reference(view.name, view.version)
            plan = self._plans.get(exact)
            if plan is None:
                groups = [await self.group(Reference(s.group, s.group_version)) for s in view.sources]
                plan = plan_view(view, groups)
                _remember(self._plans, exact, plan)
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
            stored, _ = await self._catalogue.register_group(group)
        known = {f.name for f in stored.group.fields}
        if all(f.name in known for f in group.features):
            return stored
        return await self._catalogue.add_features(stored, group.features)

    async def check_transforms(self, view: FeatureView) -> None:
        """Raises TransformMismatch unless this process can run the view's transforms."""
        try:
            # Importing a user's module may take long.
            await asyncio.to_thread(self._transforms.check, view.transforms)
        except Untrusted as error:
            raise TransformMismatch(str(error), view=view.name) from None


def derive_view(view: FeatureView, groups: Sequence[FeatureGroup]) -> FeatureView:
    """The view as it is stored: pinned group versions, entity keys and features in order; see FeatureView.

    `groups` are those of its sources. Raises InvalidValue.
    """
    keys: dict[str, Field] = {}
    features: list[Field] = []
    sources: list[ViewSource] = []
    for index, (source, group) in enumerate(zip(view.sources, groups, strict=True)):
        where = f"sources[{index}]"
        _take_keys(keys, source, group, where)
        taken = [_take_feature(source, feature, group, where) for feature in source.features]
        features.extend(field for field, _ in taken)
        named = tuple(feature for _, feature in taken)
        sources.append(replace(source, group_version=group.version, features=named))
    features.extend(view.request_features)
    inputs = {*keys, *(f.name for f in features)}
    for transform in view.transforms:
        for name in transform.inputs:
            if name not in inputs:
                raise InvalidValue(f"transforms.{transform.output.name}", f"takes {name[:63]}, which is not before it")
        inputs.add(transform.output.name)
        features.append(transform.output)
    for name in (*(f.name for f in features), view.label.name):
        if name in keys:
            raise InvalidValue("sources", f"the name {name} is that of an entity key and of a feature or the label")
    return replace(view, sources=tuple(sources), entity_keys=tuple(keys.values()), features=tuple(features))


def _take_keys(keys: dict[str, Field], source: ViewSource, group: FeatureGroup, where: str) -> None:
    names = {key.name for key in group.entity_keys}
    for group_key in source.keys:
        if group_key not in names:
            raise InvalidValue(f"{where}.keys", f"{group_key} is not a key of {group.name}")
    for key in group.entity_keys:
        name = source.view_key(key.name)
        known = keys.setdefault(name, Field(name, key.type, 0, key.description))
        if known.type is not key.type:
            raise InvalidValue(f"{where}.keys", f"{name} is {known.type.value} in one group and {key.type.value} here")


def _take_feature(
    source: ViewSource, feature: ViewFeature, group: FeatureGroup, where: str
) -> tuple[Field, ViewFeature]:
    known = {f.name: f for f in group.features}
    field = known.get(feature.feature)
    if field is None:
        raise InvalidValue(f"{where}.features", f"{group.name} version {group.version} has no {feature.feature}")
    name = check_name(source.name_of(feature), f"{where}.features")
    default = feature.default
    if default is not None:
        if default.type is not field.type or default.field.dimension != field.dimension:
            raise InvalidValue(f"{where}.features", f"the default of {name} is not of type {field.type.value}")
        default = Column(name, default.type, default.values, default.valid)
    return Field(name, field.type, field.dimension, field.description), replace(feature, default=default)


def _remember(cache: dict[K, V], key: K, value: V) -> None:
    if len(cache) >= CACHED_MAX:
        cache.clear()
    cache[key] = value
