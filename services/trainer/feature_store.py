"""What the trainer needs of the feature store, as a protocol; `feature_store_client.py` speaks to the real one."""

from __future__ import annotations

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


class FeatureStore(Protocol):
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
