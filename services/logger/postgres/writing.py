"""One writing transaction of the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from foresight.values import DataType
from services.logger.outcomes import ATTACHED_MAX, Claims, Known, Outcome, check_attached
from services.logger.targets import claim_hashes, id_of_target, target_of_id

_LOCK_STATE = text("SELECT head, held, forgettings, salt FROM log_state FOR UPDATE")
_PUBLISH = text("UPDATE log_state SET head = :head, held = :held, forgettings = :forgettings")
_DELETE_CLAIMS = text("DELETE FROM claims WHERE target = ANY(CAST(:targets AS bytea[])) RETURNING matched")
_PREDICTIONS_OF_TARGETS = text(
    # What was answered comes before what shadows made of the same question.
    "SELECT target, prediction_id FROM predictions WHERE target = ANY(CAST(:targets AS bytea[])) "
    "ORDER BY position, record_row LIMIT :limit"
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
        self.head = head
        self.held = held
        self.forgettings = forgettings
        self.salt = salt
        self._published = (head, held, forgettings)

    @classmethod
    async def begin(cls, connection: AsyncConnection) -> Writing:
        """Waits for the log's lock."""
        return cls(connection, *(await connection.execute(_LOCK_STATE)).one())

    async def publish(self) -> None:
        """Makes what was written visible, with the end of the transaction."""
        if (self.head, self.held, self.forgettings) != self._published:
            state = {"head": self.head, "held": self.held, "forgettings": self.forgettings}
            await self.connection.execute(_PUBLISH, state)

    def moved(self, head: int) -> None:
        """The statement that moved the log's head has published that with it."""
        self.head = head
        self._published = (head, *self._published[1:])

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
