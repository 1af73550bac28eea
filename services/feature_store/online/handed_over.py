"""Rows of commits that this process just published, for its applier, which need not read them again then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from foresight.tables import arrow_type
from foresight.values import FeatureGroup, Field
from services.feature_store.commits import Commit, StagedRows
from services.feature_store.groups import StoredGroup
from services.feature_store.online.store import CommittedRows
from services.feature_store.tables.row_source import RowSource, TableRows

# What is held at most, all together; the rest is read from the database.
COMMITS_MAX = 64
TABLE_ROWS_MAX = 1_000_000


class HandedOver:
    """The rows at hand, by commit; None for a commit that has no rows for the online store."""

    def __init__(self) -> None:
        self._commits: dict[int, CommittedRows | None] = {}
        # Rows in memory, by commit.
        self._in_memory: dict[int, int] = {}

    def __contains__(self, commit: int) -> bool:
        return commit in self._commits

    def __bool__(self) -> bool:
        return bool(self._commits)

    def add(self, commit: Commit, staged: StagedRows) -> None:
        """Takes the rows of a commit, if there is room."""
        source = staged.rows if not isinstance(staged.rows, pa.Table) else TableRows(staged.rows)
        in_memory = source.num_rows if isinstance(source, TableRows) else 0
        if sum(self._in_memory.values()) + in_memory > TABLE_ROWS_MAX or len(self._commits) >= COMMITS_MAX:
            return
        self._in_memory[commit.number] = in_memory
        self._commits[commit.number] = CommittedRows(staged.group, _Published(staged.group, source, commit.number))

    def add_without_rows(self, commits: Sequence[Commit]) -> None:
        """Takes commits without rows for the online store."""
        for commit in commits[: COMMITS_MAX - len(self._commits)]:
            self._commits[commit.number] = None

    def rows(self, commit: int) -> list[CommittedRows]:
        """The rows of a commit that is at hand: of one group, or none."""
        rows = self._commits[commit]
        return [] if rows is None else [rows]

    def drop_until(self, applied: int) -> None:
        """Lets go of the commits up to one."""
        for number in [number for number in self._commits if number <= applied]:
            del self._commits[number]
            self._in_memory.pop(number, None)

    def clear(self) -> None:
        """Lets go of everything: the database is to be asked."""
        self._commits.clear()
        self._in_memory.clear()


@dataclass(frozen=True, slots=True, eq=False)
class _Published:
    """Staged rows with all columns of the group, `deleted` and `commit`."""

    group: StoredGroup
    staged: RowSource
    commit: int

    @property
    def schema(self) -> pa.Schema:
        """See RowSource."""
        return next(self.batches()).schema if self.num_rows else pa.schema([])

    @property
    def num_rows(self) -> int:
        """See RowSource."""
        return self.staged.num_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See RowSource."""
        return map(self._completed, self.staged.batches())

    def _completed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        n, group = batch.num_rows, self.group.group
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        columns["commit"] = pa.array(np.full(n, self.commit, np.int64))
        if "deleted" not in columns:
            columns["deleted"] = pa.array(np.zeros(n, np.bool_))
        for field in group.features:
            if field.name not in columns:
                columns[field.name] = _left_out(group, field, n)
        return pa.record_batch(list(columns.values()), names=list(columns))


def _left_out(group: FeatureGroup, field: Field, n: int) -> pa.Array:
    """What the offline rows have where a write leaves a feature out: its default, or NULL."""
    default = group.defaults.get(field.name)
    if default is None or not default.is_valid(0):
        return pa.nulls(n, arrow_type(field))
    return pa.array(default.to_list() * n, arrow_type(field))
