"""Lineage: what a thing is made of, and what is made of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from foresight.client.connection import Calls, Connection
from foresight.feature_store.v1 import lineage_pb2, lineage_pb2_grpc
from foresight.values import InvalidValue
from foresight.wire import decode_instant


class ThingKind(enum.Enum):
    """Kinds of things with lineage, from the first in the line to the last."""

    SOURCE = "source"
    FEATURE_GROUP = "group"
    FEATURE_VIEW = "view"
    TRAINING_DATASET = "dataset"
    MODEL = "model"
    DEPLOYMENT = "deployment"


@dataclass(frozen=True, slots=True)
class LineageThing:
    """A thing with lineage; `version` is 0 for a kind without versions, and in a question for the latest.

    As text: `group:weather@2`, `view:delays`, `model:late@1`, `deployment:delays`, `dataset:<id>`, `source:<name>`.
    """

    kind: ThingKind
    name: str
    version: int = 0

    @classmethod
    def parse(cls, text: str) -> LineageThing:
        """The thing of a text. Raises InvalidValue."""
        word, colon, name = text.partition(":")
        kinds = {kind.value: kind for kind in ThingKind}
        if not colon or word not in kinds or not name:
            raise InvalidValue("thing", f"{text[:100]!r} is not of the form {'|'.join(kinds)}:NAME")
        kind, version = kinds[word], ""
        if kind in (ThingKind.FEATURE_GROUP, ThingKind.FEATURE_VIEW, ThingKind.MODEL):
            name, at, version = name.partition("@")
            if at and not (version.isascii() and version.isdigit() and 0 < int(version) < 2**31):
                raise InvalidValue("thing", f"the version in {text[:100]!r} is not a number from 1")
        return cls(kind, name, int(version or 0))

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.name}" + (f"@{self.version}" if self.version else "")


@dataclass(frozen=True, slots=True)
class Use:
    """`user` uses `used`. `known_at_asserted`: what was known when rests on the word of who wrote the rows."""

    user: LineageThing
    used: LineageThing
    since: datetime
    known_at_asserted: bool


@dataclass(frozen=True, slots=True)
class Lineage:
    """The things reached from `start`, and the uses between them. `labels`: a few words on some of them, such as the
    name of a training dataset. `truncated`: there was more than an answer holds."""

    start: LineageThing
    things: tuple[LineageThing, ...]
    uses: tuple[Use, ...]
    labels: dict[LineageThing, str]
    truncated: bool

    def made_of(self, thing: LineageThing) -> list[Use]:
        """What the thing itself uses."""
        return [use for use in self.uses if use.user == thing]

    def used_by(self, thing: LineageThing) -> list[Use]:
        """What uses the thing itself."""
        return [use for use in self.uses if use.used == thing]


class LineageCalls(Calls):
    """Calls about lineage."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._lineage = lineage_pb2_grpc.LineageServiceStub(connection.channel)

    def lineage(self, thing: LineageThing | str, *, depth: int = 0) -> Lineage:
        """What a thing is made of and what is made of it, `depth` steps in both directions; 0: all.

        `thing` may be a text such as `view:delays@3`, see `LineageThing`. Raises NotFound.
        """
        asked = LineageThing.parse(thing) if isinstance(thing, str) else thing
        request = lineage_pb2.GetLineageRequest(thing=_encode(asked), depth=depth)
        response = self._connection.call(self._lineage.GetLineage, request)
        things = tuple(decode_thing(message) for message in response.things)
        return Lineage(
            start=things[0],
            things=things,
            uses=tuple(
                Use(decode_thing(u.user), decode_thing(u.used), decode_instant(u.since, "since"), u.known_at_asserted)
                for u in response.uses
            ),
            labels={decode_thing(message): message.label for message in response.things if message.label},
            truncated=response.truncated,
        )


def _encode(thing: LineageThing) -> lineage_pb2.Thing:
    kind = lineage_pb2.ThingKind.Value(f"THING_KIND_{thing.kind.name}")
    return lineage_pb2.Thing(kind=kind, name=thing.name, version=thing.version)


def decode_thing(message: lineage_pb2.Thing) -> LineageThing:
    """The thing of a message."""
    kind = lineage_pb2.ThingKind.Name(message.kind).removeprefix("THING_KIND_")
    return LineageThing(ThingKind[kind], message.name, message.version)
