"""The record of one answered request: n predictions with the features behind them; and those of a batch together.

Which replica and incarnation made it, and its sequence numbers, belong to the spool and are not part of it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from foresight.values import Column
from services.predictor.policies import ResolvedFeature
from services.predictor.vectors import SourceRows
from services.predictor.versions import VersionRef


@dataclass(frozen=True, slots=True)
class RecordedArm:
    """The arm that predicted; `probability`: with which entities get it, 0 for a shadow.

    `forced`: it was asked for, so that the probability says nothing; `shadow`: no caller has seen the prediction.
    """

    name: str
    probability: float
    forced: bool
    shadow: bool


@dataclass(frozen=True, slots=True, eq=False)
class PredictionRecord:
    """See `foresight.logger.v1.PredictionRecord`. `features` holds group features, then transforms.

    `arm` is None where the deployment has one only.
    Where the caller gave what the model took, that is in `request_features`, and `features` and `sources` are empty.
    """

    prediction_ids: tuple[str, ...]
    request_id: str
    client_request_id: str
    caller: str
    deployment: str
    model: VersionRef
    model_sha256: str
    view: VersionRef
    transforms_sha256: str
    applied_commit: int
    event_time: datetime
    served_at: datetime
    latency_us: int
    entity_keys: tuple[Column, ...]
    request_features: tuple[Column, ...]
    features: tuple[ResolvedFeature, ...]
    sources: tuple[SourceRows, ...]
    outputs: tuple[Column, ...]
    arm: RecordedArm | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RecordedRequest:
    """One request of a batch, with the rows `start` to before `stop`; the names are those of `PredictionRecord`."""

    start: int
    stop: int
    prediction_ids: tuple[str, ...]
    request_id: str
    client_request_id: str
    caller: str
    deployment: str
    event_time: datetime
    latency_us: int
    arm: RecordedArm | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RecordBatch:
    """What the records of requests that were scored together are made of; columns hold the rows of all of them.

    There may be rows of no request: those of callers who have gone.
    """

    requests: tuple[RecordedRequest, ...]
    model: VersionRef
    model_sha256: str
    view: VersionRef
    transforms_sha256: str
    applied_commit: int
    served_at: datetime
    entity_keys: tuple[Column, ...]
    request_features: tuple[Column, ...]
    features: tuple[ResolvedFeature, ...]
    sources: tuple[SourceRows, ...]
    outputs: tuple[Column, ...]
