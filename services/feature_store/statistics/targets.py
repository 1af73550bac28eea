"""Whose statistics are asked for, and what is described once versions and commits are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, TypeAlias

from foresight.values import FeatureGroup, InvalidValue, check_name
from foresight.values.instants import micros_from_instant
from services.feature_store.datasets.splits import SPLITS
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.reads.histories import EventTimes

Kind: TypeAlias = Literal["commit", "latest", "dataset", "log"]


@dataclass(frozen=True, slots=True)
class CommitRows:
    """Rows of one commit of a group, without tombstones; commit 0: the group's last one."""

    group: Reference
    commit: int = 0


@dataclass(frozen=True, slots=True)
class LatestRows:
    """The latest row per key of a group, without tombstones, from commits up to one; 0: from all."""

    group: Reference
    commit: int = 0


@dataclass(frozen=True, slots=True)
class DatasetRows:
    """Rows of a training dataset; split '': all."""

    dataset_id: str
    split: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.dataset_id) <= 64 or not self.dataset_id.isascii() or not self.dataset_id.isprintable():
            raise InvalidValue("dataset_id", "is not the id of a training dataset")
        if self.split and self.split not in SPLITS:
            raise InvalidValue("split", f"is not {', '.join(SPLITS)} or empty")


@dataclass(frozen=True, slots=True)
class LogWindow:
    """Reingested predictions of a view version with `from_event_time <= event time < to_event_time`."""

    view: Reference
    to_event_time: datetime
    from_event_time: datetime | None = None
    deployment: str = ""

    def __post_init__(self) -> None:
        if self.deployment:
            check_name(self.deployment, "deployment")
        if self.from_event_time is not None and self.from_event_time >= self.to_event_time:
            raise InvalidValue("from_event_time", "is not before to_event_time")

    @property
    def times(self) -> EventTimes:
        """The range of event times."""
        return EventTimes(self.from_event_time, self.to_event_time)


Target: TypeAlias = CommitRows | LatestRows | DatasetRows | LogWindow


@dataclass(frozen=True, slots=True)
class Subject:
    """Rows that never change: a target whose versions and commits are known.

    `group` None for datasets. `commit` is the commit itself, or the last one of the group that counts. `selection`
    tells subjects apart that agree in all else.
    """

    target: Target
    kind: Kind
    group: StoredGroup | None = None
    dataset_id: str = ""
    commit: int = 0
    selection: str = ""

    @property
    def columns(self) -> frozenset[str]:
        """Names of columns that its statistics must have; none are known of datasets."""
        if self.group is None:
            return frozenset()
        return frozenset(described_columns(self.group.group))


def subject_of_commit(group: StoredGroup, commit: int) -> Subject:
    """The rows of a commit of a group."""
    reference = Reference(group.group.name, group.group.version)
    return Subject(CommitRows(reference, commit), "commit", group, commit=commit)


def subject_of_latest(group: StoredGroup, commit: int) -> Subject:
    """The latest rows as of a commit of the group."""
    reference = Reference(group.group.name, group.group.version)
    return Subject(LatestRows(reference, commit), "latest", group, commit=commit)


def subject_of_dataset(target: DatasetRows) -> Subject:
    """The rows of a split of a dataset."""
    return Subject(target, "dataset", dataset_id=target.dataset_id, selection=target.split)


def subject_of_log(target: LogWindow, view_version: int, group: StoredGroup, commit: int) -> Subject:
    """A window of the log as it was reingested by a commit."""
    pinned = replace(target, view=Reference(target.view.name, view_version))
    first = "" if target.from_event_time is None else micros_from_instant(target.from_event_time)
    selection = f"{first}/{micros_from_instant(target.to_event_time)}/{target.deployment}"
    return Subject(pinned, "log", group, commit=commit, selection=selection)


def described_columns(group: FeatureGroup) -> tuple[str, ...]:
    """The columns of a group that are described: keys, `event_time`, features."""
    return (*(f.name for f in group.entity_keys), "event_time", *(f.name for f in group.features))
