"""Removing predictions: what is remembered of it, and the statements that remove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.logger.forgetting import (
    FORGOTTEN_MAX,
    POSITIONS_PER_CALL,
    RECORDS_PER_CALL,
    Forgetting,
    Forgotten,
    ForgottenKeys,
    Progress,
    ViewVersion,
)
from services.logger.postgres.writing import Writing
from services.logger.targets import salted_hash, salted_hashes, target_of_id
from services.runtime.errors import AlreadyExists, LimitExceeded

_LOAD = text(
    """
    SELECT k.views, k.view_versions, k.names, k.digest, k.served_before,
      CAST(extract(epoch FROM f.expires_at) * 1000000 AS bigint) AS expires_at
    FROM forgotten_keys k JOIN forgettings f USING (request_id)
    """
)
_EXPIRE = text("DELETE FROM forgettings WHERE expires_at < :now AND request_id <> :id")
_BEGIN = text(
    """
    INSERT INTO forgettings (request_id, content, until, expires_at) VALUES (:id, :content, :until, :expires_at)
    ON CONFLICT (request_id) DO UPDATE SET expires_at = excluded.expires_at
    RETURNING content, until, predictions, outcomes, xmax = 0 AS fresh
    """
)
_REMEMBER = text(
    """
    INSERT INTO forgotten_keys (request_id, selection, views, view_versions, names, digest, served_before)
    VALUES (:id, :selection, CAST(:views AS text[]), CAST(:versions AS integer[]), CAST(:names AS text[]), :digest,
      :served_before)
    """
)
_REMEMBERED = text("SELECT count(*) FROM forgotten_keys")
_COUNT = text(
    """
    UPDATE forgettings SET predictions = predictions + :predictions, outcomes = outcomes + :outcomes
    WHERE request_id = :id RETURNING predictions, outcomes
    """
)
_CANDIDATES = text(
    """
    SELECT r.position
    FROM records r
    JOIN unnest(CAST(:views AS text[]), CAST(:versions AS integer[])) AS v(view, view_version)
      USING (view, view_version)
    WHERE r.position > :after AND r.position <= :until
      AND (CAST(:unknown AS boolean)
        OR EXISTS (SELECT FROM unnest(CAST(:traces AS bytea[])) AS t(trace) WHERE position(t.trace IN r.record) > 0))
    ORDER BY r.position LIMIT :limit
    """
)
_CLAIMED = text("SELECT DISTINCT target FROM claims WHERE keys @> CAST(:hashes AS bytea[])")
_RECORDS = text(
    "SELECT position, view, view_version, record FROM records WHERE position = ANY(CAST(:positions AS bigint[]))"
)
_DELETE_PREDICTIONS = text("DELETE FROM predictions WHERE prediction_id = ANY(CAST(:ids AS uuid[])) RETURNING target")
_DELETE_OUTCOMES = text("DELETE FROM outcomes WHERE prediction_id = ANY(CAST(:ids AS uuid[]))")
_DELETE_NAMED = text("DELETE FROM named_requests WHERE prediction_id = ANY(CAST(:ids AS uuid[]))")
_DELETE_RECORD = text("DELETE FROM records WHERE position = :position")
_REWRITE_RECORD = text(
    "UPDATE records SET record = :record, forgotten = CAST(:forgotten AS smallint[]) WHERE position = :position"
)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record at its position."""

    position: int
    view: ViewVersion
    payload: bytes


@dataclass(frozen=True, slots=True)
class RemovedRows:
    """Predictions that leave a record; `payload` None: it has no others. `forgotten`: all offsets that it lacks."""

    position: int
    prediction_ids: Sequence[str]
    payload: bytes | None
    forgotten: Sequence[int]


async def load_forgotten(writing: Writing) -> Forgotten:
    """Everything that must not come back."""
    rows = (await writing.connection.execute(_LOAD)).all()
    return Forgotten.of(
        writing.salt,
        (
            ForgottenKeys(
                tuple(zip(row.views, row.view_versions, strict=True)),
                tuple(row.names),
                row.digest,
                row.served_before,
                row.expires_at,
            )
            for row in rows
        ),
    )


async def begin(
    writing: Writing, forgetting: Forgetting, now: datetime, expires_at: datetime, *, starting: bool
) -> Progress:
    """Remembers what is to be forgotten, or how far that is. `starting`: the log is gone through from its beginning.

    Raises AlreadyExists for an id used with others, LimitExceeded when too much is remembered.
    """
    connection, name = writing.connection, {"id": forgetting.request_id}
    await connection.execute(_EXPIRE, name | {"now": now})
    content = salted_hash(writing.salt, forgetting.content)
    state = name | {"content": content, "until": writing.head, "expires_at": expires_at}
    row = (await connection.execute(_BEGIN, state)).one()
    if row.content != content:
        raise AlreadyExists("the request id was used before for something else", request_id=forgetting.request_id)
    if row.fresh:
        for number, selection in enumerate(forgetting.selections):
            views = sorted(selection.views)
            entry = {
                "selection": number,
                "views": [view for view, _ in views],
                "versions": [version for _, version in views],
                "names": sorted(selection.keys),
                "digest": salted_hashes(writing.salt, selection.keys)[0],
                "served_before": forgetting.served_before,
            }
            await connection.execute(_REMEMBER, name | entry)
        if (await connection.execute(_REMEMBERED)).scalar_one() > FORGOTTEN_MAX:
            raise LimitExceeded(f"more than {FORGOTTEN_MAX:,} entities are being forgotten", limit="forgotten")
    if row.fresh or starting:
        # Every process that appends looks again.
        writing.forgettings += 1
    return Progress(row.predictions, row.outcomes, 0, row.until)


async def find_candidates(
    connection: AsyncConnection, forgetting: Forgetting, traces: Sequence[bytes], after: int, end: int
) -> tuple[list[int], int]:
    """Positions of records that may hold such predictions, and the position up to which that is all of them.

    `traces`: each of those records contains one of them; empty ones say nothing.
    """
    until = min(end, after + POSITIONS_PER_CALL)
    views = sorted(set().union(*(selection.views for selection in forgetting.selections)))
    parameters = {
        "views": [view for view, _ in views],
        "versions": [version for _, version in views],
        "after": after,
        "until": until,
        "unknown": not all(traces),
        "traces": list(traces),
        "limit": RECORDS_PER_CALL,
    }
    positions = list((await connection.execute(_CANDIDATES, parameters)).scalars())
    return positions, positions[-1] if len(positions) == RECORDS_PER_CALL else until


async def find_claimed(connection: AsyncConnection, hashes: Sequence[bytes]) -> list[bytes]:
    """Targets of claims that have all of some key hashes."""
    return list((await connection.execute(_CLAIMED, {"hashes": list(hashes)})).scalars())


async def records_at(writing: Writing, positions: Sequence[int]) -> list[StoredRecord]:
    """The records at positions; those that are gone are left out."""
    rows = await writing.connection.execute(_RECORDS, {"positions": list(positions)})
    return [StoredRecord(row.position, (row.view, row.view_version), row.record) for row in rows]


async def remove_rows(writing: Writing, removed: Sequence[RemovedRows]) -> tuple[int, int]:
    """Removes predictions, their outcomes and what was claimed for them; answers how many of each there were."""
    connection = writing.connection
    ids = [prediction_id for record in removed for prediction_id in record.prediction_ids]
    if not ids:
        return 0, 0
    targets = list((await connection.execute(_DELETE_PREDICTIONS, {"ids": ids})).scalars())
    outcomes = (await connection.execute(_DELETE_OUTCOMES, {"ids": ids})).rowcount
    await connection.execute(_DELETE_NAMED, {"ids": ids})
    await writing.drop_claims([*set(targets), *(target_of_id(i) for i in ids)])
    for record in removed:
        if record.payload is None:
            await connection.execute(_DELETE_RECORD, {"position": record.position})
        else:
            rewritten = {"position": record.position, "record": record.payload, "forgotten": list(record.forgotten)}
            await connection.execute(_REWRITE_RECORD, rewritten)
    return len(targets), outcomes


async def count(writing: Writing, request_id: str, predictions: int, outcomes: int) -> tuple[int, int]:
    """Adds to what a request removed; answers its totals."""
    counts = {"id": request_id, "predictions": predictions, "outcomes": outcomes}
    row = (await writing.connection.execute(_COUNT, counts)).one()
    return row.predictions, row.outcomes
