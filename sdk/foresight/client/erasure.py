"""Forgetting: remove everything that is stored about an entity."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from foresight.client.connection import Calls, Connection
from foresight.client.features import VersionRef
from foresight.client.lineage import LineageThing, decode_thing
from foresight.client.rows import encode_rows
from foresight.feature_store.v1 import erasure_pb2, erasure_pb2_grpc
from foresight.values import InvalidValue
from foresight.wire import decode_instant, decode_optional_instant

# A little more than the service waits itself.
FORGET_S = 660.0


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was removed about an entity so far; it does not name the entity.

    `finished_at` None: it goes on, and `doing` says where it is. `rows`: removed from each group, those of the log's
    groups included. `predictions`: removed from the log. `datasets`: id to name of the training datasets that held the
    entity; they cannot be made again. `affected`: models that were trained on those, and deployments that serve them.
    """

    request_id: str
    requested_at: datetime
    finished_at: datetime | None
    doing: str
    rows: Mapping[VersionRef, int]
    predictions: int
    datasets: Mapping[str, str]
    affected: tuple[LineageThing, ...]


class ErasureCalls(Calls):
    """Calls about forgetting; for operators only."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._erasures = erasure_pb2_grpc.ErasureServiceStub(connection.channel)

    def forget_entity(self, entity: Mapping[str, Any], *, request_id: str = "", timeout_s: float = FORGET_S) -> Erasure:
        """Removes an entity from all feature groups, the online store, the log and training datasets, for good.

        `entity` has a value per key, by the names that groups give their keys: `{"customer_id": 7}`. Rows of every
        group that has all of these keys go, whatever its other keys, and predictions of every view whose keys stand
        for them. Returns when everything is gone. What is written about the entity later is new and stays.

        `request_id` makes it repeatable: the same one waits for the same erasure, or answers what it did; '' makes one
        up. Raises FailedPrecondition when no group has such keys, AlreadyExists for a request id that was used for
        another entity, Unavailable or DeadlineExceeded when it takes longer: it goes on, and `erasure` says how far.
        """
        if not isinstance(entity, Mapping) or not entity:
            raise InvalidValue("entity", "is a dict with a value for each key, such as {'customer_id': 7}")
        request = erasure_pb2.ForgetEntityRequest(
            entity_keys=encode_rows({name: [value] for name, value in entity.items()}),
            request_id=request_id or str(uuid.uuid4()),
        )
        return _decode(self._connection.call(self._erasures.ForgetEntity, request, timeout_s).erasure)

    def erasure(self, request_id: str) -> Erasure:
        """What became of an erasure. Raises NotFound."""
        request = erasure_pb2.GetErasureRequest(request_id=request_id)
        return _decode(self._connection.call(self._erasures.GetErasure, request).erasure)


def _decode(message: erasure_pb2.Erasure) -> Erasure:
    return Erasure(
        request_id=message.request_id,
        requested_at=decode_instant(message.requested_at, "requested_at"),
        finished_at=decode_optional_instant(message.HasField("finished_at"), message.finished_at, "finished_at"),
        doing=message.doing,
        rows={VersionRef(removed.group.name, removed.group.version): removed.rows for removed in message.rows},
        predictions=message.predictions,
        datasets={thing.name: thing.label for thing in message.datasets},
        affected=tuple(decode_thing(thing) for thing in message.affected),
    )
