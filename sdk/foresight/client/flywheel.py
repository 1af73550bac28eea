"""The flywheel: challengers are judged on what happened and promoted when they are better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from foresight.client.connection import TRAIN_S, Calls, Connection
from foresight.client.datasets import decode_ref
from foresight.client.features import VersionRef
from foresight.client.models import ModelMetrics, Selection, decode_metrics, encode_ref, selections
from foresight.trainer.v1 import flywheel_pb2, flywheel_pb2_grpc
from foresight.wire import decode_instant, encode_instant


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, on what grounds. `models`: metrics of champion, challenger and references, in this order."""

    id: str
    deployment: str
    champion: VersionRef
    challenger: VersionRef
    promoted: bool
    metric: str
    margin: float
    models: tuple[ModelMetrics, ...]
    rows: int
    dataset_id: str
    judged_at: datetime
    created_at: datetime


class FlywheelCalls(Calls):
    """Calls about challengers and decisions."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._flywheel = flywheel_pb2_grpc.FlywheelServiceStub(connection.channel)

    def judge(
        self,
        deployment: str,
        challenger: tuple[str, int],
        dataset: Selection,
        *,
        judged_at: datetime,
        metric: str = "log_loss",
        margin: float = 0.0,
        references: Sequence[tuple[str, int]] = (),
        timeout_s: float = TRAIN_S,
    ) -> Decision:
        """Compares a challenger `(model, version)` with the champion on a dataset and promotes it when it is better
        by more than `margin`. `references` are measured on the same rows, for comparison.

        An answer that was lost is looked up in the recorded decisions before it is judged again.
        """
        selection = selections(dataset)[0]
        request = flywheel_pb2.JudgeChallengerRequest(
            deployment=deployment,
            challenger=encode_ref(challenger),
            references=[encode_ref(reference) for reference in references],
            dataset=selection,
            metric=metric,
            margin=margin,
            judged_at=encode_instant(judged_at),
        )

        recent = flywheel_pb2.ListDecisionsRequest(deployment=deployment)

        def recorded() -> flywheel_pb2.JudgeChallengerResponse | None:
            for decision in reversed(self._connection.call_once(self._flywheel.ListDecisions, recent).decisions):
                same = decision.challenger == request.challenger and decision.judged_at == request.judged_at
                if same and decision.dataset_id == selection.dataset_id:
                    return flywheel_pb2.JudgeChallengerResponse(decision=decision)
            return None

        response = self._connection.call(self._flywheel.JudgeChallenger, request, timeout_s, recorded)
        return _decode_decision(response.decision)

    def decisions(self, deployment: str = "") -> list[Decision]:
        """Decisions of one deployment, or of all, oldest first."""
        request = flywheel_pb2.ListDecisionsRequest(deployment=deployment)
        response = self._connection.call(self._flywheel.ListDecisions, request)
        return [_decode_decision(decision) for decision in response.decisions]


def _decode_decision(message: flywheel_pb2.Decision) -> Decision:
    return Decision(
        id=message.id,
        deployment=message.deployment,
        champion=decode_ref(message.champion),
        challenger=decode_ref(message.challenger),
        promoted=message.promoted,
        metric=message.metric,
        margin=message.margin,
        models=tuple(decode_metrics(measured) for measured in message.models),
        rows=message.rows,
        dataset_id=message.dataset_id,
        judged_at=decode_instant(message.judged_at, "judged_at"),
        created_at=decode_instant(message.created_at, "created_at"),
    )
