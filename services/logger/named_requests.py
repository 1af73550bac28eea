"""Records of requests that have a name of their caller's: which one repeats which.

A replica answers a repeat from its memory, without a record. A repeat that meets another replica, or a later life of
the replica that does not remember, is predicted and logged anew; the record that arrives later then names the first
prediction of the one that arrived earlier, if both were served within MEMORY of one another. Records of one life are
never linked: they are parts of one answer, or memory was too small for the answer between them.

Names are kept as digests and forgotten KEPT after they were served: a record that arrives later than that finds none.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from services.logger.records import Incarnation, LogRecord, RecordBytes

MEMORY_US = timedelta(minutes=10) // timedelta(microseconds=1)
KEPT_US = 2 * MEMORY_US
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Named:
    """A logged record of a named request: its first prediction, and when it was served, in microseconds."""

    source: Incarnation
    prediction_id: str
    served_at: int


def name_of(caller: str, deployment: str, client_request_id: str) -> bytes:
    """What records of the same named request have in common; empty for a request without a name."""
    if not client_request_id:
        return b""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in (caller, deployment, client_request_id):
        data = part.encode()
        digest.update(struct.pack("<I", len(data)) + data)
    return digest.digest()


def linked(
    records: Iterable[LogRecord], known: Mapping[bytes, Sequence[Named]], record_bytes: RecordBytes
) -> list[LogRecord]:
    """The records in order, each that repeats a known or an earlier one with the id of the first prediction of that."""
    seen = {name: list(others) for name, others in known.items()}
    found = []
    for record in records:
        if record.name:
            others = seen.setdefault(record.name, [])
            earlier = next((other for other in others if _is_repeated(other, record)), None)
            others.append(Named(record.source, record.prediction_ids[0], record.served_at))
            if earlier is not None:
                payload = record_bytes.repeating(record.payload, earlier.prediction_id)
                record = replace(record, payload=payload)
        found.append(record)
    return found


def _is_repeated(earlier: Named, record: LogRecord) -> bool:
    # Records of one life of a replica are parts of one answer, as that of several arms.
    return earlier.source != record.source and abs(earlier.served_at - record.served_at) <= MEMORY_US
