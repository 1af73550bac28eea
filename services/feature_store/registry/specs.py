"""The content of groups and views as canonical JSON: equal content gives equal text.

Version and registration time are not part of it, nor is what people say about a thing (see `about.py`), descriptions
of fields among it.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from foresight.values import (
    Column,
    DataType,
    FeatureGroup,
    FeatureView,
    Field,
    MissingPolicy,
    Transform,
    ViewFeature,
    ViewSource,
)

_MICROSECOND = timedelta(microseconds=1)


def dump_group(group: FeatureGroup) -> str:
    """The content of a group, with the defaults of features that were added in place."""
    return canonical(
        {
            "entity_keys": [_dump_shape(f) for f in group.entity_keys],
            "features": [_dump_shape(f) for f in group.features],
            "strict_event_time": group.strict_event_time,
            "derived": group.derived,
            "defaults": {name: dump_value(default) for name, default in group.defaults.items()},
        }
    )


def load_group(name: str, version: int, created_at: datetime, spec: str, etag: str = "") -> FeatureGroup:
    """The group of its content."""
    content = json.loads(spec)
    return FeatureGroup(
        name=name,
        version=version,
        created_at=created_at,
        etag=etag,
        entity_keys=tuple(load_field(f) for f in content["entity_keys"]),
        features=tuple(load_field(f) for f in content["features"]),
        strict_event_time=content["strict_event_time"],
        derived=content["derived"],
        defaults={name: load_value(name, default) for name, default in content["defaults"].items()},
    )


def dump_view(view: FeatureView) -> str:
    """The content of a view with what the server derived: pinned versions, entity keys, features."""
    return canonical(
        {
            "entity_keys": [_dump_shape(f) for f in view.entity_keys],
            "features": [_dump_shape(f) for f in view.features],
            "sources": [_dump_source(s) for s in view.sources],
            "request_features": [_dump_shape(f) for f in view.request_features],
            "transforms": [
                {
                    "output": _dump_shape(t.output),
                    "function": t.function,
                    "source_sha256": t.source_sha256,
                    "inputs": list(t.inputs),
                }
                for t in view.transforms
            ],
            "label": _dump_shape(view.label),
        }
    )


def load_view(name: str, version: int, created_at: datetime, spec: str, etag: str = "") -> FeatureView:
    """The view of its content."""
    content = json.loads(spec)
    return FeatureView(
        name=name,
        version=version,
        created_at=created_at,
        etag=etag,
        entity_keys=tuple(load_field(f) for f in content["entity_keys"]),
        features=tuple(load_field(f) for f in content["features"]),
        sources=tuple(_load_source(s) for s in content["sources"]),
        request_features=tuple(load_field(f) for f in content["request_features"]),
        transforms=tuple(
            Transform(load_field(t["output"]), t["function"], t["source_sha256"], tuple(t["inputs"]))
            for t in content["transforms"]
        ),
        label=load_field(content["label"]),
    )


def dump_field(field: Field) -> dict[str, Any]:
    """A field as a JSON object."""
    content = _dump_shape(field)
    if field.description:
        content["description"] = field.description
    return content


def load_field(content: dict[str, Any]) -> Field:
    """The field of a JSON object."""
    return Field(
        content["name"], DataType(content["type"]), content.get("dimension", 0), content.get("description", "")
    )


def _dump_source(source: ViewSource) -> dict[str, Any]:
    return {
        "group": source.group,
        "group_version": source.group_version,
        "keys": dict(sorted(source.keys.items())),
        "prefix": source.prefix,
        "max_age_us": None if source.max_age is None else source.max_age // _MICROSECOND,
        "features": [_dump_feature(f) for f in source.features],
    }


def _dump_feature(feature: ViewFeature) -> dict[str, Any]:
    content: dict[str, Any] = {
        "feature": feature.feature,
        "name": feature.name,
        "missing": feature.missing.name,
        "default": None if feature.default is None else dump_value(feature.default),
    }
    # Only where there is one: views that were registered before there was the policy keep their content.
    if feature.last_known_max_age is not None:
        content["last_known_max_age_us"] = feature.last_known_max_age // _MICROSECOND
    return content


def _load_source(content: dict[str, Any]) -> ViewSource:
    return ViewSource(
        group=content["group"],
        group_version=content["group_version"],
        keys=content["keys"],
        prefix=content["prefix"],
        max_age=_load_age(content["max_age_us"]),
        features=tuple(
            ViewFeature(
                f["feature"],
                f["name"],
                MissingPolicy[f["missing"]],
                None
                if f["default"] is None
                else load_value(f["name"] or content["prefix"] + f["feature"], f["default"]),
                _load_age(f.get("last_known_max_age_us")),
            )
            for f in content["features"]
        ),
    )


def _load_age(age_us: int | None) -> timedelta | None:
    return None if age_us is None else timedelta(microseconds=age_us)


def dump_value(column: Column) -> dict[str, Any]:
    """One value as a JSON object: timestamps stay microseconds, vectors lists of floats; JSON floats keep every bit."""
    return {
        "type": column.type.value,
        "dimension": column.field.dimension,
        "value": column.values[0] if column.type is DataType.STRING else column.values[0].tolist(),
    }


def load_value(name: str, *contents: dict[str, Any]) -> Column:
    """A column of the values of JSON objects of one type."""
    first = contents[0]
    return Column.build(name, DataType(first["type"]), [c["value"] for c in contents], first["dimension"])


def canonical(content: dict[str, Any]) -> str:
    """JSON without a choice left: equal content gives equal text."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _dump_shape(field: Field) -> dict[str, Any]:
    content: dict[str, Any] = {"name": field.name, "type": field.type.value}
    if field.dimension:
        content["dimension"] = field.dimension
    return content
