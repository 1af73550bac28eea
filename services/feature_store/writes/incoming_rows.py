"""The rows of a write on their way into a commit: checked, sorted out and digested in one pass, batch by batch.

Few rows are checked at once, before anything is asked of the database. Many are checked while those before them are
copied, unseen; `finish` then says whether the commit may be published. Nothing here depends on how the rows are cut.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foresight.values import FailurePolicy, Field
from services.feature_store.commits import AcceptedRows
from services.feature_store.groups import StoredGroup
from services.feature_store.tables.conformance import Unfit
from services.feature_store.tables.content import ContentDigest
from services.feature_store.tables.repeats import Columns, RepeatedHashes, counted, row_hashes
from services.feature_store.tables.row_source import RowSource, TableRows
from services.feature_store.tables.workspace import Workspace
from services.feature_store.writes.expectations import ExpectationCheck
from services.feature_store.writes.row_tables import EVENT_TIME, RowCheck

BROKEN = pa.field("broken", pa.list_(pa.string()))


class WriteAbandoned(Exception):
    """Whoever wrote the rows has gone; nothing of them is wanted."""


class IncomingRows:
    """The rows of one write. Close it when nobody reads them any more; its methods block."""

    def __init__(
        self,
        stored: StoredGroup,
        source: RowSource,
        now: datetime,
        workspace: Workspace,
        *,
        digested: bool,
        may_be_empty: bool = False,
    ) -> None:
        """`digested`: the digest of the content is wanted. `may_be_empty`: a write without rows makes sense."""
        group = stored.group
        self._source = source
        self._check = RowCheck(group, source.schema, now)
        self._expectations = ExpectationCheck(group, now, self._pieces, workspace) if group.expectations else None
        self._quarantines = group.failure_policy is FailurePolicy.QUARANTINE
        self._key = (*group.entity_keys, EVENT_TIME)
        self._hashes = RepeatedHashes(workspace)
        self._digest = ContentDigest(self._check.schema) if digested else None
        self._apart = workspace.gathered()
        # Which rows of a batch are kept apart, by the number of the batch.
        self._apart_of: dict[int, np.ndarray[tuple[int], np.dtype[np.bool_]]] = {}
        self._may_be_empty = may_be_empty
        self._accepted_rows = 0
        self._unfit = False
        self._checked: list[pa.RecordBatch] | None = None
        self._outcome: AcceptedRows | None = None
        self._abandoned = threading.Event()

    @property
    def schema(self) -> pa.Schema:
        """See RowsToWrite."""
        return self._check.schema

    @property
    def ready(self) -> bool:
        """See RowsToWrite."""
        return self._checked is not None

    @property
    def in_memory(self) -> bool:
        """Whether nothing is on disk that `close` has to remove."""
        return not (self._apart.in_file or self._hashes.in_file)

    def check_all(self) -> None:
        """Checks the rows now, keeping them in memory: for those that are few.

        Raises what `finish` raises, but for expectations: rows that were fresh when they were first written under a
        write id may be repeated at any time.
        """
        self._checked = list(self._pass())
        self._outcome = self._settled()

    def accepted(self) -> Iterator[pa.RecordBatch]:
        """See RowsToWrite."""
        return iter(self._checked) if self._checked is not None else self._pass()

    def finish(self) -> AcceptedRows:
        """See RowsToWrite. Raises InvalidValue, ExpectationsBroken, OutOfRange, LimitExceeded, WriteAbandoned."""
        if self._outcome is None:
            self._outcome = self._settled()
        if self._expectations is not None and not self._quarantines:
            self._expectations.refuse()
        return self._outcome

    def content(self) -> str:
        """See RowsToWrite."""
        if self._outcome is not None:
            return self._outcome.content
        digest = ContentDigest(self._check.schema)
        for batch in self._source.batches():
            checked = self._checked_batch(batch)
            if checked is not None:
                digest.update(checked)
        self._check.finish()
        return digest.hexdigest()

    def stored_rows(self) -> RowSource:
        """The rows that were accepted, for those who need them again while this is open."""
        assert self._outcome is not None
        if self._checked is not None:
            return TableRows(pa.Table.from_batches(self._checked, self.schema))
        return _AcceptedAgain(self._source, self._check, self._apart_of, self._outcome.rows)

    def abandon(self) -> None:
        """Makes whoever takes the rows stop soon."""
        self._abandoned.set()

    def close(self) -> None:
        """Gives back memory and disk."""
        self._hashes.close()
        self._apart.forget()

    def _pass(self) -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(self._source.batches()):
            checked = self._checked_batch(batch)
            if checked is None:
                self._unfit = True
                continue
            if not self._unfit:
                self._hashes.add(row_hashes([checked.column(field.name) for field in self._key]))
            if self._digest is not None:
                self._digest.update(checked)
            checked = self._sorted_out(checked, number)
            self._accepted_rows += checked.num_rows
            if checked.num_rows and not self._refused():
                yield checked

    def _checked_batch(self, batch: pa.RecordBatch) -> pa.RecordBatch | None:
        if self._abandoned.is_set():
            raise WriteAbandoned
        return self._check.checked(batch)

    def _refused(self) -> bool:
        """Whether it is clear already that nothing may be written."""
        return self._check.failed or (
            not self._quarantines and self._expectations is not None and bool(self._expectations.broken)
        )

    def _sorted_out(self, batch: pa.RecordBatch, number: int) -> pa.RecordBatch:
        """The rows that are not kept apart."""
        masks = self._expectations.check(batch) if self._expectations is not None else None
        if masks is None or not self._quarantines:
            return batch
        assert self._expectations is not None
        broken = np.logical_or.reduce(masks)
        self._apart_of[number] = broken
        columns = [*batch.filter(pa.array(broken)).columns, self._expectations.names_of(masks)]
        self._apart.add(pa.RecordBatch.from_arrays(columns, schema=self.schema.append(BROKEN)))
        return batch.filter(pa.array(~broken))

    def _settled(self) -> AcceptedRows:
        if not self._source.num_rows and not self._may_be_empty:
            self._check.add("arrow", "has no rows")
        if not self._unfit:
            self._check_unique()
        self._check.finish()
        expectations = self._expectations
        apart = self._apart.rows(self.schema.append(BROKEN)) if self._apart.num_rows else None
        return AcceptedRows(
            rows=self._accepted_rows,
            latest_event_time=self._check.latest_event_time,
            content=self._digest.hexdigest() if self._digest is not None else "",
            known_at_asserted="known_at" in self.schema.names,
            held=expectations.held if expectations is not None else (),
            broken=expectations.broken if expectations is not None else (),
            quarantined=apart,
        )

    def _check_unique(self) -> None:
        """One write says one thing about a key at a time; equal rows are refused too: dropping one would be silent."""
        hashes = self._hashes.found()
        seen = 0
        for some in counted(self._keys, hashes):
            seen += len(some)
            again = [key for key, count in some.items() if count > 1]
            if again:
                sample = dict(zip((field.name for field in self._key), again[0], strict=True))
                sample["event_time"] = sample["event_time"].isoformat()
                named = ", ".join(f"{name} {ascii(value)[:60]}" for name, value in sample.items())
                few = "" if seen >= len(hashes) else "at least "
                self._check.add("arrow", f"has {few}{len(again)} keys and event times more than once, such as {named}")
                return

    def _keys(self) -> Iterator[Columns]:
        for batch in self._source.batches():
            yield [self._check.column(batch, field) for field in self._key]

    def _pieces(self, field: Field) -> Iterator[pa.RecordBatch]:
        """One column of all rows, and `deleted` where it was sent; batches that do not fit are left out."""
        # The event time says how many rows there are where neither was sent.
        names = [n for n in (field.name, "deleted") if n in self.schema.names] or [EVENT_TIME.name]
        fields = {f.name: f for f in self._check.fields if f.name in names}
        for batch in self._source.batches():
            with contextlib.suppress(Unfit):
                columns = [self._check.column(batch, fields[name]) for name in names]
                columns = [c.fill_null(False) if n == "deleted" else c for n, c in zip(names, columns, strict=True)]
                yield pa.RecordBatch.from_arrays(columns, names=names)


class _AcceptedAgain:
    """The accepted rows of a source, checked before: typed as they are read."""

    def __init__(
        self,
        source: RowSource,
        check: RowCheck,
        apart_of: dict[int, np.ndarray[tuple[int], np.dtype[np.bool_]]],
        num_rows: int,
    ) -> None:
        self._source = source
        self._check = check
        self._apart_of = apart_of
        self._num_rows = num_rows

    @property
    def schema(self) -> pa.Schema:
        return self._check.schema

    @property
    def num_rows(self) -> int:
        return self._num_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(self._source.batches()):
            rows = self._check.typed(batch)
            if number in self._apart_of:
                rows = rows.filter(pc.invert(pa.array(self._apart_of[number])))
            if rows.num_rows:
                yield rows
