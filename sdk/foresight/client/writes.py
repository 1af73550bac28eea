"""Writing rows of groups, and reading those that broke expectations and were kept apart."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from foresight.client.connection import READ_S, Calls, Connection
from foresight.client.errors import InvalidArgument
from foresight.client.frames import DELETED, EVENT_TIME, KNOWN_AT, Output, Progress, from_table, read_table
from foresight.client.uploads import RowUpload
from foresight.feature_store.v1 import offline_pb2, offline_pb2_grpc, registry_pb2, registry_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import FeatureGroup, InvalidValue
from foresight.values.pipelines import PositionMove
from foresight.wire import decode_group, decode_instant

# A write that comes in batches may have any number of rows.
STREAMED_WRITE_S = 3_600.0
# What a write of a table may take per row, once it has more than take READ_S.
_ROW_S = 1 / 5_000
# How long a client trusts what it knows of a group's columns, seconds; a write that is refused looks again at once.
_GROUP_KNOWN_S = 30.0


@dataclass(frozen=True, slots=True)
class BrokenExpectation:
    """An expectation that `rows` rows broke; `samples` are up to 3 of them: keys, event time and the value."""

    name: str
    rows: int
    samples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """An accepted write. `duplicate`: the write id had been committed before, nothing was written now.

    Number 0: there were no rows, the write only moved the position of a pipeline. `quarantined_rows` broke the
    expectations in `broken` and were kept apart, see `read_quarantine`.
    """

    number: int
    committed_at: datetime
    rows: int
    duplicate: bool
    quarantined_rows: int = 0
    broken: tuple[BrokenExpectation, ...] = ()


class WriteCalls(Calls):
    """Calls that write rows."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._writes = offline_pb2_grpc.OfflineFeatureServiceStub(connection.channel)
        self._known: dict[str, tuple[float, FeatureGroup]] = {}

    def write(
        self,
        group: str,
        data: Any,
        *,
        write_id: str | None = None,
        source: str = "",
        move: PositionMove | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> Commit:
        """Appends rows as one commit: all become visible at once, or none.

        `data` (see `frames.to_table`) has the group's keys, `event_time`, its features (a missing column is NULL)
        and optionally `known_at` and `deleted`. What does not fit into memory is sent batch by batch: the rows of a
        Parquet file (a `pathlib.Path`), an Arrow RecordBatchReader, or an iterator of any of those tables; the last
        two come once only, so a lost connection ends the call.

        Without a `write_id` one is made, so that a retry never writes twice; give one of your own to make a re-run of a
        pipeline harmless too. `source` names what made the rows, for lineage. `move` moves a pipeline's position
        together with them: Aborted when another run moved it first; a table without rows only moves it.
        `timeout_s`: None is enough for any number of rows in memory, and an hour for what comes in batches.

        Raises InvalidArgument (reason EXPECTATION_FAILED) when rows break expectations of the group, with one violation
        for each, unless the group quarantines such rows.
        """
        # Version 0: what is known here may be some seconds old, and rows belong to the latest version.
        header = offline_pb2.WriteHeader(
            group=types_pb2.VersionRef(name=group), write_id=write_id or str(uuid.uuid4()), source=source
        )
        if move is not None:
            header.progress.pipeline = move.pipeline
            header.progress.position_before, header.progress.position_after = move.before, move.after
        asked, known = time.monotonic(), self._known.get(group)
        if known is not None and asked - known[0] < _GROUP_KNOWN_S:
            once = isinstance(data, Iterator | pa.RecordBatchReader)
            try:
                return self._write(known[1], data, header, progress, timeout_s)
            except (InvalidArgument, InvalidValue):
                # Perhaps the group has new columns, in place or in a new version.
                latest = self._latest(group, asked)
                if once or (latest.version, latest.features) == (known[1].version, known[1].features):
                    raise
                return self._write(latest, data, header, progress, timeout_s)
        return self._write(self._latest(group, asked), data, header, progress, timeout_s)

    def read_quarantine(
        self,
        group: str,
        *,
        version: int = 0,
        after_commit: int = 0,
        output: Output = "pandas",
        progress: Progress | None = None,
        timeout_s: float = READ_S,
    ) -> Any:
        """The rows of a group that broke expectations and were kept apart, in commit order, as a DataFrame.

        `after_commit`: only those of writes committed after that one. Columns: keys, `event_time`, features, `deleted`,
        `commit`, and `broken`, the names of the expectations that a row broke.
        """
        request = offline_pb2.ReadQuarantineRequest(
            group=types_pb2.VersionRef(name=group, version=version), after_commit=after_commit
        )
        rows = self._connection.download(
            lambda: self._writes.ReadQuarantine(request, timeout=timeout_s),
            lambda parts: read_table((part.arrow for part in parts), progress),
        )
        return from_table(rows, output)

    def _latest(self, name: str, asked: float) -> FeatureGroup:
        group = describe_group(self._connection, name, 0)
        self._known[name] = asked, group
        return group

    def _write(
        self,
        group: FeatureGroup,
        data: Any,
        header: offline_pb2.WriteHeader,
        progress: Progress | None,
        timeout_s: float | None,
    ) -> Commit:
        rows = RowUpload.of(data, (*group.entity_keys, EVENT_TIME, *group.features, KNOWN_AT, DELETED))
        if timeout_s is None:
            table = rows.data
            timeout_s = READ_S + table.num_rows * _ROW_S if isinstance(table, pa.Table) else STREAMED_WRITE_S

        def requests() -> Iterator[offline_pb2.WriteFeaturesRequest]:
            yield offline_pb2.WriteFeaturesRequest(header=header)
            for chunk in rows.chunks(progress):
                yield offline_pb2.WriteFeaturesRequest(arrow=chunk)

        response = self._connection.upload(self._writes.WriteFeatures, requests, timeout_s, repeatable=rows.repeatable)
        return Commit(
            response.commit,
            decode_instant(response.committed_at, "committed_at"),
            response.rows,
            response.duplicate,
            response.quarantined_rows,
            tuple(BrokenExpectation(b.name, b.rows, tuple(b.samples)) for b in response.broken),
        )


def describe_group(connection: Connection, name: str, version: int) -> FeatureGroup:
    """One group; version 0 is the latest."""
    registry = registry_pb2_grpc.FeatureRegistryServiceStub(connection.channel)
    request = registry_pb2.GetFeatureGroupRequest(group=types_pb2.VersionRef(name=name, version=version))
    return decode_group(connection.call(registry.GetFeatureGroup, request).group, derived=True)
