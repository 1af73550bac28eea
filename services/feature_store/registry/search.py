"""Finding groups, views and features by words."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from foresight.values import FeatureGroup, FeatureView, Field, InvalidValue, check_name
from foresight.values.features import OWNER_BYTES_MAX, TAG_BYTES_MAX, TAGS_MAX
from foresight.values.names import check_text
from services.feature_store.groups import Reference

QUERY_BYTES_MAX = 255
RESULTS_MAX = 1_000
RESULTS_DEFAULT = 100
# Things whose words are looked at one by one; a query that finds more of them finds the first by name.
CANDIDATES_MAX = 10_000


class FoundKind(enum.IntEnum):
    """What was found; the numbers are those of the wire enum."""

    GROUP = 1
    VIEW = 2
    FEATURE = 3


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for: words that all occur, in any case, and tags and an owner that things have."""

    text: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""
    include_deprecated: bool = False
    limit: int = RESULTS_DEFAULT

    def __post_init__(self) -> None:
        check_text(self.text, "query", QUERY_BYTES_MAX)
        check_text(self.owner, "owner", OWNER_BYTES_MAX)
        if len(self.tags) > TAGS_MAX:
            raise InvalidValue("tags", f"are more than {TAGS_MAX}")
        for key, value in self.tags.items():
            check_name(key, "tags", reserved=True)
            check_text(value, "tags", TAG_BYTES_MAX)
        if not 1 <= self.limit <= RESULTS_MAX:
            raise InvalidValue("limit", f"is not 1 to {RESULTS_MAX}")

    @property
    def words(self) -> list[str]:
        """The words, in one case."""
        return self.text.casefold().split()


@dataclass(frozen=True, slots=True)
class Found:
    """A group, a view (its latest version), or a feature of a group."""

    kind: FoundKind
    thing: Reference
    feature: str
    description: str
    owner: str
    deprecation: str


def results(query: Query, groups: Iterable[FeatureGroup], views: Iterable[FeatureView]) -> list[Found]:
    """The groups and views, which the query finds, and the features among theirs that it finds: names that start with
    the query first, then by name; at most `query.limit`."""
    found: list[Found] = []
    for group in groups:
        found.append(_found(FoundKind.GROUP, group))
        found += [_found(FoundKind.FEATURE, group, f) for f in _features(query.words, group)]
    found += [_found(FoundKind.VIEW, view) for view in views]
    start = query.text.casefold().strip()

    def rank(one: Found) -> tuple[bool, str, int, str]:
        name = one.feature or one.thing.name
        return not name.startswith(start), name, one.kind, one.thing.name

    return sorted(found, key=rank)[: query.limit]


def _features(words: Sequence[str], group: FeatureGroup) -> list[Field]:
    """Features whose own texts, with the name of the group, have all words; the group's name alone is not enough."""
    taken: list[Field] = []
    if group.derived:
        # They repeat the features of views.
        return taken
    for f in group.features:
        own = f"{f.name}\n{f.description}".casefold()
        mine = [word in own for word in words]
        if not words or (any(mine) and all(m or w in group.name for m, w in zip(mine, words, strict=True))):
            taken.append(f)
    return taken


def _found(kind: FoundKind, thing: FeatureGroup | FeatureView, feature: Field | None = None) -> Found:
    return Found(
        kind=kind,
        thing=Reference(thing.name, thing.version),
        feature="" if feature is None else feature.name,
        description=thing.description if feature is None else feature.description,
        owner=thing.owner,
        deprecation=thing.deprecation,
    )
