"""Lineage: what is made of what, from the source of rows to what clients call.

source -> feature group -> feature view -> training dataset -> model version -> deployment. What has a user cannot be
dropped. Sources are named by groups and by writes; the other uses are recorded when the user comes into being, while
what it uses is held, so that neither can be lost to the other.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from foresight.values import InvalidValue, check_name
from foresight.values.features import OWNER_BYTES_MAX
from foresight.values.names import check_text

DEPTH_MAX = 16
USED_MAX = 256
ID_BYTES_MAX = 128


class ThingKind(enum.IntEnum):
    """Kinds of things, from the first to the last in the line; the numbers are those of the wire enum."""

    SOURCE = 1
    FEATURE_GROUP = 2
    FEATURE_VIEW = 3
    TRAINING_DATASET = 4
    MODEL = 5
    DEPLOYMENT = 6

    @property
    def words(self) -> str:
        """The kind for people."""
        return self.name.lower().replace("_", " ")


VERSIONED = (ThingKind.FEATURE_GROUP, ThingKind.FEATURE_VIEW, ThingKind.MODEL)
# What is told of from outside, and what such things may say that they use.
DECLARED = (ThingKind.MODEL, ThingKind.DEPLOYMENT)
USABLE = (ThingKind.FEATURE_VIEW, ThingKind.TRAINING_DATASET, ThingKind.MODEL)


@dataclass(frozen=True, slots=True, order=True)
class Thing:
    """A thing with lineage. `version` is 0 for kinds without versions, and in a question for the latest."""

    kind: ThingKind
    name: str
    version: int = 0

    def __post_init__(self) -> None:
        if self.kind not in VERSIONED and self.version:
            raise InvalidValue("version", f"does not go with a {self.kind.words}")
        if self.version >= 2**31:
            raise InvalidValue("version", "is larger than any version can be")

    def checked(self) -> Thing:
        """The thing, when its name may be one of its kind. Raises InvalidValue."""
        if not self.name:
            raise InvalidValue("name", "is required")
        if self.kind is ThingKind.SOURCE:
            check_text(self.name, "name", OWNER_BYTES_MAX)
        elif self.kind is ThingKind.TRAINING_DATASET:
            check_text(self.name, "name", ID_BYTES_MAX)
        else:
            check_name(self.name, reserved=True)
            check_text(self.name, "name", ID_BYTES_MAX)
        return self

    def __str__(self) -> str:
        return f"{self.kind.words} {self.name}" + (f" version {self.version}" if self.version else "")


@dataclass(frozen=True, slots=True)
class Use:
    """`user` uses `used`. `known_at_asserted`: rows came along here whose `known_at` is the writer's word."""

    user: Thing
    used: Thing
    since: datetime
    known_at_asserted: bool = False


@dataclass(frozen=True, slots=True)
class LineageGraph:
    """The start and all that it is made of and that is made of it, and the uses between them.

    `labels`: a few words on some things. `truncated`: there were more things or uses than an answer may hold.
    """

    things: tuple[Thing, ...]
    uses: tuple[Use, ...]
    labels: dict[Thing, str]
    truncated: bool


class Uses(Protocol):
    """Where uses are kept."""

    async def graph(self, start: Thing, depth: int) -> LineageGraph: ...
    async def declare(self, user: Thing, used: Sequence[Thing]) -> None: ...


class Lineage:
    """Answers who uses what, and takes declarations of it."""

    def __init__(self, uses: Uses) -> None:
        self._uses = uses

    async def of(self, thing: Thing, depth: int = 0) -> LineageGraph:
        """What a thing is made of and what is made of it, `depth` steps in both directions; 0 is DEPTH_MAX.

        The name of the thing has been checked. Raises InvalidValue, NotFound.
        """
        if depth > DEPTH_MAX:
            raise InvalidValue("depth", f"is more than {DEPTH_MAX}")
        return await self._uses.graph(thing, depth or DEPTH_MAX)

    async def declare(self, user: Thing, used: Sequence[Thing]) -> None:
        """Says what a model version or deployment uses, instead of what was said before; nothing: it is gone.

        Raises InvalidValue, NotFound for what is used and does not exist, FailedPrecondition when something that
        still has users shall be gone.
        """
        _check_versioned(user, "user")
        if user.kind not in DECLARED:
            raise InvalidValue("user.kind", f"is {user.kind.words}; models and deployments are declared")
        if len(used) > USED_MAX:
            raise InvalidValue("used", f"are {len(used)}, more than {USED_MAX}")
        for index, thing in enumerate(used):
            where = f"used[{index}]"
            _check_versioned(thing, where)
            if thing.kind not in USABLE:
                raise InvalidValue(f"{where}.kind", f"is {thing.kind.words}; views, datasets and models can be used")
            if thing == user:
                raise InvalidValue(where, "is the user itself")
        if len(set(used)) != len(used):
            raise InvalidValue("used", "names the same thing twice")
        await self._uses.declare(user, used)


def _check_versioned(thing: Thing, where: str) -> None:
    if thing.kind in VERSIONED and not thing.version:
        raise InvalidValue(f"{where}.version", "is required: another one may be the latest tomorrow")
