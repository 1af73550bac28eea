"""Reading the visible rows of groups."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from foresight.tables import arrow_type
from foresight.values import Column, FeatureGroup
from services.feature_store.groups import StoredGroup
from services.feature_store.tables.conformance import UTC_MICROS


@dataclass(frozen=True, slots=True)
class EventTimes:
    """A range of event times: from `first` on, and before `end` (or up to it, when `inclusive`). None: no bound."""

    first: datetime | None = None
    end: datetime | None = None
    inclusive: bool = False


ALL_TIMES = EventTimes()


@dataclass(frozen=True, slots=True)
class BatchStream:
    """A result that arrives in batches. `next_batch` blocks, and answers None at the end."""

    schema: pa.Schema
    next_batch: Callable[[], pa.RecordBatch | None]


def history_schema(group: FeatureGroup, features: Sequence[str]) -> pa.Schema:
    """Schema of the rows that a join chooses from."""
    types = {f.name: arrow_type(f) for f in group.fields}
    fields = [(key.name, types[key.name]) for key in group.entity_keys]
    fields += [("event_time", UTC_MICROS), ("known_at", UTC_MICROS), ("commit", pa.int64()), ("deleted", pa.bool_())]
    return pa.schema([*fields, *((name, types[name]) for name in features)])


class Histories(Protocol):
    """All versions of the rows of groups, tombstones and corrections among them.

    Every answer has the columns of `history_schema`, of commits up to `watermark`, in any order.
    """

    async def history_within(
        self,
        stored: StoredGroup,
        features: Sequence[str],
        watermark: int,
        times: EventTimes,
        *,
        rows_max: int,
        bytes_max: int,
        keys: tuple[Column, ...] = (),
    ) -> pa.Table | None:
        """The rows in memory; None when they are more. `keys`: only of these, in the order of the group's; () for all.

        Keys may be left unheeded.
        """
        ...

    def history_stream(
        self, stored: StoredGroup, features: Sequence[str], watermark: int, times: EventTimes
    ) -> contextlib.AbstractAsyncContextManager[BatchStream]:
        """The rows batch by batch."""
        ...

    async def size_bytes(self, stored: StoredGroup) -> int:
        """About how much there is to read for all rows of a group, as it was lately."""
        ...

    async def count(self, stored: StoredGroup, watermark: int) -> int:
        """The rows of a group."""
        ...
