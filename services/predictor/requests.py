"""What is asked, what is answered, and whatever answers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from foresight.values import Column
from services.predictor.explaining import Explanation
from services.predictor.policies import Missing
from services.predictor.records import RecordedArm
from services.predictor.serving import Served, ServedArms
from services.predictor.versions import VersionRef


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What a client asks; `remaining_s` is the time that it still waits, None: forever.

    `served`: the version that must answer, as the columns were read for it; None: whichever serves. `given`: the
    columns are the features that the model takes, see `check_given`. `client_request_id`: the caller's own name of the
    request, '' without one. `explain`: the answer is to have an explanation.
    """

    deployment: str
    columns: Mapping[str, Column]
    event_time: datetime | None
    caller: str
    request_id: str
    remaining_s: float | None
    served: Served | None = None
    given: bool = False
    client_request_id: str = ""
    explain: bool = False
    # The arm that the caller asks for; and the arms that may answer, as the columns were read for them. See `arms`.
    forced_arm: str = ""
    serving: ServedArms | None = None
    # What is recorded of the arm, None: the deployment has one only; and whether to leave the record to the caller.
    arm: RecordedArm | None = None
    held: bool = False


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """The rows of a request that one arm answered, ascending."""

    arm: str
    model: VersionRef
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Unrecorded:
    """The record of an answer that its caller has yet to have written; what it counts for then. `started` as below."""

    payload: bytes
    served: Served
    started: float


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the client gets; `repeated`: it was given before, to an earlier request of the same name.

    `explanation`: None when none was asked for, or the model has no score for a mix of a row and its example. `arms`
    are empty where the deployment has one only; `unrecorded` is the record of an answer to a request that is `held`.
    """

    prediction_ids: tuple[str, ...]
    outputs: tuple[Column, ...]
    model: VersionRef
    event_time: datetime
    missing: list[Missing]
    repeated: bool = False
    explanation: Explanation | None = None
    arms: tuple[AnsweredRows, ...] = ()
    unrecorded: Unrecorded | None = None


class Predicting(Protocol):
    """Whatever answers requests: the `Predictor`, or what stands around it."""

    async def predict(self, request: Request) -> Answer:
        """The answer; its predictions are in the spool. Raises what `Predictor.predict` raises."""
        ...
