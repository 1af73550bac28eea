"""Training datasets as values: what they are asked for, and the manifest that describes one for good."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from foresight.values import Field, InvalidValue, check_name
from foresight.values.instants import instant_from_micros, micros_from_instant
from services.feature_store.groups import Reference
from services.feature_store.specs import dump_field, load_field

TRAIN, TEST = "train", "test"


@dataclass(frozen=True, slots=True)
class LoggedSelection:
    """Logged predictions with event_time in [from, to) and outcomes with observed_at <= observed_by."""

    to_event_time: datetime
    observed_by: datetime
    from_event_time: datetime | None = None
    deployment: str = ""

    def __post_init__(self) -> None:
        if self.deployment:
            check_name(self.deployment, "header.logged.deployment")
        if self.from_event_time is not None and self.from_event_time >= self.to_event_time:
            raise InvalidValue("header.logged.from_event_time", "is not before to_event_time")


@dataclass(frozen=True, slots=True)
class DatasetRequest:
    """What a training dataset is made of; `logged` instead of a spine."""

    name: str
    view: Reference
    known_by: bool = False
    commit: int = 0
    test_from: datetime | None = None
    logged: LoggedSelection | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "header.name")
        if self.known_by and self.logged is not None:
            raise InvalidValue("header.known_by", "does not go with logged predictions, which were made by then")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A training dataset: with the commits that it names enough to create it again."""

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
    created_at: datetime
    features: tuple[Field, ...]
    label: Field
    transforms: tuple[tuple[str, str], ...]
    test_from: datetime | None = None
    logged: LoggedSelection | None = None


def dump_manifest(manifest: Manifest) -> str:
    """A manifest as JSON; instants are microseconds since the epoch."""
    logged = manifest.logged
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
            "created_at_us": micros_from_instant(manifest.created_at),
            "features": [dump_field(f) for f in manifest.features],
            "label": dump_field(manifest.label),
            "transforms": manifest.transforms,
            "test_from_us": _dump_instant(manifest.test_from),
            "logged": None
            if logged is None
            else {
                "deployment": logged.deployment,
                "from_event_time_us": _dump_instant(logged.from_event_time),
                "to_event_time_us": _dump_instant(logged.to_event_time),
                "observed_by_us": _dump_instant(logged.observed_by),
            },
        }
    )


def load_manifest(text: str) -> Manifest:
    """The manifest of its JSON."""
    content = json.loads(text)
    logged = content["logged"]
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
        created_at=instant_from_micros(content["created_at_us"]),
        features=tuple(load_field(f) for f in content["features"]),
        label=load_field(content["label"]),
        transforms=tuple((function, sha256) for function, sha256 in content["transforms"]),
        test_from=_load_instant(content["test_from_us"]),
        logged=None
        if logged is None
        else LoggedSelection(
            deployment=logged["deployment"],
            from_event_time=_load_instant(logged["from_event_time_us"]),
            to_event_time=instant_from_micros(logged["to_event_time_us"]),
            observed_by=instant_from_micros(logged["observed_by_us"]),
        ),
    )


def _dump_reference(reference: Reference) -> list[object]:
    return [reference.name, reference.version]


def _dump_instant(instant: datetime | None) -> int | None:
    return None if instant is None else micros_from_instant(instant)


def _load_instant(micros: int | None) -> datetime | None:
    return None if micros is None else instant_from_micros(micros)
