"""Feature groups and feature views: define and find."""

from __future__ import annotations

import inspect
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
from google.protobuf.timestamp_pb2 import Timestamp

from foresight.client.connection import Connection
from foresight.client.frames import EVENT_TIME, Progress, read_table
from foresight.client.writes import WriteCalls
from foresight.feature_store.v1 import offline_pb2, offline_pb2_grpc, registry_pb2, registry_pb2_grpc
from foresight.transforms import source_sha256
from foresight.types.v1 import types_pb2
from foresight.values import FeatureGroup, FeatureView, Field, InvalidValue, Transform
from foresight.wire import decode_group, decode_view, encode_group, encode_instant, encode_view

Thing = TypeVar("Thing", FeatureGroup, FeatureView)


class VersionRef(NamedTuple):
    """A name and a version."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


@dataclass(frozen=True, slots=True)
class Registration:
    """What `register` answers: the thing as it is now, and whether this call made a new version.

    `warnings` are sentences to read, such as that a group of a view is deprecated.
    """

    thing: FeatureGroup | FeatureView
    created: bool
    warnings: tuple[str, ...] = ()


def transform(function: Callable[..., Any], *, inputs: Sequence[str], output: Field) -> Transform:
    """An on-demand transform for a view, see `foresight.transforms`.

    `function` is an ordinary function at the top of an importable module. Services must trust that module, and have
    the same source. Raises InvalidValue for lambdas, nested functions and functions of a script.
    """
    if not inspect.isfunction(function):
        raise InvalidValue("function", "is not an ordinary Python function")
    if "<" in function.__qualname__ or "." in function.__qualname__:
        raise InvalidValue("function", f"{function.__qualname__} is not at the top of its module")
    if function.__module__ == "__main__":
        raise InvalidValue("function", f"{function.__name__} is in a script; services can only import it from a module")
    if getattr(sys.modules[function.__module__], function.__name__, None) is not function:
        raise InvalidValue("function", f"is not what {function.__module__}.{function.__name__} names")
    return Transform(
        output=output,
        function=f"{function.__module__}:{function.__name__}",
        source_sha256=source_sha256(function),
        inputs=tuple(inputs),
    )


class FeatureCalls(WriteCalls):
    """Calls about groups, views and their rows."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._registry = registry_pb2_grpc.FeatureRegistryServiceStub(connection.channel)

    def apply(self, *things: FeatureGroup | FeatureView) -> list[FeatureGroup | FeatureView]:
        """Registers groups and views, groups first, and returns them as registered, in the order given.

        Identical content answers the version that is there, with what is said about it (description, owner, tags,
        source, expectations) as given here; a deprecation stays until `deprecate` takes it back. Other content makes
        the next version. Features that `add_features` added may be left out. A thing with an etag, as the server
        answers it, raises Aborted when somebody else has changed it since. Warns of deprecated groups.
        """
        registrations = self.register(*things)
        for registration in registrations:
            for text in registration.warnings:
                warnings.warn(text, UserWarning, stacklevel=2)
        return [registration.thing for registration in registrations]

    def register(self, *things: FeatureGroup | FeatureView) -> list[Registration]:
        """As `apply`, and says what is new."""
        groups_first = sorted(things, key=lambda thing: isinstance(thing, FeatureView))
        registered = {id(thing): self._register(thing) for thing in groups_first}
        return [registered[id(thing)] for thing in things]

    def groups(self) -> list[FeatureGroup]:
        """The latest version of every group, those derived from the prediction log included."""
        response = self._connection.call(self._registry.ListFeatureGroups, registry_pb2.ListFeatureGroupsRequest())
        return [decode_group(group, derived=True) for group in response.groups]

    def group(self, name: str, version: int = 0) -> FeatureGroup:
        """One group; version 0 is the latest. Raises NotFound."""
        return decode_group(self._describe(name, version).group, derived=True)

    def count_rows(self, group: str, version: int = 0) -> int:
        """Rows of a group, tombstones and corrections counted."""
        return int(self._describe(group, version).rows)

    def views(self) -> list[FeatureView]:
        """The latest version of every view."""
        response = self._connection.call(self._registry.ListFeatureViews, registry_pb2.ListFeatureViewsRequest())
        return [decode_view(view) for view in response.views]

    def view(self, name: str, version: int = 0) -> FeatureView:
        """One view; version 0 is the latest. Raises NotFound."""
        return describe_view(self._connection, name, version)

    def _register(self, thing: FeatureGroup | FeatureView) -> Registration:
        if isinstance(thing, FeatureGroup):
            answer = self._connection.call(
                self._registry.RegisterFeatureGroup, registry_pb2.RegisterFeatureGroupRequest(group=encode_group(thing))
            )
            group = decode_group(answer.group)
            self._known[group.name] = time.monotonic(), group
            return Registration(group, answer.created)
        if isinstance(thing, FeatureView):
            response = self._connection.call(
                self._registry.RegisterFeatureView, registry_pb2.RegisterFeatureViewRequest(view=encode_view(thing))
            )
            return Registration(decode_view(response.view), response.created, tuple(response.warnings))
        raise InvalidValue("things", f"a {type(thing).__name__} is neither a FeatureGroup nor a FeatureView")

    def _describe(self, name: str, version: int) -> registry_pb2.GetFeatureGroupResponse:
        request = registry_pb2.GetFeatureGroupRequest(group=types_pb2.VersionRef(name=name, version=version))
        return self._connection.call(self._registry.GetFeatureGroup, request)


def describe_view(connection: Connection, name: str, version: int) -> FeatureView:
    """One view; version 0 is the latest."""
    registry = registry_pb2_grpc.FeatureRegistryServiceStub(connection.channel)
    request = registry_pb2.GetFeatureViewRequest(view=types_pb2.VersionRef(name=name, version=version))
    return decode_view(connection.call(registry.GetFeatureView, request).view)


def read_rows(
    connection: Connection, request: offline_pb2.ReadFeaturesRequest, progress: Progress | None, timeout_s: float
) -> pa.Table:
    """The rows of a group."""
    offline = offline_pb2_grpc.OfflineFeatureServiceStub(connection.channel)
    return connection.download(
        lambda: offline.ReadFeatures(request, timeout=timeout_s),
        lambda parts: read_table((part.arrow for part in parts), progress),
    )


def encode_optional(instant: datetime | None) -> Timestamp | None:
    """The message of an instant that may be left out."""
    return None if instant is None else encode_instant(instant)


def spine_fields(view: FeatureView) -> tuple[Field, ...]:
    """The columns of a spine whose types the view says."""
    return (*view.entity_keys, EVENT_TIME, *view.request_features, view.label)
