"""Feature groups and feature views as values.

A group is a versioned table of features; a view selects features of groups for a model, with a maximal age per
source, request features, on-demand transforms and the label. Version 0 means "not registered yet" for the thing
itself and "the latest" in a reference.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType

from foresight.values.columns import Column
from foresight.values.errors import InvalidValue
from foresight.values.expectations import EXPECTATIONS_MAX, Expectation, FailurePolicy
from foresight.values.fields import DataType, Field
from foresight.values.names import check_name, check_text

KEYS_MAX = 8
FEATURES_MAX = 512
# A log-derived group holds a view's features, its entity keys, and the outputs and origin of predictions.
DERIVED_FEATURES_MAX = 1_500
SOURCES_MAX = 32
# No two sources of a view need to share a key.
VIEW_KEYS_MAX = SOURCES_MAX * KEYS_MAX
REQUEST_FEATURES_MAX = 256
TRANSFORMS_MAX = 64
TAGS_MAX = 64
TAG_BYTES_MAX = 255
OWNER_BYTES_MAX = 255
MAX_AGE_MAX = timedelta(days=36_525)
KEY_TYPES = (DataType.INT64, DataType.STRING, DataType.BOOL)
# What a default may be written as; integers are defaults of INT64, other numbers of FLOAT64.
DefaultValue = bool | int | float | str | datetime | Sequence[float]
LABEL_TYPES = (DataType.BOOL, DataType.INT64, DataType.FLOAT64, DataType.STRING)
_FUNCTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class MissingPolicy(enum.IntEnum):
    """What a feature without a value becomes, see "Policies and transforms" in `docs/semantics.md`.

    The numbers are those of the wire enum.
    """

    NULL = 1
    DEFAULT = 2
    FAIL = 3
    LAST_KNOWN = 4


@dataclass(frozen=True, slots=True)
class FeatureGroup:
    """A versioned table of features; rows are identified by entity keys and event time."""

    name: str
    entity_keys: tuple[Field, ...]
    features: tuple[Field, ...]
    strict_event_time: bool = False
    description: str = ""
    version: int = 0
    created_at: datetime | None = None
    # Log-derived groups use reserved names; only the platform itself sets this.
    derived: bool = False
    # What is about the version, not in it, and may change.
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    deprecation: str = ""
    expectations: tuple[Expectation, ...] = ()
    failure_policy: FailurePolicy = FailurePolicy.REJECT
    # What rows without a value read, for features that were added in place: columns of one row, by feature.
    defaults: Mapping[str, Column] = field(default_factory=dict)
    # Changes whenever the stored version does; '' when it is not known.
    etag: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", _checked_tags(self.tags))
        object.__setattr__(self, "defaults", MappingProxyType(dict(self.defaults)))
        check_text(self.owner, "owner", OWNER_BYTES_MAX)
        check_text(self.source, "source", OWNER_BYTES_MAX)
        check_text(self.deprecation, "deprecation")
        check_name(self.name, "name", reserved=self.derived)
        check_text(self.description, "description")
        _check_count(self.entity_keys, "entity_keys", 1, KEYS_MAX)
        _check_count(self.features, "features", 1, DERIVED_FEATURES_MAX if self.derived else FEATURES_MAX)
        for key in self.entity_keys:
            if key.type not in KEY_TYPES:
                raise InvalidValue("entity_keys", f"{key.name} is {key.type.value}; keys are int64, string or bool")
        seen: set[str] = set()
        for f in (*self.entity_keys, *self.features):
            check_name(f.name, "features", reserved=self.derived)
            _check_new(f.name, seen, "features")
        _check_count(self.expectations, "expectations", 0, EXPECTATIONS_MAX)
        fields, names = {f.name: f for f in self.fields}, set[str]()
        for expectation in self.expectations:
            expectation.check_fits(fields)
            _check_new(expectation.name, names, "expectations")
        for name, default in self.defaults.items():
            check_default(fields.get(name), default)

    @property
    def fields(self) -> tuple[Field, ...]:
        """Keys, then features."""
        return (*self.entity_keys, *self.features)


@dataclass(frozen=True, slots=True, init=False)
class ViewFeature:
    """One feature taken from a group. `name` is its name in the view; '' means prefix + feature.

    `default`: one value of the feature's type, required by the policy DEFAULT, optional with LAST_KNOWN, whose
    `last_known_max_age` says how old a last known value may be, counted from its row's event time.
    """

    feature: str
    name: str
    missing: MissingPolicy
    default: Column | None
    last_known_max_age: timedelta | None

    def __init__(
        self,
        feature: str,
        name: str = "",
        missing: MissingPolicy = MissingPolicy.NULL,
        default: Column | DefaultValue | None = None,
        last_known_max_age: timedelta | None = None,
    ) -> None:
        if default is not None and not isinstance(default, Column):
            default = Column.single(feature, default)
        object.__setattr__(self, "feature", feature)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "missing", missing)
        object.__setattr__(self, "default", default)
        object.__setattr__(self, "last_known_max_age", last_known_max_age)
        self._check()

    def _check(self) -> None:
        check_name(self.feature, "feature")
        if self.name:
            check_name(self.name, "name")
        last_known = self.missing is MissingPolicy.LAST_KNOWN
        if not last_known and (self.missing is MissingPolicy.DEFAULT) != (self.default is not None):
            raise InvalidValue(
                "default_value",
                f"of {self.feature} goes with DEFAULT, which needs it, and LAST_KNOWN",
            )
        if last_known != (self.last_known_max_age is not None):
            raise InvalidValue(
                "last_known_max_age", f"of {self.feature} goes with the policy LAST_KNOWN, and only with it"
            )
        if self.last_known_max_age is not None and not timedelta(0) < self.last_known_max_age <= MAX_AGE_MAX:
            raise InvalidValue("last_known_max_age", f"of {self.feature} is not positive and at most 100 years")
        if self.default is not None and (len(self.default) != 1 or self.default.valid is not None):
            raise InvalidValue("default_value", f"of {self.feature} is not one value")


@dataclass(frozen=True, slots=True)
class ViewSource:
    """The part of a view that comes from one group."""

    group: str
    features: tuple[ViewFeature, ...]
    max_age: timedelta | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    group_version: int = 0

    def __post_init__(self) -> None:
        check_name(self.group, "group")
        object.__setattr__(self, "keys", MappingProxyType(dict(self.keys)))
        _check_count(self.features, "features", 1, FEATURES_MAX)
        taken: set[str] = set()
        for feature in self.features:
            if feature.feature in taken:
                raise InvalidValue("features", f"take {feature.feature} twice; a transform may give it another name")
            taken.add(feature.feature)
        if self.prefix:
            check_name(self.prefix, "prefix")
        for group_key, view_key in self.keys.items():
            check_name(group_key, "keys")
            check_name(view_key, "keys")
        if self.max_age is not None and not timedelta(0) < self.max_age <= MAX_AGE_MAX:
            raise InvalidValue("max_age", "is not positive and at most 100 years")

    def name_of(self, feature: ViewFeature) -> str:
        """The feature's name in the view."""
        return feature.name or self.prefix + feature.feature

    def view_key(self, group_key: str) -> str:
        """The view's entity key that fills a key of the group."""
        return self.keys.get(group_key, group_key)


@dataclass(frozen=True, slots=True)
class Transform:
    """An on-demand transform: `function` is `package.module:function`, see `foresight.transforms`."""

    output: Field
    function: str
    source_sha256: str
    inputs: tuple[str, ...]

    def __post_init__(self) -> None:
        check_name(self.output.name, "output")
        if len(self.function) > 255 or not _FUNCTION.match(self.function):
            raise InvalidValue("function", "is not of the form package.module:function")
        if not _SHA256.match(self.source_sha256):
            raise InvalidValue("source_sha256", "is not 64 lower-case hex digits")
        _check_count(self.inputs, "inputs", 1, 64)


@dataclass(frozen=True, slots=True)
class FeatureView:
    """A versioned selection of features for a model.

    `entity_keys` and `features` are known once it is registered: the server derives them from the groups.
    """

    name: str
    label: Field
    sources: tuple[ViewSource, ...] = ()
    request_features: tuple[Field, ...] = ()
    transforms: tuple[Transform, ...] = ()
    description: str = ""
    version: int = 0
    created_at: datetime | None = None
    entity_keys: tuple[Field, ...] = ()
    features: tuple[Field, ...] = ()
    # What is about the version, not in it, and may change.
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    deprecation: str = ""
    # Changes whenever the stored version does; '' when it is not known.
    etag: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", _checked_tags(self.tags))
        check_text(self.owner, "owner", OWNER_BYTES_MAX)
        check_text(self.deprecation, "deprecation")
        check_name(self.name, "name")
        check_text(self.description, "description")
        check_name(self.label.name, "label")
        if self.label.type not in LABEL_TYPES:
            raise InvalidValue("label", f"is {self.label.type.value}; labels are bool, int64, float64 or string")
        _check_count(self.sources, "sources", 0, SOURCES_MAX)
        _check_count(self.request_features, "request_features", 0, REQUEST_FEATURES_MAX)
        _check_count(self.transforms, "transforms", 0, TRANSFORMS_MAX)
        if not self.sources and not self.request_features:
            raise InvalidValue("sources", "are empty and so are the request features: the view has no features")
        seen = {self.label.name}
        for source in self.sources:
            for feature in source.features:
                _check_new(source.name_of(feature), seen, "sources")
        for f in self.request_features:
            check_name(f.name, "request_features")
            _check_new(f.name, seen, "request_features")
        # A transform takes what is there before it: features, keys, and the transforms above it.
        for transform in self.transforms:
            _check_new(transform.output.name, seen, "transforms")
        if len(seen) - 1 > FEATURES_MAX:
            raise InvalidValue("features", f"are more than {FEATURES_MAX}")


def check_default(feature: Field | None, default: Column) -> None:
    """Raises InvalidValue unless a default is one value, not NULL, of its feature's type."""
    if feature is None:
        raise InvalidValue("defaults", f"{default.name} is not a feature of the group")
    if default.type is not feature.type or default.field.dimension != feature.dimension:
        raise InvalidValue("defaults", f"the default of {feature.name} is not of type {feature.type.value}")
    if len(default) != 1 or default.valid is not None:
        raise InvalidValue("defaults", f"the default of {feature.name} is not one value")


def _checked_tags(tags: Mapping[str, str]) -> Mapping[str, str]:
    if len(tags) > TAGS_MAX:
        raise InvalidValue("tags", f"are {len(tags)}, not 0 to {TAGS_MAX}")
    for key, value in tags.items():
        check_name(key, "tags", reserved=True)
        check_text(value, "tags", TAG_BYTES_MAX)
        if not value.isprintable():
            raise InvalidValue("tags", f"the value of {key} is not printable")
    return MappingProxyType(dict(tags))


def _check_count(items: tuple[object, ...], name: str, least: int, most: int) -> None:
    if not least <= len(items) <= most:
        raise InvalidValue(name, f"are {len(items)}, not {least} to {most}")


def _check_new(name: str, seen: set[str], where: str) -> None:
    if name in seen:
        raise InvalidValue(where, f"the name {name} is used twice")
    seen.add(name)
