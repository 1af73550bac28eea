"""Signatures, fields and classes as JSON, for the database and the worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foresight.scoring import ModelTask, Signature
from foresight.values import Column, DataType, Field


def to_json(signature: Signature) -> dict[str, Any]:
    """The signature as JSON."""
    return {
        "task": int(signature.task),
        "inputs": [field_to_json(f) for f in signature.inputs],
        "label": field_to_json(signature.label),
        "classes": None if signature.classes is None else signature.classes.to_list(),
    }


def from_json(data: Mapping[str, Any]) -> Signature:
    """The inverse of `to_json`."""
    label = field_from_json(data["label"])
    classes = data["classes"]
    return Signature(
        task=ModelTask(data["task"]),
        inputs=tuple(field_from_json(f) for f in data["inputs"]),
        label=label,
        classes=None if classes is None else Column.build(label.name, label.type, classes),
    )


def field_to_json(field: Field) -> dict[str, Any]:
    """The field as JSON."""
    return {
        "name": field.name,
        "type": field.type.value,
        "dimension": field.dimension,
        "description": field.description,
    }


def field_from_json(data: Mapping[str, Any]) -> Field:
    """The inverse of `field_to_json`."""
    return Field(data["name"], DataType(data["type"]), data["dimension"], data["description"])
