"""What reading a view needs to know, worked out once per version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from foresight.values import Column, FeatureView, Field, ViewSource
from services.feature_store.groups import StoredGroup


@dataclass(frozen=True, slots=True, eq=False)
class SourcePlan:
    """One source of a view.

    `key_positions`: for each key of the group its position among the view's entity keys. `positions`: for each feature
    taken its position among the group's features. `fields` have the view's names. `defaults` are one-row columns, for
    the features that have one: under DEFAULT, and under LAST_KNOWN as nothing is known of what some replica served.
    """

    group: StoredGroup
    strict: bool
    max_age_us: int | None
    key_positions: tuple[int, ...]
    positions: tuple[int, ...]
    names_in_group: tuple[str, ...]
    fields: tuple[Field, ...]
    defaults: tuple[Column | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ViewPlan:
    """A registered view with the groups that it pins."""

    view: FeatureView
    sources: tuple[SourcePlan, ...]


def plan_view(view: FeatureView, groups: Sequence[StoredGroup]) -> ViewPlan:
    """The plan of a registered view; `groups` are those of its sources, in order."""
    return ViewPlan(view, tuple(_plan(view, s, g) for s, g in zip(view.sources, groups, strict=True)))


def _plan(view: FeatureView, source: ViewSource, stored: StoredGroup) -> SourcePlan:
    keys = [key.name for key in view.entity_keys]
    known = {f.name: (i, f) for i, f in enumerate(stored.group.features)}
    taken = [known[f.feature] for f in source.features]
    return SourcePlan(
        group=stored,
        strict=stored.group.strict_event_time,
        max_age_us=None if source.max_age is None else source.max_age // timedelta(microseconds=1),
        key_positions=tuple(keys.index(source.view_key(key.name)) for key in stored.group.entity_keys),
        positions=tuple(position for position, _ in taken),
        names_in_group=tuple(f.name for _, f in taken),
        fields=tuple(
            Field(source.name_of(f), field.type, field.dimension)
            for f, (_, field) in zip(source.features, taken, strict=True)
        ),
        defaults=tuple(f.default for f in source.features),
    )
