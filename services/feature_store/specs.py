"""Groups and views as canonical JSON: equal content gives equal text, which is how registrations are compared.

Version and registration time are not part of the content; they are columns of their own.
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
    """The content of a group."""
    return _canonical(
        {
            "description": group.description,
            "entity_keys": [dump_field(f) for f in group.entity_keys],
            "features": [dump_field(f) for f in group.features],
            "strict_event_time": group.strict_event_time,
            "derived": group.derived,
        }
    )


def load_group(name: str, version: int, created_at: datetime, spec: str) -> FeatureGroup:
    """The group of its content."""
    content = json.loads(spec)
    return FeatureGroup(
        name=name,
        version=version,
        created_at=created_at,
        description=content["description"],
        entity_keys=tuple(load_field(f) for f in content["entity_keys"]),
        features=tuple(load_field(f) for f in content["features"]),
        strict_event_time=content["strict_event_time"],
        derived=content["derived"],
    )


def dump_view(view: FeatureView) -> str:
    """The content of a view with what the server derived: pinned versions, entity keys, features."""
    return _canonical(
        {
            "description": view.description,
            "entity_keys": [dump_field(f) for f in view.entity_keys],
            "features": [dump_field(f) for f in view.features],
            "sources": [_dump_source(s) for s in view.sources],
            "request_features": [dump_field(f) for f in view.request_features],
            "transforms": [
                {
                    "output": dump_field(t.output),
                    "function": t.function,
                    "source_sha256": t.source_sha256,
                    "inputs": list(t.inputs),
                }
                for t in view.transforms
            ],
            "label": dump_field(view.label),
        }
    )


def load_view(name: str, version: int, created_at: datetime, spec: str) -> FeatureView:
    """The view of its content."""
    content = json.loads(spec)
    return FeatureView(
        name=name,
        version=version,
        created_at=created_at,
        description=content["description"],
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
    content: dict[str, Any] = {"name": field.name, "type": field.type.value}
    if field.dimension:
        content["dimension"] = field.dimension
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
        "features": [
            {
                "feature": f.feature,
                "name": f.name,
                "missing": f.missing.name,
                "default": None if f.default is None else _dump_value(f.default),
            }
            for f in source.features
        ],
    }


def _load_source(content: dict[str, Any]) -> ViewSource:
    age_us = content["max_age_us"]
    return ViewSource(
        group=content["group"],
        group_version=content["group_version"],
        keys=content["keys"],
        prefix=content["prefix"],
        max_age=None if age_us is None else timedelta(microseconds=age_us),
        features=tuple(
            ViewFeature(
                f["feature"],
                f["name"],
                MissingPolicy[f["missing"]],
                None
                if f["default"] is None
                else _load_value(f["name"] or content["prefix"] + f["feature"], f["default"]),
            )
            for f in content["features"]
        ),
    )


def _dump_value(column: Column) -> dict[str, Any]:
    # Timestamps stay microseconds, vectors lists of floats; JSON floats keep every bit.
    return {
        "type": column.type.value,
        "dimension": column.field.dimension,
        "value": column.values[0] if column.type is DataType.STRING else column.values[0].tolist(),
    }


def _load_value(name: str, content: dict[str, Any]) -> Column:
    return Column.build(name, DataType(content["type"]), [content["value"]], content["dimension"])


def _canonical(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
