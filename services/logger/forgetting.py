"""Forgetting: the predictions of an entity leave the log, with their outcomes, and do not come back.

The log keeps no key of a forgotten entity, only a salted hash, and that for FORGOTTEN_KEPT after the last call: what
waits in a predictor's spool longer than that would be logged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from foresight.values import Column
from services.logger.records import LogRecord, RecordBytes, RecordKeys, pieces
from services.logger.targets import claim_hashes, parts_of, salted_hashes

FORGOTTEN_KEPT = timedelta(days=7)
# What arriving predictions are compared with, all together.
FORGOTTEN_MAX = 100_000
# One call looks at so many positions and takes up so many records.
POSITIONS_PER_CALL = 10_000
RECORDS_PER_CALL = 256

ViewVersion = tuple[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Predictions of some views with some key values: one row per column, no NULL. `entity_keys`: all of the views'."""

    views: frozenset[ViewVersion]
    keys: Mapping[str, Column]
    entity_keys: tuple[str, ...]

    def claim_hashes(self, salt: bytes) -> list[bytes]:
        """What a claim by the keys of these views has when it names the entity; empty when none can."""
        if not self.keys.keys() <= set(self.entity_keys):
            return []
        return claim_hashes(salt, self.keys, self.entity_keys)[0]

    def rows(self, view: ViewVersion, keys: RecordKeys) -> set[int]:
        """The rows of a record that are selected."""
        if view not in self.views:
            return set()
        wanted = set(salted_hashes(b"", self.keys))
        return set(_matching(b"", self.keys, wanted, keys))


@dataclass(frozen=True, slots=True, eq=False)
class Forgetting:
    """What is to be forgotten: predictions of any selection that were served before an instant (microseconds)."""

    request_id: str
    served_before: int
    selections: tuple[Selection, ...]

    @property
    def content(self) -> bytes:
        """Canonical bytes: equal for equal requests."""
        parts = [str(self.served_before).encode()]
        for selection in self.selections:
            parts += [repr(sorted(selection.views)).encode(), repr(selection.entity_keys).encode()]
            parts += [parts_of(selection.keys[name])[0] for name in sorted(selection.keys)]
        return b"".join(parts)

    def rows(self, view: ViewVersion, keys: RecordKeys) -> list[int]:
        """The rows of a record that are to be forgotten, ascending."""
        if keys.served_at >= self.served_before:
            return []
        return sorted(set().union(*(selection.rows(view, keys) for selection in self.selections)))


@dataclass(frozen=True, slots=True)
class ForgottenKeys:
    """What the log remembers of a selection; instants in microseconds since the epoch."""

    views: tuple[ViewVersion, ...]
    names: tuple[str, ...]
    digest: bytes
    served_before: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What was removed so far, how far the log is done, and how far it has to be."""

    predictions: int
    outcomes: int
    position: int
    end: int


@dataclass(slots=True)
class Forgotten:
    """Everything that must not come back. One hash per prediction and set of key names, however much was forgotten."""

    salt: bytes = b""
    # By view version and names of keys: the hashes, with what they are remembered for.
    _known: dict[ViewVersion, dict[tuple[str, ...], dict[bytes, ForgottenKeys]]] = field(default_factory=dict)

    @classmethod
    def of(cls, salt: bytes, entries: Iterable[ForgottenKeys]) -> Forgotten:
        """The index over entries."""
        known: dict[ViewVersion, dict[tuple[str, ...], dict[bytes, ForgottenKeys]]] = {}
        for entry in entries:
            for view in entry.views:
                hashes = known.setdefault(view, {}).setdefault(entry.names, {})
                other = hashes.get(entry.digest)
                if other is None or other.served_before < entry.served_before:
                    hashes[entry.digest] = entry
        return cls(salt, known)

    def concerns(self, view: ViewVersion) -> bool:
        """Whether anything of a view was forgotten."""
        return view in self._known

    def rows(self, view: ViewVersion, keys: RecordKeys, now: int) -> list[int]:
        """The rows of an arriving record that were forgotten, ascending."""
        found: set[int] = set()
        for names, entries in self._known.get(view, {}).items():
            alive = {
                digest
                for digest, entry in entries.items()
                if keys.served_at < entry.served_before and now < entry.expires_at
            }
            columns = {name: keys.columns[name] for name in names if name in keys.columns}
            if alive and len(columns) == len(names):
                found.update(_matching(self.salt, columns, alive, keys))
        return sorted(found)


def drop_forgotten(
    records: Sequence[LogRecord], forgotten: Forgotten, now: int, layout: RecordBytes
) -> tuple[list[LogRecord], list[LogRecord]]:
    """Arriving records without the predictions that were forgotten, and those predictions."""
    kept: list[LogRecord] = []
    dropped: list[LogRecord] = []
    for record in records:
        view = (record.view, record.view_version)
        gone = forgotten.rows(view, layout.keys(record.payload), now) if forgotten.concerns(view) else []
        if not gone:
            kept.append(record)
            continue
        left = sorted(set(range(len(record.prediction_ids))).difference(gone))
        kept += pieces(record, left, layout.cut)
        dropped += pieces(record, gone, layout.cut)
    return kept, dropped


def _matching(salt: bytes, like: Mapping[str, Column], wanted: Collection[bytes], keys: RecordKeys) -> Sequence[int]:
    """The rows whose values of some keys have one of the hashes."""
    if not like.keys() <= keys.columns.keys():
        return []
    hashes = salted_hashes(salt, {name: keys.columns[name] for name in like})
    return [row for row, found in enumerate(hashes) if found in wanted]
