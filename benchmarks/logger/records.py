"""Requests as a predictor ships them: records of one view, single predictions, each with keys and features of its own.

The bytes are put together as the predictor does it: what the request gave, what the model and the view gave, the
columns, and last the replica, its incarnation and the sequence number.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence
from typing import Any

from foresight.logger.v1 import prediction_log_pb2
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType
from foresight.wire import encode_column
from services.runtime.ids import new_id

ENTITIES = 2_000
GROUP_FEATURES, REQUEST_FEATURES = 12, 4
# Rows whose feature is missing, which then says so.
MISSING_SHARE = 0.02
_Record = prediction_log_pb2.PredictionRecord


class Shipment:
    """Makes requests of records with consecutive sequence numbers."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._incarnation = str(uuid.uuid4())
        self._sequence = 0

    def request(self, count: int) -> bytes:
        """The bytes of an AppendRecordsRequest of `count` records."""
        request = b""
        parts = []
        for _ in range(count):
            record = self._record()
            parts += [b"\x0a", _varint(len(record)), record]
        return request.join(parts)

    def _record(self) -> bytes:
        self._sequence += 1
        pick, now = self._random, time.time_ns()
        asked = _Record(
            prediction_ids=[new_id()],
            request_id=new_id(),
            caller="spiffe://foresight/application/demo",
            deployment="late",
            latency_us=pick.randrange(300, 9_000),
        )
        asked.event_time.FromNanoseconds(now // 1_000 * 1_000)
        shared = _Record(
            model=types_pb2.VersionRef(name="late", version=1),
            model_sha256="ab" * 32,
            view=types_pb2.VersionRef(name="late", version=1),
            applied_commit=41_234,
        )
        shared.served_at.FromNanoseconds(now // 1_000 * 1_000 + 2_000_000)
        columns = _Record(
            entity_keys=[_column("place", DataType.STRING, [f"place {pick.randrange(ENTITIES)}"])],
            request_features=[
                _column(f"r{i}", DataType.FLOAT64, [pick.gauss(0, 1)]) for i in range(REQUEST_FEATURES - 1)
            ]
            + [_column("hour", DataType.INT64, [pick.randrange(24)])],
            features=[self._feature(f"f{i}") for i in range(GROUP_FEATURES)],
            sources=[
                prediction_log_pb2.LoggedSource(
                    group=types_pb2.VersionRef(name="places", version=1),
                    event_time_micros=[now // 1_000 - pick.randrange(10**9)],
                    commits=[pick.randrange(1, 41_234)],
                )
            ],
            outputs=[_column("probability", DataType.FLOAT64, [pick.random()])],
        )
        where = _Record(replica="predictor-0", incarnation=self._incarnation, first_sequence=self._sequence)
        return b"".join(message.SerializeToString() for message in (asked, shared, columns, where))

    def _feature(self, name: str) -> prediction_log_pb2.LoggedFeature:
        if self._random.random() < MISSING_SHARE:
            return prediction_log_pb2.LoggedFeature(
                column=_column(name, DataType.FLOAT64, [None]), statuses=b"\x03", policies=b"\x01"
            )
        return prediction_log_pb2.LoggedFeature(column=_column(name, DataType.FLOAT64, [self._random.gauss(0, 1)]))


def _column(name: str, type: DataType, values: Sequence[Any]) -> types_pb2.Column:
    return encode_column(Column.build(name, type, values))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
