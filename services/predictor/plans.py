"""A view made ready for serving: names, types and policies looked up once, not with every request."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta

from foresight.values import Column, FeatureView, Field, MissingPolicy, Transform
from services.predictor.versions import VersionRef


@dataclass(frozen=True, slots=True, eq=False)
class PlannedFeature:
    """A feature that comes from a group; `source` is the position of its source in the view.

    `last_known_max_age_us`: of the policy LAST_KNOWN, else 0.
    """

    field: Field
    source: int
    policy: MissingPolicy
    default: Column | None
    last_known_max_age_us: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ViewPlan:
    """What serving needs of a view version.

    `expected` are the columns that a request carries: entity keys, then request features. `transforms_sha256` is the
    SHA-256 over the transforms' own hashes in order, as hex; empty without any transform. `remembered` are the
    positions of the features whose policy is LAST_KNOWN. `needs_feature_store`: nobody can be answered without it.
    """

    view: FeatureView
    ref: VersionRef
    keys: tuple[Field, ...]
    request_features: tuple[Field, ...]
    features: tuple[PlannedFeature, ...]
    transforms: tuple[Transform, ...]
    transforms_sha256: str
    groups: tuple[VersionRef, ...]
    remembered: tuple[int, ...]
    needs_feature_store: bool

    @property
    def feature_names(self) -> frozenset[str]:
        """Names that a model may take."""
        return frozenset(f.name for f in self.view.features)

    @property
    def taken_by_transforms(self) -> tuple[Field, ...]:
        """What a transform may take: keys and features."""
        return (*self.keys, *self.view.features)


def plan_view(view: FeatureView) -> ViewPlan:
    """The plan of a registered view."""
    fields = {f.name: f for f in view.features}
    features = tuple(
        PlannedFeature(fields[source.name_of(f)], position, f.missing, f.default, _micros(f.last_known_max_age))
        for position, source in enumerate(view.sources)
        for f in source.features
    )
    digest = hashlib.sha256("".join(t.source_sha256 for t in view.transforms).encode())
    return ViewPlan(
        view=view,
        ref=VersionRef(view.name, view.version),
        keys=view.entity_keys,
        request_features=view.request_features,
        features=features,
        transforms=view.transforms,
        transforms_sha256=digest.hexdigest() if view.transforms else "",
        groups=tuple(VersionRef(s.group, s.group_version) for s in view.sources),
        remembered=tuple(i for i, f in enumerate(features) if f.policy is MissingPolicy.LAST_KNOWN),
        needs_feature_store=any(f.policy is MissingPolicy.FAIL for f in features),
    )


def _micros(age: timedelta | None) -> int:
    return 0 if age is None else age // timedelta(microseconds=1)
