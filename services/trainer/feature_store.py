"""What the trainer needs of the feature store, as protocols; `feature_store_client.py` speaks to the real one."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from foresight.values import FeatureView, Field
from services.trainer.models import VersionRef


@dataclass(frozen=True, slots=True)
class DatasetManifest:
    """What the trainer uses of a training dataset's manifest; `features` are the view's, in order."""

    id: str
    view: VersionRef
    features: tuple[Field, ...]
    label: Field


class ThingKind(enum.Enum):
    """Kinds of things in the lineage that the trainer makes, or makes things of; named as on the wire."""

    FEATURE_VIEW = "feature view"
    TRAINING_DATASET = "training dataset"
    MODEL = "model"
    DEPLOYMENT = "deployment"


@dataclass(frozen=True, slots=True)
class Thing:
    """A thing with lineage; `version` is 0 for kinds without versions."""

    kind: ThingKind
    name: str
    version: int = 0


class Uses(Protocol):
    """Keeps who uses what: what is used cannot be dropped."""

    async def declare(self, user: Thing, used: Sequence[Thing]) -> None:
        """Says what a thing uses, instead of what was said before; nothing: it is gone.

        Raises NotFound for what is used and does not exist, Unavailable.
        """
        ...


class FeatureStore(Uses, Protocol):
    """Reads of the feature store. Each raises NotFound, FailedPrecondition, ... as the store says, LimitExceeded for
    a table that is too large, and Unavailable when the store does not answer."""

    async def manifest(self, dataset_id: str) -> DatasetManifest:
        """Describes a training dataset."""
        ...

    async def dataset(self, dataset_id: str, split: str) -> pa.Table:
        """Rows of a training dataset: keys, event time, features, label, split. '' means all rows."""
        ...

    async def view(self, view: VersionRef) -> FeatureView:
        """A view version as registered."""
        ...

    async def latest_rows(self, group: VersionRef, start: datetime, end: datetime) -> pa.Table:
        """The latest row per key of a group with `start` <= event time < `end`: keys, event_time, features, ..."""
        ...

    async def as_of(self, view: VersionRef, spine: pa.Table) -> pa.Table:
        """The spine's columns, then the view's features, one row per spine row in its order."""
        ...
