"""The client: every call in one object."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from foresight.client.batch import BatchCalls
from foresight.client.connection import Connection, Retry, Target
from foresight.client.datasets import DatasetCalls
from foresight.client.erasure import ErasureCalls
from foresight.client.features import FeatureCalls
from foresight.client.flywheel import FlywheelCalls
from foresight.client.ledger import LedgerCalls
from foresight.client.lineage import LineageCalls
from foresight.client.models import ModelCalls
from foresight.client.online import OnlineCalls
from foresight.client.outcomes import OutcomeCalls
from foresight.client.pipelines import PipelineCalls
from foresight.client.prediction_streams import PredictionStreamCalls
from foresight.client.predictions import PredictionCalls
from foresight.client.reads import ReadCalls
from foresight.client.registry import RegistryCalls
from foresight.client.statistics import StatisticsCalls

RETRY_S = 30.0


class Client(
    FeatureCalls,
    RegistryCalls,
    LineageCalls,
    ReadCalls,
    DatasetCalls,
    StatisticsCalls,
    ModelCalls,
    PredictionCalls,
    PredictionStreamCalls,
    OutcomeCalls,
    FlywheelCalls,
    BatchCalls,
    LedgerCalls,
    PipelineCalls,
    OnlineCalls,
    ErasureCalls,
):
    """Talks to Foresight through its gateway, over mutual TLS.

    `Client()` finds the local stack: the state folder is $FORESIGHT_STATE, else ./var/foresight. The identity
    `operator` may do everything, `application` may predict and record outcomes. `Client.connect` takes any gateway.

    One client may be shared by threads, not by forked processes. Calls that find a service away are repeated for
    `retry_s` seconds. Every failure is a `ForesightError`; an argument that is wrong before anything is sent raises
    `InvalidValue`, a ValueError. Close it, or use it in a `with` statement.
    """

    def __init__(
        self,
        state: Path | str | None = None,
        identity: str = "operator",
        *,
        retry_s: float = RETRY_S,
        connection: Connection | None = None,
    ) -> None:
        """Raises NotConnected when there is no local stack in `state`. `connection` replaces all of it."""
        super().__init__(connection or Connection.open(Target.local(state, identity), Retry(retry_s)))

    @classmethod
    def connect(
        cls, address: str, *, ca: Path | str, certificate: Path | str, key: Path | str, retry_s: float = RETRY_S
    ) -> Client:
        """A client of the gateway at `host:port`; the files are PEM: authority, caller's certificate and key."""
        target = Target(address, Path(ca), Path(certificate), Path(key))
        return cls(connection=Connection.open(target, Retry(retry_s)))

    @property
    def address(self) -> str:
        """Host and port of the gateway."""
        return self._connection.address

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
