"""Outcomes: tell the log what turned out to be true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from foresight.client.connection import Calls, Connection
from foresight.client.frames import Progress
from foresight.client.rows import encode_micros, encode_rows, encode_values
from foresight.logger.v1 import outcome_pb2, outcome_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import InvalidValue

OUTCOMES_PER_CALL = 10_000


@dataclass(frozen=True, slots=True)
class OutcomeCounts:
    """Outcomes attached to a logged prediction, held until theirs arrives, and known already."""

    matched: int
    held: int
    duplicates: int


class OutcomeCalls(Calls):
    """Calls about outcomes."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._outcomes = outcome_pb2_grpc.OutcomeServiceStub(connection.channel)

    def record_outcomes(
        self,
        values: Sequence[Any],
        observed_at: Sequence[datetime] | datetime,
        *,
        prediction_ids: Sequence[str] | None = None,
        deployment: str = "",
        entity_keys: Any = None,
        event_times: Sequence[datetime] | None = None,
        revisions: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> OutcomeCounts:
        """Records n outcomes: the true `values`, and when each was known in the world.

        They are named by `prediction_ids`, or by `deployment`, `entity_keys` (a DataFrame, a list of dicts or a dict
        of columns, as in the prediction) and `event_times` (of the predictions). `observed_at` may be one instant for
        all. Repeating an outcome changes nothing; another value for the same prediction needs a higher revision, else
        AlreadyExists. Sent in calls of 10,000: each is taken whole, or not at all. `progress` hears ("sending", rows).
        """
        if (prediction_ids is None) == (entity_keys is None):
            raise InvalidValue("prediction_ids", "or entity_keys with event_times: give one of them")
        if entity_keys is not None and event_times is None:
            raise InvalidValue("event_times", "are needed with entity keys: the event time of each prediction")
        values = list(values)
        n = len(values)
        known = [observed_at] * n if isinstance(observed_at, datetime) else list(observed_at)
        whole = outcome_pb2.RecordOutcomesRequest(
            deployment=deployment,
            prediction_ids=[] if prediction_ids is None else list(prediction_ids),
            entity_keys=[] if entity_keys is None else encode_rows(entity_keys),
            event_time_micros=[] if event_times is None else encode_micros("event_times", event_times),
            values=encode_values("value", values),
            observed_at_micros=encode_micros("observed_at", known),
            revisions=[] if revisions is None else [int(revision) for revision in revisions],
        )
        _check_lengths(whole, n)
        counts = OutcomeCounts(0, 0, 0)
        for start in range(0, n, OUTCOMES_PER_CALL):
            request = whole if n <= OUTCOMES_PER_CALL else _part(whole, start, start + OUTCOMES_PER_CALL)
            answer = self._connection.call(self._outcomes.RecordOutcomes, request)
            counts = OutcomeCounts(
                counts.matched + answer.matched, counts.held + answer.held, counts.duplicates + answer.duplicates
            )
            if progress is not None:
                progress("sending", min(n, start + OUTCOMES_PER_CALL))
        return counts


def _check_lengths(request: outcome_pb2.RecordOutcomesRequest, n: int) -> None:
    """Refuses arguments of different lengths, before a part of them is sent."""
    lengths = {
        "observed_at": len(request.observed_at_micros),
        "prediction_ids": len(request.prediction_ids) or n,
        "event_times": len(request.event_time_micros) or n,
        "revisions": len(request.revisions) or n,
        **{f"entity_keys.{column.name}": _rows_of(column) for column in request.entity_keys},
    }
    for name, length in lengths.items():
        if length != n:
            raise InvalidValue(name, f"has {length} entries, not {n} as the values")


def _part(whole: outcome_pb2.RecordOutcomesRequest, start: int, stop: int) -> outcome_pb2.RecordOutcomesRequest:
    return outcome_pb2.RecordOutcomesRequest(
        deployment=whole.deployment,
        prediction_ids=whole.prediction_ids[start:stop],
        entity_keys=[_slice(column, start, stop) for column in whole.entity_keys],
        event_time_micros=whole.event_time_micros[start:stop],
        values=_slice(whole.values, start, stop),
        observed_at_micros=whole.observed_at_micros[start:stop],
        revisions=whole.revisions[start:stop],
    )


def _slice(column: types_pb2.Column, start: int, stop: int) -> types_pb2.Column:
    part = types_pb2.Column(name=column.name, validity=column.validity[start:stop])
    arm = column.WhichOneof("values")
    assert arm is not None
    repeated = "micros" if arm == "timestamp_values" else "values"
    getattr(getattr(part, arm), repeated).extend(getattr(getattr(column, arm), repeated)[start:stop])
    return part


def _rows_of(column: types_pb2.Column) -> int:
    arm = column.WhichOneof("values")
    assert arm is not None
    return len(getattr(getattr(column, arm), "micros" if arm == "timestamp_values" else "values"))
