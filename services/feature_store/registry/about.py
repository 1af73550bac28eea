"""What people say about a group or view: not part of a version's content, so it changes in place.

As canonical JSON, like content in `specs.py`: equal texts say the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from foresight.values import (
    Expectation,
    FailurePolicy,
    FeatureGroup,
    FeatureView,
    Field,
    Fresh,
    NotNull,
    OneOf,
    Range,
    Unique,
)
from foresight.values.expectations import Rule
from services.feature_store.registry.specs import canonical, dump_value, load_value

_MICROSECOND = timedelta(microseconds=1)
_VALUES = "values"


@dataclass(frozen=True, slots=True)
class GroupAbout:
    """All of it that an update of a group gives."""

    description: str
    owner: str
    tags: dict[str, str]
    source: str
    deprecation: str
    expectations: tuple[Expectation, ...]
    failure_policy: FailurePolicy

    def put_on(self, group: FeatureGroup) -> FeatureGroup:
        """The group with this. Raises InvalidValue, also for an expectation that does not fit the group."""
        return replace(
            group,
            description=self.description,
            owner=self.owner,
            tags=self.tags,
            source=self.source,
            deprecation=self.deprecation,
            expectations=self.expectations,
            failure_policy=self.failure_policy,
        )


@dataclass(frozen=True, slots=True)
class ViewAbout:
    """All of it that an update of a view gives."""

    description: str
    owner: str
    tags: dict[str, str]
    deprecation: str

    def put_on(self, view: FeatureView) -> FeatureView:
        """The view with this. Raises InvalidValue."""
        return replace(
            view, description=self.description, owner=self.owner, tags=self.tags, deprecation=self.deprecation
        )


def dump_group_about(group: FeatureGroup) -> str:
    """What is said about a group."""
    return canonical(
        {
            "description": group.description,
            "owner": group.owner,
            "tags": dict(group.tags),
            "source": group.source,
            "deprecation": group.deprecation,
            "expectations": [_dump_expectation(e) for e in group.expectations],
            "failure_policy": group.failure_policy.name,
            "fields": _dump_descriptions(group.fields),
        }
    )


def load_group_about(group: FeatureGroup, text: str) -> FeatureGroup:
    """The group with what is said about it."""
    content = json.loads(text)
    return replace(
        group,
        description=content["description"],
        owner=content["owner"],
        tags=content["tags"],
        source=content["source"],
        deprecation=content["deprecation"],
        expectations=tuple(_load_expectation(e) for e in content["expectations"]),
        failure_policy=FailurePolicy[content["failure_policy"]],
        entity_keys=described(group.entity_keys, content["fields"]),
        features=described(group.features, content["fields"]),
    )


def dump_view_about(view: FeatureView) -> str:
    """What is said about a view."""
    return canonical(
        {
            "description": view.description,
            "owner": view.owner,
            "tags": dict(view.tags),
            "deprecation": view.deprecation,
            "fields": _dump_descriptions((*view.entity_keys, *view.features, view.label)),
        }
    )


def load_view_about(view: FeatureView, text: str) -> FeatureView:
    """The view with what is said about it."""
    content = json.loads(text)
    fields = content["fields"]
    return replace(
        view,
        description=content["description"],
        owner=content["owner"],
        tags=content["tags"],
        deprecation=content["deprecation"],
        entity_keys=described(view.entity_keys, fields),
        features=described(view.features, fields),
        request_features=described(view.request_features, fields),
        transforms=tuple(replace(t, output=described([t.output], fields)[0]) for t in view.transforms),
        label=described([view.label], fields)[0],
    )


def described(fields: Iterable[Field], descriptions: dict[str, str]) -> tuple[Field, ...]:
    """The fields with their descriptions; those that are not named have none."""
    return tuple(replace(f, description=descriptions.get(f.name, "")) for f in fields)


def searched_in(thing: FeatureGroup | FeatureView) -> str:
    """All words by which a search finds the thing, in one case, one text per line."""
    fields = thing.fields if isinstance(thing, FeatureGroup) else (*thing.entity_keys, *thing.features, thing.label)
    source = thing.source if isinstance(thing, FeatureGroup) else ""
    tags = [f"{key}={value}" for key, value in thing.tags.items()]
    texts = [thing.name, thing.description, thing.owner, source, *tags]
    texts += [text for f in fields for text in (f.name, f.description)]
    return "\n".join(text.casefold() for text in texts if text)


def _dump_descriptions(fields: Iterable[Field]) -> dict[str, str]:
    return {f.name: f.description for f in fields if f.description}


def _dump_expectation(expectation: Expectation) -> dict[str, Any]:
    return {"name": expectation.name, "column": expectation.column, "rule": _dump_rule(expectation.rule)}


def _load_expectation(content: dict[str, Any]) -> Expectation:
    return Expectation(_load_rule(content["rule"]), content["column"], content["name"])


def _dump_rule(rule: Rule) -> dict[str, Any]:
    match rule:
        case Range(min=least, max=most):
            return {"range": [None if bound is None else float(bound) for bound in (least, most)]}
        case OneOf(values=values):
            rows = [dump_value(values.take([row])) for row in range(len(values))]
            return {"one_of": rows}
        case NotNull():
            return {"not_null": True}
        case Unique():
            return {"unique": True}
        case Fresh(max_age=max_age):
            return {"fresh_us": max_age // _MICROSECOND}
    raise AssertionError(f"{type(rule).__name__} is no rule")


def _load_rule(content: dict[str, Any]) -> Rule:
    ((word, value),) = content.items()
    match word:
        case "range":
            return Range(*value)
        case "one_of":
            return OneOf(load_value(_VALUES, *value))
        case "not_null":
            return NotNull()
        case "unique":
            return Unique()
        case "fresh_us":
            return Fresh(timedelta(microseconds=value))
    raise AssertionError(f"{word} is no rule")
