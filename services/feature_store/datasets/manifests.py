"""Training datasets as values: what they are asked for, and the manifest that describes one for good.

A manifest's text holds what never changes; whether its rows are stored, in how many bytes, and whether an entity in
them was forgotten may change and are kept beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from foresight.values import Field, InvalidValue, check_name
from foresight.values.instants import instant_from_micros, micros_from_instant
from services.feature_store.datasets.splits import HashSplit, SplitRule, TimeSplit
from services.feature_store.groups import Reference
from services.feature_store.reads.queries import SpineQuery, dump_spine_query, load_spine_query
from services.feature_store.registry.specs import dump_field, load_field


@dataclass(frozen=True, slots=True)
class LoggedSelection:
    """Logged predictions with event_time in [from, to) and outcomes with observed_at <= observed_by; those that
    shadows made only when `shadows` says so, those made without the feature store only when `degraded` does."""

    to_event_time: datetime
    observed_by: datetime
    from_event_time: datetime | None = None
    deployment: str = ""
    shadows: bool = False
    degraded: bool = False

    def __post_init__(self) -> None:
        if self.deployment:
            check_name(self.deployment, "header.logged.deployment")
        if self.from_event_time is not None and self.from_event_time >= self.to_event_time:
            raise InvalidValue("header.logged.from_event_time", "is not before to_event_time")


@dataclass(frozen=True, slots=True)
class DatasetRequest:
    """What a training dataset is made of: `logged` or `spine` where no spine is sent."""

    name: str
    view: Reference
    known_by: bool = False
    commit: int = 0
    as_of_time: datetime | None = None
    split: SplitRule | None = None
    logged: LoggedSelection | None = None
    spine: SpineQuery | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "header.name")
        if self.known_by and self.logged is not None:
            raise InvalidValue("header.known_by", "does not go with logged predictions, which were made by then")
        if self.spine is not None and self.logged is not None:
            raise InvalidValue("header.spine", "does not go with logged predictions, which are a spine themselves")
        if self.commit and self.as_of_time is not None:
            raise InvalidValue("header.as_of_time", "does not go with commit; give one of them")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A training dataset: with the commits that it names enough to create it again.

    `max_ages_us` and `groups` are in the order of the view's sources; None: no maximum age. `stored`, `stored_bytes`
    and `forgotten_at` say how it is now.
    """

    id: str
    name: str
    view: Reference
    commit: int
    known_by: bool
    rows: int
    splits: tuple[tuple[str, int], ...]
    content_sha256: str
    spine_sha256: str
    groups: tuple[Reference, ...]
    max_ages_us: tuple[int | None, ...]
    created_at: datetime
    features: tuple[Field, ...]
    label: Field
    transforms: tuple[tuple[str, str], ...]
    split: SplitRule | None = None
    logged: LoggedSelection | None = None
    spine: SpineQuery | None = None
    stored: bool = True
    stored_bytes: int = 0
    forgotten_at: datetime | None = None

    def rows_of(self, split: str) -> int:
        """Rows of a split; '' for all."""
        return dict(self.splits).get(split, 0) if split else self.rows


@dataclass(frozen=True, slots=True)
class ManifestFilter:
    """Which manifests are wanted: of a name, of a view (version 0: of any), not of what was forgotten."""

    name: str = ""
    view: Reference | None = None
    remembered: bool = False


@dataclass(frozen=True, slots=True)
class ManifestPlace:
    """Where a manifest stands in the order of all."""

    created_at: datetime
    id: str

    @classmethod
    def of(cls, manifest: Manifest) -> ManifestPlace:
        """The place of a manifest."""
        return cls(manifest.created_at, manifest.id)


def dump_manifest(manifest: Manifest) -> str:
    """What never changes of a manifest, as JSON; instants are microseconds since the epoch."""
    return json.dumps(
        {
            "id": manifest.id,
            "name": manifest.name,
            "view": _dump_reference(manifest.view),
            "commit": manifest.commit,
            "known_by": manifest.known_by,
            "rows": manifest.rows,
            "splits": manifest.splits,
            "content_sha256": manifest.content_sha256,
            "spine_sha256": manifest.spine_sha256,
            "groups": [_dump_reference(group) for group in manifest.groups],
            "max_ages_us": manifest.max_ages_us,
            "created_at_us": micros_from_instant(manifest.created_at),
            "features": [dump_field(f) for f in manifest.features],
            "label": dump_field(manifest.label),
            "transforms": manifest.transforms,
            "split": _dump_split(manifest.split),
            "logged": _dump_logged(manifest.logged),
            "spine": None if manifest.spine is None else json.loads(dump_spine_query(manifest.spine)),
        }
    )


def load_manifest(text: str, *, stored: bool, stored_bytes: int, forgotten_at: datetime | None) -> Manifest:
    """The manifest of its JSON, as it is now."""
    content = json.loads(text)
    return Manifest(
        id=content["id"],
        name=content["name"],
        view=Reference(*content["view"]),
        commit=content["commit"],
        known_by=content["known_by"],
        rows=content["rows"],
        splits=tuple((name, rows) for name, rows in content["splits"]),
        content_sha256=content["content_sha256"],
        spine_sha256=content["spine_sha256"],
        groups=tuple(Reference(*group) for group in content["groups"]),
        max_ages_us=tuple(content["max_ages_us"]),
        created_at=instant_from_micros(content["created_at_us"]),
        features=tuple(load_field(f) for f in content["features"]),
        label=load_field(content["label"]),
        transforms=tuple((function, sha256) for function, sha256 in content["transforms"]),
        split=_load_split(content["split"]),
        logged=_load_logged(content["logged"]),
        spine=None if content["spine"] is None else load_spine_query(json.dumps(content["spine"])),
        stored=stored,
        stored_bytes=stored_bytes,
        forgotten_at=forgotten_at,
    )


def _dump_split(rule: SplitRule | None) -> dict[str, Any] | None:
    if isinstance(rule, TimeSplit):
        return {
            "test_from_us": _dump_instant(rule.test_from),
            "validation_from_us": _dump_instant(rule.validation_from),
        }
    if isinstance(rule, HashSplit):
        # JSON floats keep every bit.
        return {
            "seed": rule.seed,
            "test_share": rule.test_share,
            "validation_share": rule.validation_share,
            "keys": rule.keys,
        }
    return None


def _load_split(content: Mapping[str, Any] | None) -> SplitRule | None:
    if content is None:
        return None
    if "seed" in content:
        return HashSplit(content["seed"], content["test_share"], content["validation_share"], tuple(content["keys"]))
    return TimeSplit(instant_from_micros(content["test_from_us"]), _load_instant(content["validation_from_us"]))


def _dump_logged(logged: LoggedSelection | None) -> dict[str, Any] | None:
    if logged is None:
        return None
    return {
        "deployment": logged.deployment,
        "from_event_time_us": _dump_instant(logged.from_event_time),
        "to_event_time_us": _dump_instant(logged.to_event_time),
        "observed_by_us": _dump_instant(logged.observed_by),
        # Absent where it is absent from manifests that are older than shadows.
        **({"shadows": True} if logged.shadows else {}),
        **({"degraded": True} if logged.degraded else {}),
    }


def _load_logged(content: Mapping[str, Any] | None) -> LoggedSelection | None:
    if content is None:
        return None
    return LoggedSelection(
        deployment=content["deployment"],
        from_event_time=_load_instant(content["from_event_time_us"]),
        to_event_time=instant_from_micros(content["to_event_time_us"]),
        observed_by=instant_from_micros(content["observed_by_us"]),
        shadows=content.get("shadows", False),
        degraded=content.get("degraded", False),
    )


def _dump_reference(reference: Reference) -> list[object]:
    return [reference.name, reference.version]


def _dump_instant(instant: datetime | None) -> int | None:
    return None if instant is None else micros_from_instant(instant)


def _load_instant(micros: int | None) -> datetime | None:
    return None if micros is None else instant_from_micros(micros)
