"""What the server adds to a view when it is registered: pinned group versions, entity keys and features in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from foresight.values import Column, FeatureGroup, FeatureView, Field, InvalidValue, ViewFeature, ViewSource, check_name


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
