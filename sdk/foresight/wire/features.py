"""Fields, feature groups and feature views on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from foresight.feature_store.v1 import registry_pb2
from foresight.types.v1 import types_pb2
from foresight.values.columns import Column
from foresight.values.errors import InvalidValue, quoted
from foresight.values.features import (
    FeatureGroup,
    FeatureView,
    MissingPolicy,
    Transform,
    ViewFeature,
    ViewSource,
)
from foresight.values.fields import DataType, Field
from foresight.wire.columns import decode_column, decode_columns, encode_column
from foresight.wire.expectations import (
    decode_duration,
    decode_expectations,
    decode_failure_policy,
    encode_duration,
    encode_expectation,
    encode_failure_policy,
)
from foresight.wire.instants import decode_optional_instant, encode_instant

ETAG_BYTES_MAX = 128
_TYPES: dict[DataType, types_pb2.DataType.ValueType] = {
    DataType.INT64: types_pb2.DATA_TYPE_INT64,
    DataType.FLOAT64: types_pb2.DATA_TYPE_FLOAT64,
    DataType.BOOL: types_pb2.DATA_TYPE_BOOL,
    DataType.STRING: types_pb2.DATA_TYPE_STRING,
    DataType.TIMESTAMP: types_pb2.DATA_TYPE_TIMESTAMP,
    DataType.FLOAT_VECTOR: types_pb2.DATA_TYPE_FLOAT_VECTOR,
}
_FROM_WIRE: dict[int, DataType] = {number: type for type, number in _TYPES.items()}
_POLICIES: dict[MissingPolicy, registry_pb2.MissingPolicy.ValueType] = {
    MissingPolicy.NULL: registry_pb2.MISSING_POLICY_NULL,
    MissingPolicy.DEFAULT: registry_pb2.MISSING_POLICY_DEFAULT,
    MissingPolicy.FAIL: registry_pb2.MISSING_POLICY_FAIL,
    MissingPolicy.LAST_KNOWN: registry_pb2.MISSING_POLICY_LAST_KNOWN,
}


def encode_field(field: Field) -> types_pb2.Field:
    """The message of a field."""
    return types_pb2.Field(
        name=field.name, type=_TYPES[field.type], dimension=field.dimension, description=field.description
    )


def decode_field(message: types_pb2.Field, where: str) -> Field:
    """The field of a message."""
    type = _FROM_WIRE.get(message.type)
    if type is None:
        raise InvalidValue(f"{where}.type", "is unset or not known")
    try:
        return Field(message.name, type, message.dimension, message.description)
    except InvalidValue as error:
        raise error.within(where) from None


def encode_group(group: FeatureGroup) -> registry_pb2.FeatureGroup:
    """The message of a group."""
    return registry_pb2.FeatureGroup(
        name=group.name,
        version=group.version,
        description=group.description,
        entity_keys=[encode_field(f) for f in group.entity_keys],
        features=[encode_field(f) for f in group.features],
        strict_event_time=group.strict_event_time,
        created_at=encode_instant(group.created_at) if group.created_at else None,
        owner=group.owner,
        tags=encode_tags(group.tags),
        source=group.source,
        deprecation=group.deprecation,
        expectations=[encode_expectation(e) for e in group.expectations],
        failure_policy=encode_failure_policy(group.failure_policy),
        defaults=[encode_column(default.renamed(name)) for name, default in group.defaults.items()],
        etag=group.etag,
    )


def decode_group(message: registry_pb2.FeatureGroup, *, derived: bool = False) -> FeatureGroup:
    """The group of a message. `derived=True` allows the reserved names of log-derived groups."""
    created_at = decode_optional_instant(message.HasField("created_at"), message.created_at, "created_at")
    return FeatureGroup(
        name=message.name,
        version=message.version,
        description=message.description,
        entity_keys=tuple(decode_field(f, "entity_keys") for f in message.entity_keys),
        features=tuple(decode_field(f, "features") for f in message.features),
        strict_event_time=message.strict_event_time,
        created_at=created_at,
        derived=derived,
        owner=message.owner,
        tags=decode_tags(message.tags),
        source=message.source,
        deprecation=message.deprecation,
        expectations=decode_expectations(message.expectations),
        failure_policy=decode_failure_policy(message.failure_policy),
        defaults=decode_defaults(message.defaults),
        etag=decode_etag(message.etag),
    )


def encode_view(view: FeatureView) -> registry_pb2.FeatureView:
    """The message of a view."""
    return registry_pb2.FeatureView(
        name=view.name,
        version=view.version,
        description=view.description,
        entity_keys=[encode_field(f) for f in view.entity_keys],
        sources=[_encode_source(s) for s in view.sources],
        request_features=[encode_field(f) for f in view.request_features],
        transforms=[
            registry_pb2.Transform(
                output=encode_field(t.output),
                function=t.function,
                source_sha256=t.source_sha256,
                inputs=t.inputs,
            )
            for t in view.transforms
        ],
        label=encode_field(view.label),
        created_at=encode_instant(view.created_at) if view.created_at else None,
        features=[encode_field(f) for f in view.features],
        owner=view.owner,
        tags=encode_tags(view.tags),
        deprecation=view.deprecation,
        etag=view.etag,
    )


def decode_view(message: registry_pb2.FeatureView) -> FeatureView:
    """The view of a message."""
    created_at = decode_optional_instant(message.HasField("created_at"), message.created_at, "created_at")
    return FeatureView(
        name=message.name,
        version=message.version,
        description=message.description,
        entity_keys=tuple(decode_field(f, "entity_keys") for f in message.entity_keys),
        sources=tuple(_decode_source(s) for s in message.sources),
        request_features=tuple(decode_field(f, "request_features") for f in message.request_features),
        transforms=tuple(
            Transform(
                output=decode_field(t.output, "transforms.output"),
                function=t.function,
                source_sha256=t.source_sha256,
                inputs=tuple(t.inputs),
            )
            for t in message.transforms
        ),
        label=decode_field(message.label, "label"),
        created_at=created_at,
        features=tuple(decode_field(f, "features") for f in message.features),
        owner=message.owner,
        tags=decode_tags(message.tags),
        deprecation=message.deprecation,
        etag=decode_etag(message.etag),
    )


def encode_tags(tags: Mapping[str, str]) -> list[registry_pb2.Tag]:
    """The messages of tags, in their order."""
    return [registry_pb2.Tag(key=key, value=value) for key, value in tags.items()]


def decode_tags(messages: Iterable[registry_pb2.Tag]) -> dict[str, str]:
    """Tags by key. Raises InvalidValue for a key given twice."""
    tags: dict[str, str] = {}
    for message in messages:
        if message.key in tags:
            raise InvalidValue("tags", f"the key {quoted(message.key)} is given twice")
        tags[message.key] = message.value
    return tags


def decode_defaults(messages: Iterable[types_pb2.Column]) -> dict[str, Column]:
    """Columns of one row by feature. Raises InvalidValue for a feature given twice."""
    return decode_columns(messages, "defaults", rows=1)


def decode_etag(etag: str, field: str = "etag") -> str:
    """An etag as it came from a server, or ''. Raises InvalidValue for what no server sent."""
    if len(etag) > ETAG_BYTES_MAX or not etag.isascii() or not etag.isprintable():
        raise InvalidValue(field, f"is not at most {ETAG_BYTES_MAX} printable ASCII characters")
    return etag


def _encode_source(source: ViewSource) -> registry_pb2.ViewSource:
    return registry_pb2.ViewSource(
        group=types_pb2.VersionRef(name=source.group, version=source.group_version),
        keys=[registry_pb2.KeyMapping(group_key=g, view_key=v) for g, v in source.keys.items()],
        features=[
            registry_pb2.ViewFeature(
                feature=f.feature,
                name=f.name,
                missing=_POLICIES[f.missing],
                default_value=encode_column(f.default) if f.default is not None else None,
                last_known_max_age=encode_duration(f.last_known_max_age) if f.last_known_max_age is not None else None,
            )
            for f in source.features
        ],
        max_age=None if source.max_age is None else encode_duration(source.max_age),
        prefix=source.prefix,
    )


def _decode_source(message: registry_pb2.ViewSource) -> ViewSource:
    max_age = decode_duration(message.max_age, "sources.max_age") if message.HasField("max_age") else None
    keys: dict[str, str] = {}
    for mapping in message.keys:
        if mapping.group_key in keys:
            raise InvalidValue("sources.keys", "maps the same group key twice")
        keys[mapping.group_key] = mapping.view_key
    return ViewSource(
        group=message.group.name,
        group_version=message.group.version,
        features=tuple(_decode_feature(f) for f in message.features),
        max_age=max_age,
        keys=keys,
        prefix=message.prefix,
    )


def _decode_feature(message: registry_pb2.ViewFeature) -> ViewFeature:
    if message.missing not in (0, *_POLICIES):
        raise InvalidValue("sources.features.missing", "is not a known policy")
    return ViewFeature(
        feature=message.feature,
        name=message.name,
        missing=MissingPolicy(message.missing or MissingPolicy.NULL),
        default=decode_column(message.default_value, "sources.features.default_value")
        if message.HasField("default_value")
        else None,
        last_known_max_age=decode_duration(message.last_known_max_age, "sources.features.last_known_max_age")
        if message.HasField("last_known_max_age")
        else None,
    )
