"""Groups and views as they age: features added in place, what is said about them, deprecation, search, removal."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foresight.client.connection import Calls, Connection
from foresight.client.features import Thing, VersionRef
from foresight.feature_store.v1 import registry_pb2, registry_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import Column, FeatureGroup, Field, InvalidValue
from foresight.wire import (
    decode_group,
    decode_view,
    encode_column,
    encode_field,
    encode_group,
    encode_tags,
    encode_view,
)

SEARCH_MAX = 100


class FoundKind(enum.Enum):
    """Kinds of things that a search finds."""

    GROUP = "group"
    VIEW = "view"
    FEATURE = "feature"


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: a group, a view, or a feature of a group; `thing` is the group or view."""

    kind: FoundKind
    thing: VersionRef
    feature: str
    description: str
    owner: str
    deprecation: str


class RegistryCalls(Calls):
    """Calls that change, find and remove groups and views."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._versions = registry_pb2_grpc.FeatureRegistryServiceStub(connection.channel)

    def add_features(
        self, group: str, features: Sequence[Field], defaults: Mapping[str, Any], *, version: int = 0, etag: str = ""
    ) -> FeatureGroup:
        """Adds features to a group version in place, each with the value that rows without one read.

        That is what rows that are there read, and rows that are written without the column; an explicit NULL stays
        NULL. Adding what is there already with the same default changes nothing. `etag`: the state of the group that
        was seen. Raises AlreadyExists for another type or default, Aborted for a stale etag.
        """
        columns = []
        for field in features:
            if field.name not in defaults:
                raise InvalidValue("defaults", f"there is none for {field.name}, which rows that are there would read")
            columns.append(Column.build(field.name, field.type, [defaults[field.name]], field.dimension))
        for name in defaults:
            if name not in {field.name for field in features}:
                raise InvalidValue("defaults", f"{name} is not among the features")
        request = registry_pb2.AddFeaturesRequest(
            group=types_pb2.VersionRef(name=group, version=version),
            features=[encode_field(field) for field in features],
            defaults=[encode_column(column) for column in columns],
            etag=etag,
        )
        return decode_group(self._connection.call(self._versions.AddFeatures, request).group)

    def update(self, thing: Thing) -> Thing:
        """Changes what is said about a group or view version: description, owner, tags, deprecation, and of a group
        its source and expectations; all of it is as in `thing`, and its content stays. Answers the thing as it is now.

        Change what `group` or `view` answered with `dataclasses.replace`: its etag says what was seen. Raises Aborted
        when somebody else has changed it since.
        """
        if isinstance(thing, FeatureGroup):
            asked = registry_pb2.UpdateFeatureGroupRequest(group=encode_group(thing))
            return decode_group(
                self._connection.call(self._versions.UpdateFeatureGroup, asked).group, derived=thing.derived
            )
        request = registry_pb2.UpdateFeatureViewRequest(view=encode_view(thing))
        return decode_view(self._connection.call(self._versions.UpdateFeatureView, request).view)

    def deprecate(self, thing: Thing, why: str) -> Thing:
        """Says that a group or view, as `group` or `view` answered it, shall not be used any more, and why or what
        instead; '' takes that back. It goes on working; searches pass it over. Raises Aborted as `update` does."""
        return self.update(replace(thing, deprecation=why))

    def drop_group(self, name: str, version: int, *, etag: str = "") -> int:
        """Removes a group version with all of its rows, for good; answers how many there were.

        Raises FailedPrecondition, which names the users, when something uses it.
        """
        request = registry_pb2.DropFeatureGroupRequest(
            group=types_pb2.VersionRef(name=name, version=version), etag=etag
        )
        return int(self._connection.call(self._versions.DropFeatureGroup, request).rows)

    def drop_view(self, name: str, version: int, *, etag: str = "") -> None:
        """Removes a view version. Raises FailedPrecondition, which names the users, when something uses it."""
        request = registry_pb2.DropFeatureViewRequest(view=types_pb2.VersionRef(name=name, version=version), etag=etag)
        self._connection.call(self._versions.DropFeatureView, request)

    def search(
        self,
        words: str = "",
        *,
        tags: Mapping[str, str] | None = None,
        owner: str = "",
        include_deprecated: bool = False,
        limit: int = SEARCH_MAX,
    ) -> list[Found]:
        """Groups, views and features whose names, descriptions, owners and tags have all of the words, in any case.

        Only those with all `tags`, where an empty value stands for any. Names that start with the words come first.
        """
        request = registry_pb2.SearchRequest(
            query=words,
            tags=encode_tags(tags or {}),
            owner=owner,
            include_deprecated=include_deprecated,
            limit=limit,
        )
        return [_decode_found(found) for found in self._connection.call(self._versions.Search, request).results]


def _decode_found(message: registry_pb2.SearchResult) -> Found:
    kind = registry_pb2.SearchResult.Kind.Name(message.kind).removeprefix("KIND_")
    return Found(
        kind=FoundKind[kind],
        thing=VersionRef(message.thing.name, message.thing.version),
        feature=message.feature,
        description=message.description,
        owner=message.owner,
        deprecation=message.deprecation,
    )
