"""What a registration does to the version that is there: nothing, a change of what is said about it, or a next version.

A registration is declarative: what it says about a group or view holds from then on, also when it says nothing. Only a
deprecation stays until somebody takes it back, as the file that defines the thing need not know of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from foresight.values import Column, FeatureGroup, FeatureView, Field, InvalidValue
from foresight.values.features import FEATURES_MAX, check_default
from services.feature_store.registry.about import described
from services.feature_store.registry.specs import dump_view
from services.runtime.errors import AlreadyExists, LimitExceeded


def registered_group(latest: FeatureGroup, asked: FeatureGroup) -> FeatureGroup | None:
    """The latest version with what `asked` says about it; None when its content is another one.

    Features that were added to the version in place may be left out, or stand anywhere: files and programs from before
    the addition go on registering what they know, and make no version without it.
    """
    if asked.strict_event_time != latest.strict_event_time or _shapes(asked.entity_keys) != _shapes(latest.entity_keys):
        return None
    added = latest.defaults.keys()
    if _shapes(f for f in asked.features if f.name not in added) != _shapes(
        f for f in latest.features if f.name not in added
    ):
        return None
    known = {f.name: f for f in latest.features}
    if any(_shape(f) != _shape(known[f.name]) for f in asked.features if f.name in added):
        return None
    said = {f.name: f.description for f in asked.fields}
    descriptions = {f.name: said.get(f.name, f.description) for f in latest.fields}
    return replace(
        latest,
        entity_keys=described(latest.entity_keys, descriptions),
        features=described(latest.features, descriptions),
        description=asked.description,
        owner=asked.owner,
        tags=asked.tags,
        source=asked.source,
        deprecation=asked.deprecation or latest.deprecation,
        expectations=asked.expectations,
        failure_policy=asked.failure_policy,
    )


def registered_view(latest: FeatureView, asked: FeatureView) -> FeatureView | None:
    """The latest version with what `asked`, as derived, says about it; None when its content is another one."""
    if dump_view(latest) != dump_view(asked):
        return None
    return replace(
        asked,
        version=latest.version,
        created_at=latest.created_at,
        deprecation=asked.deprecation or latest.deprecation,
    )


def with_features(group: FeatureGroup, fields: Sequence[Field], defaults: Mapping[str, Column]) -> FeatureGroup:
    """The group with features added at its end; those that it has already with type and default stay as they are.

    Raises InvalidValue unless there is one default per field, of its type; AlreadyExists for a feature that is there
    with another type or default; LimitExceeded.
    """
    if not fields:
        raise InvalidValue("features", "are empty")
    names = [f.name for f in fields]
    for name in names:
        if names.count(name) > 1:
            raise InvalidValue("features", f"the name {name} is used twice")
        if name not in defaults:
            raise InvalidValue("defaults", f"there is none for {name}, which rows that are there would read")
    asked = {f.name: f for f in fields}
    for name, default in defaults.items():
        check_default(asked.get(name), default)
    known = {f.name: f for f in group.fields}
    for field in fields:
        there = known.get(field.name)
        if there is not None and not _same_feature(group, there, field, defaults[field.name]):
            raise AlreadyExists(
                f"{group.name} version {group.version} has {field.name} already, with another type or default",
                feature=field.name,
            )
    new = [f for f in fields if f.name not in known]
    if len(group.features) + len(new) > FEATURES_MAX:
        raise LimitExceeded(f"the group would have more than {FEATURES_MAX} features", limit="features")
    return replace(
        group,
        features=(*group.features, *new),
        defaults={**group.defaults, **{f.name: defaults[f.name].renamed(f.name) for f in new}},
    )


def _same_feature(group: FeatureGroup, there: Field, asked: Field, default: Column) -> bool:
    before = group.defaults.get(there.name)
    return before is not None and _shape(there) == _shape(asked) and before.equals(default)


def _shape(field: Field) -> tuple[str, object, int]:
    return field.name, field.type, field.dimension


def _shapes(fields: Iterable[Field]) -> list[tuple[str, object, int]]:
    return [_shape(field) for field in fields]
