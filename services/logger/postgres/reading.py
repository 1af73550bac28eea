"""Reading the log, and the way to write it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text

from foresight.values import DataType
from services.logger.entries import Entry, FoundPrediction, IncarnationLedger, Page
from services.logger.forgetting import Forgetting, Forgotten
from services.logger.outcomes import LoggedOutcome, Outcome
from services.logger.postgres.forgetting import find_candidates, find_claimed, load_forgotten
from services.logger.postgres.writing import Writing
from services.logger.records import Incarnation
from services.runtime.database import Database
from services.runtime.errors import LimitExceeded

# Each holds a request of up to 4 MiB.
WRITERS_WAITING_MAX = 64
# What an entry needs beside the record's bytes or the outcome's value; names have at most 63 bytes.
ENTRY_BYTES = 512

_STATE = text("SELECT head, held FROM log_state")
_LEDGER = text(
    """
    SELECT replica, incarnation, duplicates,
      coalesce(greatest(upper(logged), upper(quarantined)) - 1, 0) AS highest_sequence,
      (SELECT CAST(coalesce(sum(upper(r) - lower(r)), 0) AS bigint) FROM unnest(logged) AS r) AS logged,
      (SELECT CAST(coalesce(sum(upper(r) - lower(r)), 0) AS bigint) FROM unnest(quarantined) AS r) AS quarantined
    FROM incarnations ORDER BY replica, incarnation_id
    """
)
# Positions whose entry was forgotten are passed over: a page may end behind its last entry, or have none.
_END_OF_PAGE = text(
    """
    WITH entries AS (
      SELECT position, octet_length(record) AS bytes FROM records WHERE position > :cursor AND position <= :last
      UNION ALL
      SELECT position, octet_length(value) FROM outcomes WHERE position > :cursor AND position <= :last
    ), running AS (
      SELECT position, sum(bytes + :entry_bytes) OVER (ORDER BY position) AS total,
        row_number() OVER (ORDER BY position) AS number
      FROM entries
    )
    SELECT coalesce(min(position) - 1, :last) FROM running WHERE total > :bytes_max AND number > 1
    """
)
_RECORDS = text("SELECT position, record FROM records WHERE position > :cursor AND position <= :last")
_OUTCOME_COLUMNS = "o.prediction_id, r.deployment, r.view, r.view_version, o.revision, o.type, o.value, o.observed_at"
_OUTCOMES = text(
    f"""
    SELECT o.position, {_OUTCOME_COLUMNS}
    FROM outcomes o JOIN predictions p USING (prediction_id) JOIN records r ON r.position = p.position
    WHERE o.position > :cursor AND o.position <= :last
    """  # noqa: S608 - a constant
)
_PREDICTION = text(
    """
    SELECT r.record,
      p.record_row - (SELECT count(*) FROM unnest(r.forgotten) AS f(row) WHERE f.row < p.record_row) AS row_left
    FROM predictions p JOIN records r USING (position) WHERE p.prediction_id = :id
    """
)
_LAST_OUTCOME = text(
    f"""
    SELECT {_OUTCOME_COLUMNS}
    FROM outcomes o JOIN predictions p USING (prediction_id) JOIN records r ON r.position = p.position
    WHERE o.prediction_id = :id ORDER BY o.revision DESC LIMIT 1
    """  # noqa: S608 - a constant
)


@dataclass(frozen=True, slots=True)
class LogState:
    """The log's last position, and how many outcomes wait for their prediction."""

    head: int
    held: int


class LogStore:
    """The log of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Writers wait here, not with a pooled connection in hand: readers must not wait for them.
        self._turn = asyncio.Lock()
        self._writers = 0
        # Under its number in the log's state.
        self._forgotten: tuple[int, Forgotten] | None = None

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[Writing]:
        """The one writing transaction, committed and published at the end of the block.

        Raises LimitExceeded when WRITERS_WAITING_MAX calls wait for their turn already.
        """
        if self._writers > WRITERS_WAITING_MAX:
            raise LimitExceeded("too many calls wait to write the log; try again", limit="waiting_writers")
        self._writers += 1
        try:
            async with self._turn, self._database.transaction() as connection:
                writing = await Writing.begin(connection)
                yield writing
                await writing.publish()
        finally:
            self._writers -= 1

    async def forgotten(self, writing: Writing) -> Forgotten:
        """Everything that must not come back, as of a writing transaction."""
        if self._forgotten is None or self._forgotten[0] != writing.forgettings:
            self._forgotten = (writing.forgettings, await load_forgotten(writing))
        return self._forgotten[1]

    async def find_candidates(
        self, forgetting: Forgetting, traces: Sequence[bytes], after: int, end: int
    ) -> tuple[list[int], int]:
        """See `forgetting.find_candidates`."""
        async with self._database.transaction() as connection:
            return await find_candidates(connection, forgetting, traces, after, end)

    async def find_claimed(self, hashes: Sequence[bytes]) -> list[bytes]:
        """Targets of claims that have all of some key hashes."""
        async with self._database.transaction() as connection:
            return await find_claimed(connection, hashes)

    async def ready(self) -> bool:
        """Whether the database answers."""
        return await self._database.ping()

    async def state(self) -> LogState:
        """What was published last."""
        async with self._database.transaction() as connection:
            return LogState(*(await connection.execute(_STATE)).one())

    async def entries(self, cursor: int, page_size: int, bytes_max: int) -> Page:
        """The entries after the cursor, in order; none, and the same cursor, beyond the log's head.

        They are at most `page_size` and, but for a first one that is larger alone, `bytes_max` together.
        """
        async with self._database.transaction() as connection:
            head = (await connection.execute(_STATE)).one().head
            if cursor >= head:
                return Page([], cursor, head)
            bounds = {"cursor": cursor, "last": min(head, cursor + page_size)}
            sizes = {"entry_bytes": ENTRY_BYTES, "bytes_max": bytes_max}
            bounds["last"] = (await connection.execute(_END_OF_PAGE, bounds | sizes)).scalar_one()
            records = (await connection.execute(_RECORDS, bounds)).all()
            outcomes = (await connection.execute(_OUTCOMES, bounds)).all()
        entries = [Entry(row.position, row.record) for row in records]
        entries.extend(Entry(row.position, _logged_outcome(row)) for row in outcomes)
        entries.sort(key=lambda entry: entry.position)
        return Page(entries, bounds["last"], head)

    async def prediction(self, prediction_id: str) -> FoundPrediction | None:
        """One prediction, or None."""
        async with self._database.transaction() as connection:
            found = (await connection.execute(_PREDICTION, {"id": prediction_id})).one_or_none()
            if found is None:
                return None
            last = (await connection.execute(_LAST_OUTCOME, {"id": prediction_id})).one_or_none()
        return FoundPrediction(found.record, found.row_left, None if last is None else _logged_outcome(last))

    async def ledger(self) -> Sequence[IncarnationLedger]:
        """All incarnations, by replica and first arrival."""
        async with self._database.transaction() as connection:
            rows = (await connection.execute(_LEDGER)).all()
        return [
            IncarnationLedger(
                Incarnation(row.replica, str(row.incarnation)),
                row.highest_sequence,
                row.logged,
                row.quarantined,
                row.duplicates,
            )
            for row in rows
        ]


def _logged_outcome(row: Row[Any]) -> LoggedOutcome:
    outcome = Outcome(row.revision, DataType(row.type), row.value, row.observed_at)
    return LoggedOutcome(str(row.prediction_id), row.deployment, row.view, row.view_version, outcome)
