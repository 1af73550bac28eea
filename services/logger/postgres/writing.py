"""One writing transaction of the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from foresight.values import DataType
from services.logger.outcomes import ATTACHED_MAX, Claims, Known, Outcome, check_attached
from services.logger.records import Incarnation, KnownPrediction, LogRecord, QuarantinedRange
from services.logger.targets import claim_hashes, id_of_target, target_of_id

_LOCK_STATE = text("SELECT head, held, forgettings, salt FROM log_state FOR UPDATE")
_PUBLISH = text("UPDATE log_state SET head = :head, held = :held, forgettings = :forgettings")
_INCARNATIONS = text(
    """
    SELECT i.incarnation_id, i.replica, i.incarnation
    FROM unnest(CAST(:replicas AS text[]), CAST(:incarnations AS uuid[])) AS u(replica, incarnation)
    JOIN incarnations i USING (replica, incarnation)
    """
)
_OPEN_INCARNATIONS = text(
    """
    INSERT INTO incarnations (replica, incarnation)
    SELECT * FROM unnest(CAST(:replicas AS text[]), CAST(:incarnations AS uuid[]))
    RETURNING incarnation_id, replica, incarnation
    """
)
_KNOWN_PREDICTIONS = text(
    """
    SELECT p.prediction_id, i.replica, i.incarnation, r.first_sequence + p.record_row AS sequence, p.target
    FROM predictions p JOIN records r USING (position) JOIN incarnations i USING (incarnation_id)
    WHERE p.prediction_id = ANY(CAST(:ids AS uuid[]))
    """
)
_INSERT_RECORDS = text(
    """
    INSERT INTO records
      (position, incarnation_id, first_sequence, deployment, view, view_version, event_time, record)
    SELECT * FROM unnest(
      CAST(:positions AS bigint[]), CAST(:sources AS bigint[]), CAST(:sequences AS bigint[]),
      CAST(:deployments AS text[]), CAST(:views AS text[]), CAST(:versions AS integer[]),
      CAST(:event_times AS bigint[]), CAST(:records AS bytea[]))
    """
)
_INSERT_PREDICTIONS = text(
    """
    INSERT INTO predictions (prediction_id, position, record_row, target)
    SELECT * FROM unnest(
      CAST(:ids AS uuid[]), CAST(:positions AS bigint[]), CAST(:rows AS smallint[]), CAST(:targets AS bytea[]))
    """
)
# Where a claim by id and one by keys have the same revision, the one by id is the more specific.
_ATTACH_CLAIMS = text(
    """
    WITH fresh AS (
      SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:targets AS bytea[]), CAST(:ranks AS integer[]))
        AS u(prediction_id, target, rank)
    ), chosen AS (
      SELECT DISTINCT ON (f.prediction_id, c.revision) f.prediction_id, c.revision, c.type, c.value, c.observed_at
      FROM fresh f JOIN claims c USING (target)
      ORDER BY f.prediction_id, c.revision, f.rank
    )
    INSERT INTO outcomes (prediction_id, revision, position, type, value, observed_at)
    SELECT prediction_id, revision, CAST(:head AS bigint) + row_number() OVER (ORDER BY prediction_id, revision),
      type, value, observed_at
    FROM chosen
    """
)
_RELEASE_CLAIMS_BY_ID = text("DELETE FROM claims WHERE target = ANY(CAST(:targets AS bytea[]))")
_MATCH_CLAIMS_BY_KEYS = text(
    "UPDATE claims SET matched = true WHERE target = ANY(CAST(:targets AS bytea[])) AND NOT matched"
)
_ACCOUNT_LOGGED = text(
    """
    UPDATE incarnations i
    SET logged = i.logged + a.numbers, quarantined = i.quarantined - a.numbers
    FROM (
      SELECT source, range_agg(int8range(first, last, '[]')) AS numbers
      FROM unnest(CAST(:sources AS bigint[]), CAST(:firsts AS bigint[]), CAST(:lasts AS bigint[]))
        AS u(source, first, last)
      GROUP BY source
    ) a
    WHERE i.incarnation_id = a.source
    """
)
_ACCOUNT_DUPLICATES = text(
    """
    UPDATE incarnations i SET duplicates = i.duplicates + u.duplicates
    FROM unnest(CAST(:sources AS bigint[]), CAST(:counts AS bigint[])) AS u(source, duplicates)
    WHERE i.incarnation_id = u.source
    """
)
_REMEMBER_QUARANTINED = text(
    """
    INSERT INTO quarantined_ranges (incarnation_id, first_sequence, last_sequence, reason)
    SELECT * FROM unnest(
      CAST(:sources AS bigint[]), CAST(:firsts AS bigint[]), CAST(:lasts AS bigint[]), CAST(:reasons AS text[]))
    ON CONFLICT DO NOTHING
    """
)
_ACCOUNT_QUARANTINED = text(
    """
    WITH lost AS (
      SELECT source, range_agg(int8range(first, last, '[]')) AS numbers
      FROM unnest(CAST(:sources AS bigint[]), CAST(:firsts AS bigint[]), CAST(:lasts AS bigint[]))
        AS u(source, first, last)
      GROUP BY source
    ), newly AS (
      SELECT i.incarnation_id, lost.numbers - i.logged - i.quarantined AS numbers
      FROM incarnations i JOIN lost ON i.incarnation_id = lost.source
    ), changed AS (
      UPDATE incarnations i SET quarantined = i.quarantined + newly.numbers
      FROM newly WHERE i.incarnation_id = newly.incarnation_id
    )
    SELECT CAST(coalesce(sum(upper(r) - lower(r)), 0) AS bigint)
    FROM newly CROSS JOIN LATERAL unnest(newly.numbers) AS r
    """
)
_DELETE_CLAIMS = text("DELETE FROM claims WHERE target = ANY(CAST(:targets AS bytea[])) RETURNING matched")
_PREDICTIONS_OF_TARGETS = text(
    "SELECT target, prediction_id FROM predictions WHERE target = ANY(CAST(:targets AS bytea[])) LIMIT :limit"
)
_PREDICTIONS_OF_IDS = text("SELECT prediction_id FROM predictions WHERE prediction_id = ANY(CAST(:ids AS uuid[]))")
_ATTACHED = text(
    """
    SELECT prediction_id, revision, type, value, observed_at FROM outcomes
    WHERE prediction_id = ANY(CAST(:ids AS uuid[]))
    """
)
_CLAIMED = text(
    """
    SELECT target, revision, type, value, observed_at FROM claims WHERE target = ANY(CAST(:targets AS bytea[]))
    """
)
_ATTACH = text(
    """
    INSERT INTO outcomes (prediction_id, revision, position, type, value, observed_at)
    SELECT * FROM unnest(
      CAST(:ids AS uuid[]), CAST(:revisions AS bigint[]), CAST(:positions AS bigint[]), CAST(:types AS text[]),
      CAST(:values AS bytea[]), CAST(:instants AS bigint[]))
    """
)
_KEEP = text(
    """
    INSERT INTO claims (target, revision, type, value, observed_at, matched, keys)
    SELECT target, revision, type, value, observed_at, matched,
      -- The hashes of a claim, which are of one length, come joined.
      (SELECT array_agg(substr(joined, 1 + 16 * i, 16)) FROM generate_series(0, length(joined) / 16 - 1) AS i)
    FROM unnest(
      CAST(:targets AS bytea[]), CAST(:revisions AS bigint[]), CAST(:types AS text[]), CAST(:values AS bytea[]),
      CAST(:instants AS bigint[]), CAST(:matched AS boolean[]), CAST(:keys AS bytea[]))
      AS u(target, revision, type, value, observed_at, matched, joined)
    """
)


class Writing:
    """A transaction that holds the log's lock; `head`, `held` and `forgettings` are as it leaves them.

    `salt` goes into hashes of keys.
    """

    def __init__(self, connection: AsyncConnection, head: int, held: int, forgettings: int, salt: bytes) -> None:
        self.connection = connection
        self._sources: dict[Incarnation, int] = {}
        self.head = head
        self.held = held
        self.forgettings = forgettings
        self.salt = salt

    @classmethod
    async def begin(cls, connection: AsyncConnection) -> Writing:
        """Waits for the log's lock."""
        return cls(connection, *(await connection.execute(_LOCK_STATE)).one())

    async def publish(self) -> None:
        """Makes what was written visible, with the end of the transaction."""
        state = {"head": self.head, "held": self.held, "forgettings": self.forgettings}
        await self.connection.execute(_PUBLISH, state)

    async def open_incarnations(self, sources: Iterable[Incarnation]) -> None:
        """Makes sure that the incarnations exist; needed before anything is inserted or accounted for them."""
        missing = sorted(sources)
        for statement in (_INCARNATIONS, _OPEN_INCARNATIONS):
            missing = [source for source in missing if source not in self._sources]
            if missing:
                rows = await self.connection.execute(
                    statement,
                    {"replicas": [s.replica for s in missing], "incarnations": [s.incarnation for s in missing]},
                )
                self._sources |= {Incarnation(row.replica, str(row.incarnation)): row.incarnation_id for row in rows}

    async def known_predictions(self, ids: Sequence[str]) -> dict[str, KnownPrediction]:
        """Those of the ids that were logged before."""
        if not ids:
            return {}
        rows = await self.connection.execute(_KNOWN_PREDICTIONS, {"ids": ids})
        return {
            str(row.prediction_id): KnownPrediction(
                Incarnation(row.replica, str(row.incarnation)), row.sequence, row.target
            )
            for row in rows
        }

    async def insert_records(self, records: Sequence[LogRecord]) -> None:
        """Stores records of which every prediction is new, each at the next position."""
        if not records:
            return
        positions = range(self.head + 1, self.head + 1 + len(records))
        self.head = positions[-1]
        await self.connection.execute(
            _INSERT_RECORDS,
            {
                "positions": list(positions),
                "sources": [self._sources[r.source] for r in records],
                "sequences": [r.first_sequence for r in records],
                "deployments": [r.deployment for r in records],
                "views": [r.view for r in records],
                "versions": [r.view_version for r in records],
                "event_times": [r.event_time for r in records],
                "records": [r.payload for r in records],
            },
        )
        await self.connection.execute(
            _INSERT_PREDICTIONS,
            {
                "ids": [i for r in records for i in r.prediction_ids],
                "positions": [p for p, r in zip(positions, records, strict=True) for _ in r.prediction_ids],
                "rows": [row for r in records for row in range(len(r.prediction_ids))],
                "targets": [t for r in records for t in r.targets],
            },
        )

    async def attach_claims(self, records: Sequence[LogRecord]) -> int:
        """Attaches the outcomes that were claimed for predictions just inserted; answers how many."""
        if not records:
            return 0
        ids = [i for r in records for i in r.prediction_ids]
        by_id = [target_of_id(i) for i in ids]
        by_keys = [t for r in records for t in r.targets]
        ranks = [0] * len(ids) + [1] * len(ids)
        result = await self.connection.execute(
            _ATTACH_CLAIMS, {"ids": ids * 2, "targets": by_id + by_keys, "ranks": ranks, "head": self.head}
        )
        self.head += result.rowcount
        if result.rowcount and self.held:
            released = await self.connection.execute(_RELEASE_CLAIMS_BY_ID, {"targets": by_id})
            matched = await self.connection.execute(_MATCH_CLAIMS_BY_KEYS, {"targets": list(set(by_keys))})
            self.held -= released.rowcount + matched.rowcount
        return result.rowcount

    async def account_logged(self, records: Sequence[LogRecord], duplicates: Mapping[Incarnation, int]) -> None:
        """Adds sequence numbers that were logged, which hence are not lost, and duplicates to the ledger."""
        if records:
            await self.connection.execute(
                _ACCOUNT_LOGGED,
                {
                    "sources": [self._sources[r.source] for r in records],
                    "firsts": [r.first_sequence for r in records],
                    "lasts": [r.last_sequence for r in records],
                },
            )
        if duplicates:
            await self.connection.execute(
                _ACCOUNT_DUPLICATES,
                {"sources": [self._sources[s] for s in duplicates], "counts": list(duplicates.values())},
            )

    async def account_quarantined(self, ranges: Sequence[QuarantinedRange]) -> int:
        """Adds lost sequence numbers to the ledger; answers how many were neither logged nor known as lost."""
        if not ranges:
            return 0
        parameters: dict[str, Any] = {
            "sources": [self._sources[r.source] for r in ranges],
            "firsts": [r.first_sequence for r in ranges],
            "lasts": [r.last_sequence for r in ranges],
        }
        reasons = {"reasons": [r.reason for r in ranges]}
        await self.connection.execute(_REMEMBER_QUARANTINED, parameters | reasons)
        return int((await self.connection.execute(_ACCOUNT_QUARANTINED, parameters)).scalar_one())

    async def known_claims(self, claims: Claims) -> Known:
        """What is stored about the targets. Raises LimitExceeded when they have more than ATTACHED_MAX predictions."""
        targets = list(set(claims.targets))
        predictions: dict[bytes, list[str]] = {}
        if claims.by_keys:
            found = await self.connection.execute(
                _PREDICTIONS_OF_TARGETS, {"targets": targets, "limit": ATTACHED_MAX + 1}
            )
            for row in found:
                predictions.setdefault(row.target, []).append(str(row.prediction_id))
            check_attached(sum(map(len, predictions.values())))
        else:
            found = await self.connection.execute(_PREDICTIONS_OF_IDS, {"ids": [id_of_target(t) for t in targets]})
            predictions = {target_of_id(str(row.prediction_id)): [str(row.prediction_id)] for row in found}
        known = Known(predictions)
        ids = [i for found_ids in predictions.values() for i in found_ids]
        if ids:
            for row in await self.connection.execute(_ATTACHED, {"ids": ids}):
                known.attached.setdefault(str(row.prediction_id), {})[row.revision] = _outcome(row)
        for row in await self.connection.execute(_CLAIMED, {"targets": targets}):
            known.claimed.setdefault(row.target, {})[row.revision] = _outcome(row)
        return known

    async def attach(self, attached: Sequence[tuple[str, Outcome]]) -> None:
        """Stores outcomes of logged predictions, each at the next position."""
        if not attached:
            return
        positions = range(self.head + 1, self.head + 1 + len(attached))
        self.head = positions[-1]
        await self.connection.execute(
            _ATTACH,
            {"ids": [i for i, _ in attached], "positions": list(positions)} | _columns([o for _, o in attached]),
        )

    async def keep(self, claims: Claims, kept: Sequence[tuple[int, bool]]) -> None:
        """Stores claims by their row, and whether a prediction has the outcome."""
        if not kept:
            return
        rows = [row for row, _ in kept]
        hashes: list[bytes | None] = [None] * len(rows)
        if claims.keys:
            keys = {name: column.take(rows) for name, column in claims.keys.items()}
            hashes = [b"".join(found) for found in claim_hashes(self.salt, keys, sorted(keys))]
        self.held += sum(not matched for _, matched in kept)
        await self.connection.execute(
            _KEEP,
            {"targets": [claims.targets[row] for row in rows], "matched": [m for _, m in kept], "keys": hashes}
            | _columns([claims.outcomes[row] for row in rows]),
        )

    async def drop_claims(self, targets: Sequence[bytes]) -> int:
        """Removes the claims of targets for good; answers how many outcomes they were."""
        removed = (await self.connection.execute(_DELETE_CLAIMS, {"targets": targets})).all()
        self.held -= sum(not row.matched for row in removed)
        return len(removed)


def _columns(outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
    return {
        "revisions": [o.revision for o in outcomes],
        "types": [o.type.value for o in outcomes],
        "values": [o.value for o in outcomes],
        "instants": [o.observed_at for o in outcomes],
    }


def _outcome(row: Row[Any]) -> Outcome:
    return Outcome(row.revision, DataType(row.type), row.value, row.observed_at)
