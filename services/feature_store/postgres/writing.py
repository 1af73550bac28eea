"""Writing commits: rows are copied in under a write number, then published by the last statements of the transaction.

The single row of `commit_state` is locked only by those, so that writers copy side by side, and commit numbers
become visible in order: a later number is given out only after the transaction of the former ended. Locks are taken in
the order commit state, then position of a pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import adbc_driver_manager as adbc
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foresight.values.pipelines import PositionMove
from services.feature_store.commits import (
    AcceptedRows,
    BrokenExpectation,
    Commit,
    CursorMove,
    CursorMoved,
    RowsToWrite,
    StagedRows,
    WriteOrigin,
)
from services.feature_store.groups import StoredGroup
from services.feature_store.postgres.quarantine import keep_apart
from services.feature_store.postgres.row_tables import physical_names, table_of
from services.feature_store.tables.lookahead import looked_ahead
from services.feature_store.tables.row_source import read_all
from services.runtime.errors import AlreadyExists, LimitExceeded, NotFound, StaleEtag

_UNIQUE_VIOLATION = "23505"
_UNDEFINED_TABLE = "42P01"
# Such as a row that is larger than a page although its long values are stored elsewhere.
_PROGRAM_LIMIT = "54"
# Batches that are checked before they are copied.
_AHEAD = 2

_START = """
SELECT nextval('write_numbers'), coalesce(c.group_id, e.group_id), coalesce(c.content, e.content, ''),
  coalesce(c.commit, 0), coalesce(c.committed_at, e.written_at), coalesce(c.rows, 0), coalesce(c.quarantined_rows, 0),
  c.expectations, p.position
FROM (SELECT 1) AS one LEFT JOIN commits c ON c.write_id = $1 LEFT JOIN empty_writes e ON e.write_id = $1
  LEFT JOIN pipeline_positions p ON p.pipeline = $2"""
# now() is the start of the transaction and would run backwards; the former time is read under the lock.
_PUBLISH = """
WITH taken AS (
  UPDATE commit_state SET last_commit = last_commit + 1,
    last_time = greatest(clock_timestamp(), last_time + interval '1 microsecond'),
    write_bound = greatest(write_bound, $1::bigint)
  RETURNING last_commit, last_time, write_bound)
INSERT INTO commits (commit, write, write_bound, group_id, committed_at, rows, write_id, content, latest_event_time,
  source, known_at_asserted, quarantined_rows, expectations)
SELECT last_commit, $1::bigint, write_bound, $2::bigint, last_time, $3::bigint, nullif($4, ''), nullif($5, ''),
  $6::timestamptz, nullif($7, ''), $8::boolean, $9::bigint, nullif($10, '')
FROM taken
RETURNING commit, committed_at"""
_NOTE_EMPTY = """
WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now), noted AS (
  INSERT INTO empty_writes (write_id, group_id, content, written_at)
  SELECT $1, $2::bigint, $3, now FROM moment WHERE $1 <> '')
SELECT now FROM moment"""
# The condition is looked at again once the row is locked.
_MOVE_POSITION = """
INSERT INTO pipeline_positions AS p (pipeline, position, commit, moved_at)
SELECT $1, $3, $4::bigint, $5::timestamptz
WHERE $2 = '' OR EXISTS (SELECT FROM pipeline_positions WHERE pipeline = $1)
ON CONFLICT (pipeline) DO UPDATE
  SET position = excluded.position, commit = greatest(p.commit, excluded.commit), moved_at = excluded.moved_at
  WHERE p.position = $2
RETURNING position"""
_MOVE_CURSOR = """
UPDATE log_cursor SET cursor = $2::bigint, predictions = predictions + $3::bigint, outcomes = outcomes + $4::bigint
WHERE cursor = $1::bigint RETURNING cursor"""


def write_rows(connection: Any, stored: StoredGroup, rows: RowsToWrite, origin: WriteOrigin) -> Commit:
    """Publishes rows as one commit, in a transaction; see `CommitLog.write`."""
    try:
        write, known = _start(connection, stored, rows, origin)
        if known is not None:
            return known
        accepted = _copy_checked(connection, stored, rows, write)
        commit = _publish_accepted(connection, stored, accepted, write, origin)
        connection.commit()
    except adbc.Error as error:
        state = getattr(error, "sqlstate", None) or ""
        if state == _UNIQUE_VIOLATION and origin.write_id:
            # The same write came twice at once and the other one was faster.
            connection.rollback()
            _, known = _start(connection, stored, rows, origin)
            if known is not None:
                return known
        # The driver looks the table up itself first, and then only says that there is none.
        if state == _UNDEFINED_TABLE or error.status_code == adbc.AdbcStatusCode.NOT_FOUND:
            raise NotFound("feature group", stored.group.name) from error
        if state.startswith(_PROGRAM_LIMIT):
            raise LimitExceeded("a row is too large to be stored", limit="row_bytes") from error
        raise
    return commit


def reingest(connection: Any, staged: Sequence[StagedRows], move: CursorMove) -> list[Commit]:
    """Publishes one commit per element and moves the cursor of the log, all or nothing. Raises CursorMoved."""
    accepted = []
    for rows in staged:
        write = _next_write(connection)
        table = read_all(rows.rows)
        _copy(connection, rows.group, table.schema, iter(table.to_batches()), write)
        latest = pc.max(table["event_time"]).as_py()
        accepted.append((rows.group, write, AcceptedRows(table.num_rows, latest)))
    with connection.cursor() as cursor:
        cursor.execute(_MOVE_CURSOR, (move.before, move.after, move.predictions, move.outcomes))
        if cursor.fetchone() is None:
            raise CursorMoved
    commits = [_publish(connection, group, rows, write, WriteOrigin()) for group, write, rows in accepted]
    connection.commit()
    return commits


def _next_write(connection: Any) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT nextval('write_numbers')")
        return int(cursor.fetchone()[0])


def _start(connection: Any, stored: StoredGroup, rows: RowsToWrite, origin: WriteOrigin) -> tuple[int, Commit | None]:
    """A fresh write number, and what the write id was answered before, if it was."""
    progress = origin.progress
    with connection.cursor() as cursor:
        cursor.execute(_START, (origin.write_id, progress.pipeline if progress is not None else ""))
        write, group_id, content, number, at, written, quarantined, expectations, position = cursor.fetchone()
    if group_id is None:
        if progress is not None and (position or "") != progress.before:
            # Found before anything is copied; it is decided when the position is moved.
            raise _moved(progress)
        return write, None
    if group_id != stored.id or content != rows.content():
        raise AlreadyExists("the write id was used before with other rows", write_id=origin.write_id)
    broken = _decode_broken(expectations)
    return write, Commit(number, _utc(at), written, True, quarantined_rows=quarantined, broken=broken)


def _copy_checked(connection: Any, stored: StoredGroup, rows: RowsToWrite, write: int) -> AcceptedRows:
    """Copies rows while those after them are checked. Raises what `rows.finish` raises."""
    if rows.ready:
        accepted = rows.finish()
        if accepted.rows:
            _copy(connection, stored, rows.schema, rows.accepted(), write)
        return accepted
    failures: list[BaseException] = []
    with looked_ahead(rows.accepted(), _AHEAD) as batches:
        _copy(connection, stored, rows.schema, _until_failure(batches, failures), write)
    if failures:
        raise failures[0]
    return rows.finish()


def _until_failure(batches: Iterator[pa.RecordBatch], failures: list[BaseException]) -> Iterator[pa.RecordBatch]:
    """Batches as the driver takes them, which would lose what an exception says."""
    try:
        yield from batches
    except BaseException as error:  # noqa: BLE001 - raised again by whoever copies
        failures.append(error)


def _copy(
    connection: Any, stored: StoredGroup, schema: pa.Schema, batches: Iterator[pa.RecordBatch], write: int
) -> None:
    names = physical_names(stored.group)
    physical = pa.schema([(names.get(f.name, f.name), f.type) for f in schema]).append(pa.field("write", pa.int64()))

    def numbered() -> Iterator[pa.RecordBatch]:
        for batch in batches:
            marks = pa.array(np.full(batch.num_rows, write, np.int64))
            yield pa.RecordBatch.from_arrays([*batch.columns, marks], schema=physical)

    with connection.cursor() as cursor:
        reader = pa.RecordBatchReader.from_batches(physical, numbered())
        cursor.adbc_ingest(table_of(stored.id), reader, mode="append")


def _publish_accepted(
    connection: Any, stored: StoredGroup, accepted: AcceptedRows, write: int, origin: WriteOrigin
) -> Commit:
    if not accepted.rows:
        # Copying would have found out, and kept it from being dropped: what is kept apart goes with the group.
        with connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {table_of(stored.id)} IN ROW EXCLUSIVE MODE")
    if accepted.quarantined is not None:
        keep_apart(connection, stored, write, accepted.quarantined)
    if accepted.rows or accepted.quarantined_rows:
        commit = _publish(connection, stored, accepted, write, origin)
    else:
        commit = Commit(0, _note_empty(connection, stored, accepted, origin), 0)
    if origin.progress is not None:
        _move_position(connection, origin.progress, commit)
    return commit


def _publish(connection: Any, stored: StoredGroup, accepted: AcceptedRows, write: int, origin: WriteOrigin) -> Commit:
    values = (
        *(write, stored.id, accepted.rows, origin.write_id, accepted.content, accepted.latest_event_time),
        *(origin.source, accepted.known_at_asserted, accepted.quarantined_rows, _encode_expectations(accepted)),
    )
    with connection.cursor() as cursor:
        cursor.execute(_PUBLISH, values)
        number, committed_at = cursor.fetchone()
    return Commit(
        number,
        _utc(committed_at),
        accepted.rows,
        quarantined_rows=accepted.quarantined_rows,
        broken=accepted.broken,
    )


def _note_empty(connection: Any, stored: StoredGroup, accepted: AcceptedRows, origin: WriteOrigin) -> datetime:
    """Remembers the id of a write that had no rows."""
    with connection.cursor() as cursor:
        cursor.execute(_NOTE_EMPTY, (origin.write_id, stored.id, accepted.content))
        return _utc(cursor.fetchone()[0])


def _move_position(connection: Any, progress: PositionMove, commit: Commit) -> None:
    values = (progress.pipeline, progress.before, progress.after, commit.number, commit.committed_at)
    with connection.cursor() as cursor:
        cursor.execute(_MOVE_POSITION, values)
        if cursor.fetchone() is None:
            raise _moved(progress)


def _moved(progress: PositionMove) -> StaleEtag:
    return StaleEtag("another run moved the pipeline's position meanwhile", pipeline=progress.pipeline)


def _encode_expectations(accepted: AcceptedRows) -> str:
    if not accepted.held and not accepted.broken:
        return ""
    broken = [{"name": b.name, "rows": b.rows, "samples": b.samples} for b in accepted.broken]
    return json.dumps({"held": accepted.held, "broken": broken})


def _decode_broken(text: str | None) -> tuple[BrokenExpectation, ...]:
    if not text:
        return ()
    return tuple(BrokenExpectation(b["name"], b["rows"], tuple(b["samples"])) for b in json.loads(text)["broken"])


def _utc(instant: datetime) -> datetime:
    return instant.astimezone(UTC)
