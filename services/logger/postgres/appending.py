"""The part of a writing transaction that stores records.

Statements go to the driver itself: they are few, the same each time, and a batch of records is small enough that what
SQLAlchemy does around each would cost as much as storing the records. They are part of its transaction all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from services.logger.named_requests import KEPT_US, Named, linked
from services.logger.postgres.writing import Writing
from services.logger.records import Incarnation, KnownPrediction, LogRecord, QuarantinedRange, RecordBytes
from services.logger.targets import target_of_id

# What is known of incarnations and of predictions, in one answer.
_KNOWN = """
SELECT NULL::uuid AS prediction_id, i.replica, i.incarnation, i.incarnation_id AS number, NULL::bytea AS target
FROM unnest($1::text[], $2::uuid[]) AS u(replica, incarnation)
JOIN incarnations i USING (replica, incarnation)
UNION ALL
SELECT p.prediction_id, i.replica, i.incarnation, r.first_sequence + p.record_row, p.target
FROM predictions p JOIN records r USING (position) JOIN incarnations i USING (incarnation_id)
WHERE p.prediction_id = ANY($3::uuid[])
"""
_OPEN_INCARNATIONS = """
INSERT INTO incarnations (replica, incarnation)
SELECT * FROM unnest($1::text[], $2::uuid[])
RETURNING incarnation_id AS number, replica, incarnation
"""
# Records, their predictions, outcomes that were claimed for those, the ledger and the log's head, in one go. Where a
# claim by id and one by keys have the same revision, the one by id is the more specific; the target of an id is its 16
# bytes behind the kind. Sequence numbers that were logged are hence not lost.
_STORE = """
WITH origins AS MATERIALIZED (
  SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::integer[])
    WITH ORDINALITY AS u(incarnation_id, deployment, view, view_version, origin)
), stored AS (
  INSERT INTO records (position, incarnation_id, first_sequence, deployment, view, view_version, event_time, record)
  SELECT position, incarnation_id, first_sequence, deployment, view, view_version, event_time, record
  FROM unnest($5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bytea[])
    AS u(position, origin, first_sequence, event_time, record)
  JOIN origins USING (origin)
), fresh AS MATERIALIZED (
  SELECT * FROM unnest($10::uuid[], $11::bigint[], $12::smallint[], $13::bytea[])
    AS u(prediction_id, position, record_row, target)
), inserted AS (
  INSERT INTO predictions (prediction_id, position, record_row, target)
  SELECT prediction_id, position, record_row, target FROM fresh
), targeted AS (
  SELECT prediction_id, 'p'::bytea || uuid_send(prediction_id) AS target, 0 AS rank FROM fresh
  UNION ALL
  SELECT prediction_id, target, 1 FROM fresh
), chosen AS (
  SELECT DISTINCT ON (t.prediction_id, c.revision) t.prediction_id, c.revision, c.type, c.value, c.observed_at
  FROM targeted t JOIN claims c USING (target)
  ORDER BY t.prediction_id, c.revision, t.rank
), attached AS (
  INSERT INTO outcomes (prediction_id, revision, position, type, value, observed_at)
  SELECT prediction_id, revision, $14::bigint + row_number() OVER (ORDER BY prediction_id, revision),
    type, value, observed_at
  FROM chosen
  RETURNING 1
), accounted AS (
  UPDATE incarnations i
  SET logged = i.logged + a.numbers, quarantined = i.quarantined - a.numbers
  FROM (
    SELECT source, range_agg(int8range(first, last, '[]')) AS numbers
    FROM unnest($15::bigint[], $16::bigint[], $17::bigint[]) AS u(source, first, last)
    GROUP BY source
  ) a
  WHERE i.incarnation_id = a.source
), counted AS (
  SELECT count(*) AS attached FROM attached
)
UPDATE log_state SET head = $14::bigint + attached FROM counted RETURNING attached
"""
_RELEASE_CLAIMS_BY_ID = """
WITH released AS (DELETE FROM claims WHERE target = ANY($1::bytea[]) RETURNING 1) SELECT count(*) FROM released
"""
_MATCH_CLAIMS_BY_KEYS = """
WITH found AS (
  UPDATE claims SET matched = true WHERE target = ANY($1::bytea[]) AND NOT matched RETURNING 1
)
SELECT count(*) FROM found
"""
_NAMED = """
SELECT n.name, i.replica, i.incarnation, n.prediction_id, n.served_at
FROM named_requests n JOIN incarnations i USING (incarnation_id)
WHERE n.name = ANY($1::bytea[])
ORDER BY n.served_at
"""
_KEEP_NAMED = """
INSERT INTO named_requests (prediction_id, name, incarnation_id, served_at)
SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::bigint[], $4::bigint[])
"""
_FORGET_NAMED = "DELETE FROM named_requests WHERE served_at < $1::bigint"
_ACCOUNT_DUPLICATES = """
UPDATE incarnations i SET duplicates = i.duplicates + u.duplicates
FROM unnest($1::bigint[], $2::bigint[]) AS u(source, duplicates)
WHERE i.incarnation_id = u.source
"""
_REMEMBER_QUARANTINED = """
INSERT INTO quarantined_ranges (incarnation_id, first_sequence, last_sequence, reason)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[])
ON CONFLICT DO NOTHING
"""
_ACCOUNT_QUARANTINED = """
WITH lost AS (
  SELECT source, range_agg(int8range(first, last, '[]')) AS numbers
  FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS u(source, first, last)
  GROUP BY source
), newly AS (
  SELECT i.incarnation_id, lost.numbers - i.logged - i.quarantined AS numbers
  FROM incarnations i JOIN lost ON i.incarnation_id = lost.source
), changed AS (
  UPDATE incarnations i SET quarantined = i.quarantined + newly.numbers
  FROM newly WHERE i.incarnation_id = newly.incarnation_id
)
SELECT coalesce(sum(upper(r) - lower(r)), 0)::bigint
FROM newly CROSS JOIN LATERAL unnest(newly.numbers) AS r
"""


class Appending:
    """Stores records and accounts for them, in a writing transaction."""

    def __init__(self, writing: Writing, driver: Any) -> None:
        self._writing = writing
        self._driver = driver
        self._sources: dict[Incarnation, int] = {}
        self._missing: list[Incarnation] = []

    @classmethod
    async def within(cls, writing: Writing) -> Appending:
        """The transaction must have begun, as `Writing.begin` does."""
        return cls(writing, (await writing.connection.get_raw_connection()).driver_connection)

    async def known_predictions(
        self, ids: Sequence[str], sources: Collection[Incarnation]
    ) -> dict[str, KnownPrediction]:
        """Those of the ids that were logged before; the sources are all that will be stored or accounted for."""
        self._missing = sorted(sources)
        rows = await self._driver.fetch(_KNOWN, *_columns(self._missing), ids)
        known = {}
        for row in rows:
            source = _incarnation(row)
            if row["prediction_id"] is None:
                self._sources[source] = row["number"]
            else:
                known[str(row["prediction_id"])] = KnownPrediction(source, row["number"], row["target"])
        self._missing = [source for source in self._missing if source not in self._sources]
        return known

    async def open_incarnations(self) -> None:
        """Makes sure that the sources exist; needed before anything is stored or accounted for them."""
        if self._missing:
            rows = await self._driver.fetch(_OPEN_INCARNATIONS, *_columns(self._missing))
            self._sources |= {_incarnation(row): row["number"] for row in rows}

    async def store(self, fresh: Sequence[LogRecord], logged: Sequence[LogRecord]) -> int:
        """Stores records of which every prediction is new, each at the next position, and accounts for those `logged`.

        Attaches the outcomes that were claimed for them; answers how many.
        """
        if not logged:
            return 0
        writing, origins = self._writing, dict[tuple[int, str, str, int], int]()
        of = [
            origins.setdefault((self._sources[r.source], r.deployment, r.view, r.view_version), len(origins) + 1)
            for r in fresh
        ]
        positions = range(writing.head + 1, writing.head + 1 + len(fresh))
        runs = list(_runs(logged))
        attached: int = await self._driver.fetchval(
            _STORE,
            *([origin[i] for origin in origins] for i in range(4)),
            positions,
            of,
            [r.first_sequence for r in fresh],
            [r.event_time for r in fresh],
            [r.payload for r in fresh],
            [i for r in fresh for i in r.prediction_ids],
            [p for p, r in zip(positions, fresh, strict=True) for _ in r.prediction_ids],
            [row for r in fresh for row in range(len(r.prediction_ids))],
            [t for r in fresh for t in r.targets],
            positions.stop - 1,
            [self._sources[source] for source, _, _ in runs],
            [first for _, first, _ in runs],
            [last for _, _, last in runs],
        )
        writing.moved(positions.stop - 1 + attached)
        if attached and writing.held:
            by_id = [target_of_id(i) for r in fresh for i in r.prediction_ids]
            by_keys = list({t for r in fresh for t in r.targets})
            writing.held -= await self._driver.fetchval(_RELEASE_CLAIMS_BY_ID, by_id)
            writing.held -= await self._driver.fetchval(_MATCH_CLAIMS_BY_KEYS, by_keys)
        return attached

    async def link(self, fresh: Sequence[LogRecord], record_bytes: RecordBytes, now_us: int) -> Sequence[LogRecord]:
        """The records that will be stored, those that repeat the named request of another with its prediction."""
        named = [record for record in fresh if record.name]
        if not named:
            return fresh
        known: dict[bytes, list[Named]] = {}
        for row in await self._driver.fetch(_NAMED, list({record.name for record in named})):
            found = Named(_incarnation(row), str(row["prediction_id"]), row["served_at"])
            known.setdefault(row["name"], []).append(found)
        await self._driver.execute(_FORGET_NAMED, now_us - KEPT_US)
        await self._driver.fetch(
            _KEEP_NAMED,
            [record.prediction_ids[0] for record in named],
            [record.name for record in named],
            [self._sources[record.source] for record in named],
            [record.served_at for record in named],
        )
        return linked(fresh, known, record_bytes)

    async def account_duplicates(self, duplicates: Mapping[Incarnation, int]) -> None:
        """Adds predictions that were not stored again to the ledger."""
        if duplicates:
            await self._driver.fetch(
                _ACCOUNT_DUPLICATES, [self._sources[s] for s in duplicates], list(duplicates.values())
            )

    async def account_quarantined(self, ranges: Sequence[QuarantinedRange]) -> int:
        """Adds lost sequence numbers to the ledger; answers how many were neither logged nor known as lost."""
        if not ranges:
            return 0
        sources = [self._sources[r.source] for r in ranges]
        firsts, lasts = [r.first_sequence for r in ranges], [r.last_sequence for r in ranges]
        await self._driver.fetch(_REMEMBER_QUARANTINED, sources, firsts, lasts, [r.reason for r in ranges])
        return int(await self._driver.fetchval(_ACCOUNT_QUARANTINED, sources, firsts, lasts))


def _columns(sources: Sequence[Incarnation]) -> tuple[list[str], list[str]]:
    return [source.replica for source in sources], [source.incarnation for source in sources]


def _incarnation(row: Mapping[str, Any]) -> Incarnation:
    return Incarnation(row["replica"], str(row["incarnation"]))


def _runs(records: Sequence[LogRecord]) -> Iterator[tuple[Incarnation, int, int]]:
    """Runs of consecutive sequence numbers, as (source, first, last); there is at least one record."""
    source, first, last = records[0].source, records[0].first_sequence, records[0].last_sequence
    for record in records[1:]:
        if record.first_sequence == last + 1 and record.source == source:
            last = record.last_sequence
        else:
            yield source, first, last
            source, first, last = record.source, record.first_sequence, record.last_sequence
    yield source, first, last
