"""Writing features: a table becomes one commit, visible offline and online when the call answers."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import pyarrow as pa

from foresight.values import FeatureGroup, InvalidValue
from foresight.values.names import check_text
from services.feature_store.applier import Applier
from services.feature_store.commits import Commit, StagedRows
from services.feature_store.content import content_sha256
from services.feature_store.groups import Reference
from services.feature_store.metrics import FeatureStoreMetrics
from services.feature_store.registry import Registry
from services.feature_store.row_tables import check_rows
from services.feature_store.transit import is_small
from services.runtime.clock import Clock
from services.runtime.errors import PermissionDenied
from services.runtime.identity import LOCAL
from services.runtime.threads import in_thread_unless

WRITE_ID_BYTES_MAX = 128
APPLIED_TIMEOUT_S = 10.0
PRIVILEGED_PREFIX = "spiffe://foresight/operator/"


class Commits(Protocol):
    """Publishes rows."""

    async def write(self, staged: StagedRows, write_id: str = "", content: str = "") -> Commit:
        """Publishes rows as one commit; idempotent with a write id. Raises AlreadyExists, LimitExceeded."""
        ...


class FeatureWrites:
    """Writes rows of groups."""

    def __init__(
        self, registry: Registry, commits: Commits, applier: Applier, clock: Clock, metrics: FeatureStoreMetrics
    ) -> None:
        self._registry = registry
        self._commits = commits
        self._applier = applier
        self._clock = clock
        self._metrics = metrics

    async def write(self, reference: Reference, write_id: str, table: pa.Table, caller: str) -> Commit:
        """Publishes a table as one commit; returns when offline and online reads see it.

        Raises NotFound, InvalidValue with every fault, OutOfRange, LimitExceeded, AlreadyExists for a write id with
        other rows, PermissionDenied for `known_at` of a caller who may not assert it, Unavailable when the commit is
        published but the online store does not follow.
        """
        if write_id:
            check_text(write_id, "header.write_id", WRITE_ID_BYTES_MAX)
        if "known_at" in table.column_names and caller != LOCAL and not caller.startswith(PRIVILEGED_PREFIX):
            raise PermissionDenied("known_at may be given by operators only")
        stored = await self._registry.group(reference)
        if stored.group.derived:
            raise InvalidValue("header.group", "is filled by reingestion only")
        rows, content = await in_thread_unless(
            is_small(table), _checked, table, stored.group, self._clock(), bool(write_id)
        )
        staged = StagedRows(stored, rows)
        commit = await self._commits.write(staged, write_id, content)
        if not commit.duplicate:
            self._applier.hand_over(commit, staged)
            self._metrics.commits.inc()
            self._metrics.rows_written.inc(commit.rows)
        await self._applier.applied(commit.number, APPLIED_TIMEOUT_S)
        return commit


def _checked(table: pa.Table, group: FeatureGroup, now: datetime, digested: bool) -> tuple[pa.Table, str]:
    """The rows as they can be stored, and the digest of their content where it is wanted."""
    rows = check_rows(table, group, now)
    return rows, content_sha256(rows) if digested else ""
