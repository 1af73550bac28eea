"""The online store, for operators."""

from __future__ import annotations

from dataclasses import dataclass

from foresight.client.connection import Calls, Connection
from foresight.feature_store.v1 import online_pb2, online_pb2_grpc

REBUILD_S = 3_600.0


@dataclass(frozen=True, slots=True)
class RebuiltStore:
    """An online store that was built anew: from the rows up to a commit, with so many keys when it took over."""

    applied_commit: int
    keys: int


class OnlineCalls(Calls):
    """Calls about the online store."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._online = online_pb2_grpc.OnlineFeatureServiceStub(connection.channel)

    def rebuild_online_store(self, timeout_s: float = REBUILD_S) -> RebuiltStore:
        """Builds the online store anew from offline rows, beside the one that serves; returns when it has taken over.

        It is never repeated by itself: when the connection is lost the rebuild ends too, and the store stays as it was,
        or it has just taken over. Raises FailedPrecondition while another rebuild goes on, PermissionDenied for others
        than operators.
        """
        request = online_pb2.RebuildOnlineStoreRequest()
        response = self._connection.call_once(self._online.RebuildOnlineStore, request, timeout_s)
        return RebuiltStore(response.applied_commit, response.keys)
